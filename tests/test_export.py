"""Exports are stock: they load without missing or unexpected keys, also where this package does not exist."""

import json
import os
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import at_most, make_split
from tiny_runs import BANDS, write_classifier_run, write_pretrain_run
from transformers import AutoImageProcessor, AutoModel, AutoModelForImageClassification, ViTModel

import lens_ssl_hf
from lens_ssl_hf import (
    InputError,
    LensImageProcessor,
    evaluate_model,
    export,
    finetune,
    predict,
    push_space,
    push_to_hub,
)
from lens_ssl_hf.hub.export import backbone_of
from lens_ssl_hf.models.backbones import load_encoder


@pytest.mark.parametrize("method", ["dino", "ibot", "simsiam"])
def test_a_backbone_is_a_stock_vit_whose_pooler_output_is_cls(method, tmp_path):
    run = write_pretrain_run(tmp_path / "run", method)
    folder = export(run, tmp_path / "lens-backbone")
    model, loading = AutoModel.from_pretrained(folder, output_loading_info=True)
    assert type(model) is ViTModel and model.dtype == torch.float32
    assert not loading["missing_keys"] and not loading["unexpected_keys"] and not loading["mismatched_keys"]
    assert model.embeddings.mask_token is None
    assert model.config.cutouts == json.loads((folder / "config.json").read_text())["cutouts"]
    images = torch.randn(3, 3, 32, 32)
    with torch.no_grad():
        found, expected = model.eval()(images), load_encoder(run).eval()(images)
    assert torch.equal(found.last_hidden_state, expected.last_hidden_state)
    assert torch.equal(found.pooler_output, found.last_hidden_state[:, 0])
    # and pretraining can go on to fine-tuning from it
    assert torch.equal(load_encoder(folder).eval()(images).last_hidden_state, expected.last_hidden_state)


def test_a_classifier_is_stock_and_scores_as_the_run_does(tmp_path):
    run = write_classifier_run(tmp_path / "run")
    folder = export(run, tmp_path / "lens-classifier")
    model, loading = AutoModelForImageClassification.from_pretrained(folder, output_loading_info=True)
    assert not loading["missing_keys"] and not loading["unexpected_keys"]
    assert model.config.id2label == {0: "nonlens", 1: "lens"} and model.config.cutouts["bands"] == BANDS[:3]
    split = make_split(6, 0)
    assert np.array_equal(predict(folder, split).score, predict(run, split).score)
    processor = json.loads((folder / "preprocessor_config.json").read_text())
    assert processor["image_processor_type"].startswith("ViTImageProcessor") and not processor["do_resize"]
    assert processor["crop_size"] == {"height": 32, "width": 32} and processor["rescale_factor"] == 1 / 255
    assert {"README.md", "curves.png", "model.safetensors"} <= {file.name for file in folder.iterdir()}
    assert "trust_remote_code" not in (folder / "README.md").read_text()


def test_an_export_writes_nothing_into_the_run(tmp_path):
    run = write_pretrain_run(tmp_path / "run")
    before = {path: path.stat().st_mtime_ns for path in run.rglob("*")}
    folder = export(run, tmp_path / "lens-backbone")
    assert {path: path.stat().st_mtime_ns for path in run.rglob("*")} == before
    assert (folder / "curves.png").is_file() and "](curves.png)" in (folder / "README.md").read_text()


@pytest.mark.parametrize("room", [40_000, 400_000])  # too little for the weights; enough for them, not for a picture
def test_a_full_disk_leaves_the_earlier_export(room, tmp_path):
    run = write_classifier_run(tmp_path / "run")
    (run / "evaluation").mkdir()
    (run / "evaluation" / "roc.png").write_bytes(bytes(500_000))
    folder = export(run, tmp_path / "lens-classifier")
    assert 40_000 < (folder / "model.safetensors").stat().st_size < 400_000
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    with at_most(room), pytest.raises(InputError, match=r"cannot write .*classifier \(.*too large.*\): make room"):
        export(run, folder)
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == before
    assert {path.name for path in tmp_path.iterdir()} == {"run", "lens-classifier"}  # nothing half-written


def test_exports_work_where_the_package_does_not_exist(tmp_path):
    backbone = export(write_pretrain_run(tmp_path / "ssl"), tmp_path / "lens-dino-tiny")
    run = write_classifier_run(tmp_path / "run")
    classifier = export(run, tmp_path / "lens-dino-tiny-classifier")
    split = make_split(2, 0)
    np.save(tmp_path / "cutout.npy", split.pixels[0].numpy())
    code = f"""
import sys
sys.modules["lens_ssl_hf"] = None  # importing it fails
import numpy as np
from PIL import Image
from transformers import AutoImageProcessor, AutoModel, pipeline
pixels = np.load("cutout.npy")
picture = np.moveaxis(pixels.round().astype("uint8"), 0, -1)
Image.fromarray(picture).save("cutout.png")
model, loading = AutoModel.from_pretrained({str(backbone)!r}, output_loading_info=True)
assert not loading["missing_keys"] and not loading["unexpected_keys"]
features = model(**AutoImageProcessor.from_pretrained({str(backbone)!r})(picture, return_tensors="pt")).pooler_output
pooled = pipeline("image-feature-extraction", model={str(backbone)!r}, pool=True)("cutout.png")
assert np.allclose(pooled, features.detach(), atol=1e-5)
classify = pipeline("image-classification", model={str(classifier)!r})
for result in (classify(pixels), classify("cutout.png")):
    print(next(r["score"] for r in result if r["label"] == "lens"))
"""
    done = subprocess.run(
        [sys.executable, "-I", "-c", code], cwd=tmp_path, capture_output=True, text=True, env={**os.environ}
    )
    assert done.returncode == 0, done.stderr
    scores = [float(line) for line in done.stdout.split()]
    assert scores[0] == pytest.approx(predict(run, split).score[0], abs=1e-5)
    assert scores[1] == pytest.approx(scores[0], abs=0.02)  # 8 bits


def test_four_bands_get_the_processor_that_reads_them(tmp_path):
    run = write_classifier_run(tmp_path / "run", bands=4)
    folder = export(run, tmp_path / "lens-four")
    assert export(run, folder) == folder  # with the processor's file in it, it is still an export
    card = (folder / "README.md").read_text()
    assert 'model="lens-four", trust_remote_code=True)' in card and 'pretrained("lens-four", trust_remote' in card
    processor = AutoImageProcessor.from_pretrained(folder, trust_remote_code=False)
    assert isinstance(processor, LensImageProcessor) and not processor.do_stretch
    split = make_split(3, 0, bands=4)
    model = AutoModelForImageClassification.from_pretrained(folder)
    with torch.no_grad():
        logits = model(**processor(list(split.pixels.numpy()))).logits
    np.testing.assert_allclose(predict(folder, split).score, logits.softmax(-1)[:, 1], atol=1e-5)


FIVE_BANDS = """
import sys
{before}
import numpy as np, transformers
folder, pixels = sys.argv[1], np.load(sys.argv[2])
classify = transformers.pipeline("image-classification", model=folder, trust_remote_code={trust})
print(type(classify.image_processor).__module__, next(r["score"] for r in classify(pixels) if r["label"] == "lens"))
"""
WITHOUT_PACKAGE = 'sys.modules["lens_ssl_hf"] = None'


@pytest.mark.slow
@pytest.mark.parametrize(
    ("before", "trust", "expected"),
    [
        ("import lens_ssl_hf", False, "lens_ssl_hf.data.image_processor"),
        (WITHOUT_PACKAGE, True, "transformers_modules."),
        (WITHOUT_PACKAGE, False, None),
        (WITHOUT_PACKAGE, None, None),  # transformers asks, and gets no answer
    ],
)
def test_five_bands_are_read_by_the_package_or_the_models_own_file_or_not_at_all(before, trust, expected, tmp_path):
    run = write_classifier_run(tmp_path / "run", bands=5)
    folder = export(run, tmp_path / "lens-five")
    split = make_split(1, 0, bands=5)
    np.save(tmp_path / "cutout.npy", split.pixels[0].numpy())
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path), "HF_MODULES_CACHE": str(tmp_path / "cache")}
    code = FIVE_BANDS.format(before=before, trust=trust)
    done = subprocess.run(
        [sys.executable, "-c", code, folder, tmp_path / "cutout.npy"],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        env=environment,
    )
    if expected is None:
        assert done.returncode == 1 and "trust_remote_code=True" in done.stderr.splitlines()[-1]
        return
    assert done.returncode == 0, done.stderr
    module, score = done.stdout.split()
    assert module.startswith(expected)
    assert float(score) == pytest.approx(predict(folder, split).score[0], abs=1e-5)


def test_an_export_is_replaced_but_nothing_else_is(tmp_path):
    first, second = write_classifier_run(tmp_path / "first"), write_pretrain_run(tmp_path / "second")
    folder = tmp_path / "nested" / "lens-model"
    export(first, folder)
    export(second, folder)
    assert json.loads((folder / "config.json").read_text())["architectures"] == ["ViTModel"]
    assert [file.name for file in folder.parent.iterdir()] == ["lens-model"]  # nothing half-written beside it
    (folder / "notes.txt").write_text("mine")
    with pytest.raises(InputError, match="holds something else than an earlier export"):
        export(first, folder)
    assert (folder / "notes.txt").read_text() == "mine"
    with pytest.raises(InputError, match="holds something else"):
        export(first, first)


def test_refusals(tmp_path):
    run = write_pretrain_run(tmp_path / "run")
    with pytest.raises(InputError, match=r"no run directory \(no readable run\.json\)"):
        export(tmp_path, tmp_path / "out")
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(InputError, match="cannot write"):
        export(run, tmp_path / "file" / "out")
    (run / "model" / "config.json").unlink()
    with pytest.raises(InputError, match="has no final model: go on with it with --resume auto"):
        export(run, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_bf16_weights_are_exported_as_float32(tmp_path):
    run = write_pretrain_run(tmp_path / "run")
    AutoModel.from_pretrained(run / "model").bfloat16().save_pretrained(run / "model")
    assert {parameter.dtype for parameter in backbone_of(run).parameters()} == {torch.float32}
    config = json.loads((export(run, tmp_path / "out") / "config.json").read_text())
    assert config["dtype"] == "float32"


def test_a_cnn_is_published_with_its_code(tiny_cutouts, tmp_path):
    run = finetune(tiny_cutouts, tmp_path / "run", backbone="cnn", precision="fp32", steps=2, eval_every=1)
    evaluate_model(run, tiny_cutouts, num_bootstrap=10)
    folder = push_to_hub(run, "me/lens-cnn-classifier", dry_run=tmp_path / "lens-cnn-classifier")
    split = tiny_cutouts[0]["test"]
    scores = predict(run, split).score
    assert np.array_equal(predict(folder, split).score, scores)
    found = lens_ssl_hf.pipeline(folder)(split.pixels[0], units="display")
    assert next(r["score"] for r in found if r["label"] == "lens") == pytest.approx(scores[0], abs=1e-6)
    model = AutoModelForImageClassification.from_pretrained(folder, trust_remote_code=False)
    assert type(model).__module__ == "lens_ssl_hf.models.cnn"
    images, labels = torch.randn(6, 3, 32, 32), torch.tensor([0, 1, 0, 1, 1, 0])
    found = model.eval()(pixel_values=images, labels=labels)  # as transformers' Trainer calls it
    torch.testing.assert_close(found.loss, torch.nn.functional.cross_entropy(model(images).logits, labels))
    assert model(images).loss is None
    np.save(tmp_path / "cutout.npy", split.pixels[0].numpy())
    code = FIVE_BANDS.format(before="sys.modules['lens_ssl_hf'] = None", trust=True)
    done = subprocess.run(
        [sys.executable, "-I", "-c", code, folder, "cutout.npy"],
        capture_output=True,
        text=True,
        cwd=tmp_path,
    )
    assert done.returncode == 0 and float(done.stdout.split()[-1]) == pytest.approx(scores[0], abs=1e-5), done.stderr
    card = (Path(folder) / "README.md").read_text()
    assert "a small convolutional network" in card and "a Vision Transformer" not in card and "- cnn\n" in card
    assert 'model="me/lens-cnn-classifier", trust_remote_code=True)' in card
    with pytest.raises(InputError, match="is no stock ViT, whose attention a Space shows"):
        push_space(folder, tiny_cutouts, "me/lens-space", dry_run=tmp_path / "space")
    with pytest.raises(InputError, match="is a CNN, which has no tokens"):
        load_encoder(folder)
    assert export(run, folder) == Path(folder)  # with the code in it, it is still an export


def test_a_reader_finds_an_export_at_every_moment(tmp_path):
    run = write_classifier_run(tmp_path / "run")
    folder = export(run, tmp_path / "lens-classifier")
    missing, stop = [], threading.Event()

    def look():
        while not stop.is_set():
            if not (folder / "config.json").is_file():
                missing.append(1)

    with ThreadPoolExecutor(1) as pool:
        pool.submit(look)
        for _ in range(5):
            export(run, folder)
        stop.set()
    assert not missing


def test_an_export_to_a_link_goes_where_it_points(tmp_path):
    run = write_classifier_run(tmp_path / "run")
    (tmp_path / "disk").mkdir()
    (tmp_path / "lens-link").symlink_to(tmp_path / "disk" / "lens-classifier")
    for _ in range(2):  # a new one and an earlier one
        assert export(run, tmp_path / "lens-link") == tmp_path / "lens-link"
        assert (tmp_path / "lens-link").is_symlink() and (
            tmp_path / "disk" / "lens-classifier" / "README.md"
        ).is_file()
    assert [path.name for path in (tmp_path / "disk").iterdir()] == ["lens-classifier"]


def test_a_backbone_that_is_no_hub_id_is_refused(tmp_path):
    with pytest.raises(InputError, match="'/home/alice/ssl' is no id of the Hub"):
        export(write_classifier_run(tmp_path / "run"), tmp_path / "out", base_model="/home/alice/ssl")
