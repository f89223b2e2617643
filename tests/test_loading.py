"""Damaged, foreign and hostile models end in one sentence, wherever a model is loaded."""

import json
import shutil
import subprocess
import sys

import numpy as np
import pytest
import torch
from conftest import make_split
from safetensors.torch import load_file, save_file
from tiny_runs import write_classifier_run, write_pretrain_run
from transformers import ViTConfig, ViTForImageClassification

from lens_ssl_hf import InputError, evaluate_model, export, finetune, pipeline, predict, read_cutout
from lens_ssl_hf.models import LensCnnConfig, LensCnnForImageClassification
from lens_ssl_hf.models.backbones import load_encoder

POINTER = "version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 82\n"


@pytest.fixture(scope="module")
def exported(tmp_path_factory):
    folder = tmp_path_factory.mktemp("export")
    return export(write_classifier_run(folder / "run"), folder / "lens-toy-classifier")


@pytest.fixture
def model(exported, tmp_path):
    """A copy to be damaged."""
    return shutil.copytree(exported, tmp_path / "lens-toy-classifier")


def edit(name, **changes):
    """A function that changes keys of a JSON file of a model; `None` removes one."""

    def change(folder):
        values = {**json.loads((folder / name).read_text()), **changes}
        (folder / name).write_text(json.dumps({key: value for key, value in values.items() if value is not None}))

    return change


def config(**changes):
    return edit("config.json", **changes)


def processor(**changes):
    return edit("preprocessor_config.json", **changes)


def weights(**changes):
    """A function that replaces weights (a function of the old one), or removes them (`None`)."""

    def change(folder):
        path = folder / "model.safetensors"
        tensors = load_file(path)
        for name, new in changes.items():
            old = tensors.pop(name, None)
            if new is not None:
                tensors[name] = new(old)
        save_file(tensors, path, metadata={"format": "pt"})

    return change


def write(name, content):
    return lambda folder: (folder / name).write_text(content)


def shard(folder):
    (folder / "model.safetensors").rename(folder / "model-00001-of-00002.safetensors")
    names = {"classifier.weight": "model-00002-of-00002.safetensors", "rest": "model-00001-of-00002.safetensors"}
    (folder / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": names}))


def pickled(folder):
    torch.save(load_file(folder / "model.safetensors"), folder / "pytorch_model.bin")
    (folder / "model.safetensors").unlink()


def cut(name):
    return lambda folder: (folder / name).write_bytes((folder / name).read_bytes()[:-100])


KEY = "vit.encoder.layer.0.layernorm_before.weight"
QUERY = "vit.encoder.layer.1.attention.attention.query.weight"
CUTOUTS = {"bands": ["g", "r", "i"], "stretch": {"kind": "none"}}
ASINH = {"kind": "asinh", "black": [0, 0, 0], "white": [9, 9, 9], "softening": [1, 1, 1]}
DAMAGES = {
    # in the configuration: every way to load refuses
    "config cut off": (cut("config.json"), "config.json is not JSON", "pepr"),
    "config empty": (write("config.json", ""), "config.json is not JSON", "pepr"),
    "config a list": (write("config.json", "[1]"), "config.json holds no JSON object", "pepr"),
    "config nested too deeply": (write("config.json", "[" * 100_000), "config.json is not JSON", "pepr"),
    "config a pointer": (write("config.json", POINTER), "config.json is a Git LFS pointer", "pepr"),
    "no config": (lambda folder: (folder / "config.json").unlink(), "it has no config.json", "pepr"),
    "no model_type": (config(model_type=None), "config.json has no model_type", "pepr"),
    "unknown model_type": (config(model_type="evil"), "is a evil model: give a ViT", "pepr"),
    "a resnet": (config(model_type="resnet"), "is a resnet model: give a ViT", "pepr"),
    "text for a number": (config(hidden_size="many"), "config.json describes no vit model|hidden_size", "pepr"),
    "null for a number": (config(num_channels=0), "num_channels 0, not a whole number", "pepr"),
    "layers without end": (config(num_hidden_layers=10**9), "num_hidden_layers 1000000000", "pepr"),
    "a list of sizes": (config(image_size=[32, 32]), r"image_size \[32, 32\]|describes no vit", "pepr"),
    "quantised": (config(quantization_config={"quant_method": "fp8"}), "its weights are quantised", "pepr"),
    # in what the model says of its cutouts
    "cutouts a text": (config(cutouts="g r i"), "cutouts in config.json is no JSON object", "pepr"),
    "no stretch": (config(cutouts={"bands": ["g", "r", "i"]}), "does not say the model's bands and stretch", "per"),
    "half a stretch": (config(cutouts=CUTOUTS | {"stretch": ASINH | {"black": [0]}}), "bands and stretch", "per"),
    "a NaN in the stretch": (
        config(cutouts=CUTOUTS | {"stretch": ASINH | {"white": [float("nan")] * 3}}), "bands and stretch", "per",
    ),
    "bands missing": (config(cutouts=CUTOUTS | {"bands": ["g", "r"]}), "bands and stretch", "per"),
    "a NaN mean to go on with": (
        config(cutouts=CUTOUTS | {"image_mean": [float("nan")] * 3, "image_std": [1] * 3}), "image_mean in", "f",
    ),
    # in the classifier's part
    "other labels": (config(id2label={"0": "cat", "1": "dog"}), "has the labels cat, dog", "pe"),
    "labels turned": (config(id2label={"0": "lens", "1": "nonlens"}), "has the labels lens, nonlens", "pe"),
    "three labels": (config(id2label={"0": "nonlens", "1": "lens", "2": "?"}), "has the labels", "pe"),
    "independent labels": (config(problem_type="multi_label_classification"), "multi_label_classification", "pe"),
    "another architecture": (config(architectures=["ViTModel"]), "is no ViT classifier", "pe"),
    # in the weights
    "a layer more": (config(num_hidden_layers=3), "vit.*layer.*2.* is missing", "pef"),
    "a layer less": (config(num_hidden_layers=1), "has no place in the model", "pef"),
    "a wider model": (config(hidden_size=64), "has another shape than config.json says", "pef"),
    "a giant": (config(hidden_size=16_384, intermediate_size=131_072), "describes .* weights where", "pef"),
    "no classifier": (weights(**{"classifier.weight": None}), "classifier.weight is missing", "pef"),
    "a weight missing": (weights(**{KEY: None}), "layernorm_before.weight is missing", "pef"),
    "a weight too many": (weights(extra=lambda _: torch.ones(2)), "the weight extra has no place", "pef"),
    "a weight of another shape": (weights(**{KEY: lambda w: w[:5].clone()}), "has another shape", "pef"),
    "a NaN weight": (weights(**{QUERY: lambda w: w * torch.nan}), "query.weight is not finite|is not finite", "pef"),
    "an infinite weight": (weights(**{KEY: lambda w: w / 0}), "is not finite", "pef"),
    "whole numbers": (weights(**{KEY: lambda w: w.to(torch.int8)}), "is stored as I8", "pef"),
    "weights cut off": (cut("model.safetensors"), "model.safetensors is damaged", "pef"),
    "weights empty": (write("model.safetensors", ""), "model.safetensors is damaged", "pef"),
    "weights a pointer": (write("model.safetensors", POINTER), "model.safetensors is a Git LFS pointer", "pef"),
    "no weights": (lambda folder: (folder / "model.safetensors").unlink(), "it has no model.safetensors", "pef"),
    "a pickle": (pickled, "it has no model.safetensors; other files of weights are not read", "pef"),
    "a shard missing": (shard, "model-00002-of-00002.safetensors is missing, which", "pef"),
    # in the image processor
    "no processor": (lambda folder: (folder / "preprocessor_config.json").unlink(), "it has no preprocessor_", "pe"),
    "processor cut off": (cut("preprocessor_config.json"), "preprocessor_config.json is not JSON", "pe"),
    "NaN mean": (processor(image_mean=[float("nan")] * 3), "image_mean in the image processor", "pe"),
    "zero std": (processor(image_std=[0.1, 0.0, 0.1]), "image_std in the image processor .* not positive", "pe"),
    "negative std": (processor(image_std=[-0.1] * 3), "image_std .* not positive", "pe"),
    "NaN std": (processor(image_std=[float("nan")] * 3), "image_std .* not 3 finite numbers", "pe"),
    "too few means": (processor(image_mean=[0.1]), "image_mean .* not 3 finite numbers", "pe"),
    "no std": (processor(image_std=None), "image_std .* is None", "pe"),
    "resizing": (processor(do_resize=True), "does not crop, divide by 255", "pe"),
    "not normalising": (processor(do_normalize=False), "does not crop, divide by 255", "pe"),
    "another factor": (processor(rescale_factor=1.0), "does not crop, divide by 255", "pe"),
    "another crop": (processor(crop_size={"height": 16, "width": 16}), "crops to 16 x 16 pixels", "pe"),
}  # fmt: skip


@pytest.mark.parametrize("name", DAMAGES)
def test_a_damaged_model_is_refused_wherever_it_is_loaded(name, model, tiny_cutouts, tmp_path):
    damage, sentence, refuses = DAMAGES[name]
    damage(model)
    np.save(tmp_path / "a.npy", tiny_cutouts[0]["test"].pixels[0].numpy())
    calls = {
        "p": lambda: pipeline(model),
        "e": lambda: predict(model, tiny_cutouts),
        "r": lambda: read_cutout(tmp_path / "a.npy", like=model),
        "f": lambda: finetune(tiny_cutouts, tmp_path / "run", init=model, steps=1, precision="fp32"),
    }
    for letter in dict.fromkeys(refuses):
        with pytest.raises(InputError, match=sentence) as error:
            calls[letter]()
        assert str(model) in str(error.value) and "\n" not in str(error.value)
    assert not (tmp_path / "run" / "run.json").exists()


def test_what_is_no_model_is_named(tmp_path):
    run = write_classifier_run(tmp_path / "run")
    shutil.rmtree(run / "model")
    (tmp_path / "notes.txt").write_text("no model")
    for source, sentence in (
        (run, "the finetune run .* has not finished: go on with it with --resume auto"),
        (write_pretrain_run(tmp_path / "ssl"), "is a pretraining run, without classifier"),
        (tmp_path / "notes.txt", "it is a file"),
        (tmp_path, "it has no config.json"),
        (tmp_path / "absent", "there is no such folder"),
    ):
        with pytest.raises(InputError, match=sentence):
            pipeline(source)


def test_what_pretraining_alone_needs_may_be_left_over(tmp_path):
    """The pooler of a ViTModel and the mask token of iBOT have no place in a classifier or an encoder."""
    run = write_pretrain_run(tmp_path / "run", "ibot")
    folder = export(run, tmp_path / "lens-ibot")  # with the pooler that makes pooler_output the feature
    assert torch.equal(load_encoder(folder).embeddings.cls_token, load_encoder(run).embeddings.cls_token)


HOSTILE = """
import pathlib
pathlib.Path({mark!r}).touch()
from transformers import ViTConfig, ViTForImageClassification
class Evil(ViTConfig): model_type = {kind!r}
class EvilModel(ViTForImageClassification): config_class = Evil
"""


@pytest.mark.parametrize("kind", ["evil", "vit"])
def test_no_code_of_a_model_is_run_whoever_says_yes(kind, model, tiny_cutouts, tmp_path):
    (model / "evil.py").write_text(HOSTILE.format(mark=str(tmp_path / "ran"), kind=kind))
    auto = {
        "AutoConfig": "evil.Evil",
        "AutoModelForImageClassification": "evil.EvilModel",
        "AutoModel": "evil.EvilModel",
    }
    config(model_type=kind, auto_map=auto, attn_implementation="somebody/kernel")(model)
    config(_attn_implementation="somebody/kernel", _experts_implementation="somebody/kernel")(model)
    processor(auto_map={"AutoImageProcessor": "evil.Evil"})(model)
    code = f"""
import lens_ssl_hf
from lens_ssl_hf.inference.classifier import Classifier
from lens_ssl_hf.models.backbones import load_encoder
for load in (lens_ssl_hf.pipeline, load_encoder, Classifier.load):
    try:
        load({str(model)!r})
        print("loaded")
    except lens_ssl_hf.InputError as error:
        print(error)
"""
    done = subprocess.run([sys.executable, "-c", code], input="y\n" * 20, capture_output=True, text=True)
    assert not (tmp_path / "ran").exists() and "[y/N]" not in done.stdout + done.stderr
    lines = done.stdout.splitlines()
    assert len(lines) == 3 and all("loaded" in line if kind == "vit" else "give a ViT" in line for line in lines)


def test_a_cnn_of_earlier_names_loads_and_its_variances_are_checked(tmp_path, tiny_cutouts):
    run = write_classifier_run(tmp_path / "run")
    labels = {"id2label": {0: "nonlens", 1: "lens"}, "label2id": {"nonlens": 0, "lens": 1}}
    LensCnnForImageClassification(LensCnnConfig(**labels)).save_pretrained(run / "model")
    scores = predict(run, make_split(4, 0)).score
    assert np.isfinite(scores).all()
    config = json.loads((run / "model" / "config.json").read_text())
    assert config["model_type"] == "lens_cnn"
    earlier = {"AutoConfig": "cnn.CNNConfig", "AutoModelForImageClassification": "cnn.CNN"}
    text = json.dumps({**config, "architectures": ["CNN"], "auto_map": earlier})
    (run / "model" / "config.json").write_text(text)
    assert np.array_equal(predict(run, make_split(4, 0)).score, scores)
    weights(**{"features.1.running_var": lambda w: -w})(run / "model")
    with pytest.raises(InputError, match="running_var is not finite"):
        predict(run, tiny_cutouts)
    weights(**{"features.1.running_var": None})(run / "model")
    with pytest.raises(InputError, match="running_var is missing"):
        evaluate_model(run, tiny_cutouts)


def test_a_model_in_memory_is_checked(exported):
    with pytest.raises(InputError, match="give image_processor, too"):
        pipeline(ViTForImageClassification(ViTConfig(num_hidden_layers=1)))
    loaded = pipeline(exported)
    with torch.no_grad():
        loaded.model.classifier.bias.fill_(torch.nan)
    with pytest.raises(InputError, match=r"classifier\.bias is not finite"):
        pipeline(loaded.model, image_processor=loaded.image_processor)
    with pytest.raises(InputError, match=r"classifier\.bias is not finite"):
        predict((loaded.model, loaded.image_processor), make_split(4, 0))
