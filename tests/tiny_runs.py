"""Run directories with tiny models that were never trained, as pretraining and fine-tuning write them."""

import json
from pathlib import Path

import numpy as np
import torch
from conftest import STRETCH
from transformers import ViTConfig, ViTForImageClassification

from lens_ssl_hf import pipeline
from lens_ssl_hf.data.processor_config import save_processor
from lens_ssl_hf.inference.classifier import Classifier
from lens_ssl_hf.models import METHODS

BANDS = ["g", "r", "i", "z", "y"]
FLUX_STRETCH = {
    "kind": "asinh",
    "black": [-2.0, -1.5, -1.0],
    "white": [60.0, 50.0, 70.0],
    "softening": [5.0, 4.0, 6.0],
}


def write_classifier_run(path: Path, bands: int = 3) -> Path:
    config = tiny_vit(bands)
    config.num_labels = 2
    config.id2label, config.label2id = {0: "nonlens", 1: "lens"}, {"nonlens": 0, "lens": 1}
    config.cutouts = cutouts(bands)
    torch.manual_seed(0)
    model = ViTForImageClassification(config)
    with torch.no_grad():
        model.classifier.weight.mul_(100)  # scores from 0 to 1, not all 0.5
    return _write_run(
        path, model, bands, task="finetune", method=None, init="scratch", init_method="scratch", num_labels=20
    )


def make_flux(seed, size=40):
    rng = np.random.default_rng(seed)
    pixels = rng.normal(size=(3, size, size)).astype("float32")
    pixels[:, size // 2 - 2 : size // 2 + 2, size // 2 - 2 : size // 2 + 2] += rng.uniform(5, 60, (3, 1, 1))
    return pixels


FLUX = np.stack([make_flux(i) for i in range(20)])


def write_flux_run(path, bands=3, stretch=FLUX_STRETCH):
    """A classifier of flux in g r i, of 0.168 arcsec and zero point 27, which tells half of `FLUX` from the others."""
    write_classifier_run(path, bands)
    config = json.loads((path / "model" / "config.json").read_text())
    config["cutouts"]["stretch"] = {key: v if key == "kind" else (v * 2)[:bands] for key, v in stretch.items()}
    (path / "model" / "config.json").write_text(json.dumps(config))
    model = Classifier.load(path).model
    with torch.no_grad():  # logits on both sides of 0
        found = [{one["label"]: one["score"] for one in each}["lens"] for each in pipeline(path)(FLUX)]
        model.classifier.weight.mul_(0.5)
        model.classifier.bias[1] -= 0.5 * float(np.mean(np.log(found) - np.log1p(-np.array(found))))
    model.save_pretrained(path / "model")
    return str(path)


def write_pretrain_run(path: Path, method: str = "dino") -> Path:
    heads = {"head_hidden_size": 16, "head_bottleneck_size": 8, "num_prototypes": 16}
    heads = {"projection_size": 16, "prediction_hidden_size": 8} if method == "simsiam" else heads
    torch.manual_seed(1)
    model = METHODS[method](METHODS[method].config_class(backbone_config=tiny_vit(3), cutouts=cutouts(3), **heads))
    return _write_run(path, model, 3, task="pretrain", method=method)


def tiny_vit(bands: int) -> ViTConfig:
    sizes = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 64}
    return ViTConfig(image_size=32, patch_size=8, num_channels=bands, **sizes)


def cutouts(bands: int) -> dict:
    stretch = {key: value if key == "kind" else value[:1] * bands for key, value in STRETCH.items()}
    return {"bands": BANDS[:bands], "pixel_scale": 0.168, "zero_point": 27.0, "stretch": stretch}


def _write_run(path: Path, model: torch.nn.Module, bands: int, **facts) -> Path:
    mean, std = [0.4 + 0.01 * i for i in range(bands)], [0.1 - 0.005 * i for i in range(bands)]
    model.save_pretrained(path / "model")
    if facts["task"] == "finetune":
        save_processor(path / "model", cutouts(bands), 32, mean, std)
    data = {"source": "folder", "name": "toy", "simulated": False, "size": 40, "fingerprint": "0123456789abcdef"}
    facts |= {
        "backbone": "vitt8",
        "arguments": {},
        "data": {**data, **cutouts(bands)},
        "image_mean": mean,
        "image_std": std,
        "crop_size": 32,
        "num_train_images": 96,
        "num_parameters": 12345,
        "seed": 0,
        "seconds": 61.0,
        "command": "scripts/run_finetune.py --labels 20",
        "versions": {"torch": "2.13.0"},
        "git_revision": None,
    }
    (path / "run.json").write_text(json.dumps(facts))
    lines = [{"step": step, "epoch": 1, "loss": 1 / step, "learning_rate": 1e-3} for step in (1, 2, 3)]
    lines.append({"step": 3, "epoch": 1, "knn_auc": 0.875, "knn_accuracy": 0.75} if facts["method"] else
                 {"step": 3, "epoch": 1, "validation_auc": 0.875, "validation_accuracy": 0.75})  # fmt: skip
    (path / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    return path
