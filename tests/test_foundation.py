"""ViT-like models of others are fine-tuned: resampled to the crop, with their own normalisation and class."""

import json
from dataclasses import replace

import numpy as np
import pytest
import torch
import transformers
from PIL import Image
from torch.nn import functional as F
from transformers import AutoModelForImageClassification

from lens_ssl_hf import InputError, evaluate_model, export, finetune, pipeline, predict, pretrain
from lens_ssl_hf.hub.card import CardFacts, render_card
from lens_ssl_hf.models.backbones import load_encoder
from lens_ssl_hf.models.resampling import resample, resize_patches, resize_positions

KINDS = {"ViT": "vit", "Dinov2": "dinov2", "Dinov2WithRegisters": "dinov2_with_registers", "IJepa": "ijepa"}
MEAN, STD = [0.485, 0.456, 0.406], [0.229, 0.224, 0.225]
SETTINGS = {"steps": 2, "eval_every": 1, "batch_size": 32, "labels": 32, "precision": "fp32"}


def write_encoder(folder, kind, **changes):
    """A tiny random encoder for 56-pixel images in 14-pixel patches, as `save_pretrained` writes it."""
    sizes = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "image_size": 56, "patch_size": 14}
    config = getattr(transformers, f"{kind}Config")(**sizes)
    torch.manual_seed(4)
    getattr(transformers, f"{kind}Model")(config).save_pretrained(folder)
    processor = {"image_processor_type": "BitImageProcessor", "do_resize": True, "image_mean": MEAN, "image_std": STD}
    (folder / "preprocessor_config.json").write_text(json.dumps(processor | changes))
    return folder


@pytest.fixture(scope="module", params=KINDS)
def tuned(request, tiny_cutouts, tmp_path_factory):
    folder = tmp_path_factory.mktemp(request.param)
    init = write_encoder(folder / "foundation", request.param)
    return request.param, init, finetune(tiny_cutouts, folder / "run", init=init, **SETTINGS)


def test_plain_transformers_gives_the_same_scores(tuned, tiny_cutouts, tmp_path):
    kind, _, run = tuned
    facts = json.loads((run / "run.json").read_text())
    assert (facts["image_mean"], facts["image_std"]) == (MEAN, STD)
    assert facts["model_class"] == f"{kind}ForImageClassification" and facts["init_method"] == "pretrained"
    folder = export(run, tmp_path / "lens-foundation-classifier")
    card = (folder / "README.md").read_text()
    assert f"stock `{kind}ForImageClassification`" in card and "weights of `foundation`" in card
    assert "whose licence holds for these, too" in card and "license:" not in card
    test = tiny_cutouts[0]["test"].select(torch.arange(4))
    test.pixels = test.pixels.round()
    pictures = [Image.fromarray(one.permute(1, 2, 0).byte().numpy()) for one in test.pixels]
    plain = transformers.pipeline("image-classification", model=str(folder), use_fast=False)
    assert type(plain.model).__name__ == f"{kind}ForImageClassification"
    found = [next(one["score"] for one in result if one["label"] == "lens") for result in plain(pictures)]
    scores = predict(run, test).score
    assert np.ptp(scores) > 0 and scores == pytest.approx(found, abs=1e-6)
    ours = pipeline(folder)(test.pixels, units="display")
    assert scores == pytest.approx([next(r["score"] for r in one if r["label"] == "lens") for one in ours], abs=1e-6)


def test_a_linear_probe_trains_the_classifier_on_the_resampled_encoder(tuned, tiny_cutouts, tmp_path):
    _, init, _ = tuned
    run = finetune(tiny_cutouts, tmp_path / "run", init=init, linear_probe=True, **SETTINGS)
    model, info = AutoModelForImageClassification.from_pretrained(run / "model", output_loading_info=True)
    assert not info["missing_keys"] and not info["unexpected_keys"] and model.config.patch_size == 8
    expected = resample(load_encoder(init), 32, 8).state_dict()
    probed = model.base_model.state_dict()
    assert set(expected) - set(probed) <= {"embeddings.mask_token"}
    assert all(torch.equal(probed[name], expected[name]) for name in probed)
    evaluated = evaluate_model(run, tiny_cutouts, num_bootstrap=10)
    assert np.isfinite(evaluated["metrics"]["roc_auc"]["value"])
    # Its classifier is fine-tuned in turn, as it is.
    again = finetune(tiny_cutouts, tmp_path / "again", init=run, linear_probe=True, **{**SETTINGS, "steps": 1})
    assert torch.equal(
        AutoModelForImageClassification.from_pretrained(again / "model").base_model.state_dict()[PATCHES],
        expected[PATCHES],
    )


PATCHES, POSITIONS = "embeddings.patch_embeddings.projection.weight", "embeddings.position_embeddings"


def test_resampling_keeps_what_is_no_patch(tuned):
    kind, init, _ = tuned
    old = load_encoder(init)
    new = resample(old, 32, 4).eval()
    before, after = old.state_dict(), new.state_dict()
    assert {name for name in before if not torch.equal(before[name], after[name])} == {PATCHES, POSITIONS}
    cls = 0 if kind == "IJepa" else 1
    assert after[POSITIONS].shape == (1, cls + 64, 32)
    assert torch.equal(before[POSITIONS][:, :cls], after[POSITIONS][:, :cls])
    registers = getattr(old.config, "num_register_tokens", 0)
    assert new(torch.randn(1, 3, 32, 32)).last_hidden_state.shape == (1, cls + registers + 64, 32)


def test_an_interrupted_run_goes_on_to_the_same_weights(tiny_cutouts, tmp_path):
    init, settings = write_encoder(tmp_path / "foundation", "Dinov2WithRegisters"), {**SETTINGS, "steps": 4}
    config = json.loads((init / "config.json").read_text())
    (init / "config.json").write_text(json.dumps(config | {"hidden_dropout_prob": 0.2, "drop_path_rate": 0.2}))
    whole = finetune(tiny_cutouts, tmp_path / "whole", init=init, **settings)
    run = finetune(tiny_cutouts, tmp_path / "run", init=init, **settings)
    facts = json.loads((run / "run.json").read_text())
    facts.pop("seconds")
    (run / "run.json").write_text(json.dumps(facts))
    *earlier, last = sorted((run / "checkpoints").glob("step-*.safetensors"))
    assert earlier
    last.unlink()
    finetune(tiny_cutouts, run, init=init, resume="auto", **settings)
    weights = [(one / "model" / "model.safetensors").read_bytes() for one in (whole, run)]
    assert weights[0] == weights[1]


def test_resized_patches_keep_products_with_larger_ones():
    generator = torch.Generator().manual_seed(0)
    weight = torch.randn(5, 3, 8, 8, generator=generator, dtype=torch.float64)
    patch = torch.randn(3, 8, 8, generator=generator, dtype=torch.float64)
    assert resize_patches(weight, 8) is weight
    larger = F.interpolate(patch[None], (14, 14), mode="bilinear")[0]
    products = (weight * patch).sum(dim=(1, 2, 3)).numpy()
    assert (resize_patches(weight, 14) * larger).sum(dim=(1, 2, 3)).numpy() == pytest.approx(products, abs=1e-12)


@pytest.mark.parametrize("side,size", [(14, 8), (16, 8), (8, 14)])
def test_resized_patches_are_those_of_the_least_squares_problem(side, size):
    """Interpolation along one axis, written out; both axes by its Kronecker square."""
    centres = ((np.arange(size) + 0.5) * side / size - 0.5).clip(0, side - 1)
    low = np.minimum(centres.astype(int), side - 2)
    matrix = np.zeros((size, side))
    matrix[np.arange(size), low] = 1 - (centres - low)
    matrix[np.arange(size), low + 1] = centres - low
    both = np.kron(matrix, matrix)
    weight = np.random.default_rng(0).standard_normal((2, 3, side, side))
    expected = np.linalg.lstsq(both.T, weight.reshape(6, -1).T, rcond=None)[0].T.reshape(2, 3, size, size)
    found = resize_patches(torch.from_numpy(weight).float(), size)
    assert found.dtype == torch.float32 and np.allclose(found.numpy(), expected, atol=1e-5)


def test_positions_are_interpolated_as_by_the_vit_itself(tmp_path):
    encoder = load_encoder(write_encoder(tmp_path / "vit", "ViT"))
    tokens, positions = torch.zeros(1, 37, 32), encoder.embeddings.position_embeddings
    assert torch.equal(resize_positions(positions, 6), encoder.embeddings.interpolate_pos_encoding(tokens, 84, 84))


def test_what_cannot_be_fine_tuned_is_named(tiny_cutouts, tmp_path):
    splits, info = tiny_cutouts
    dino = write_encoder(tmp_path / "dino", "Dinov2")
    with pytest.raises(InputError, match="is a dinov2 model: pretrain a ViT, or fine-tune it"):
        pretrain(tiny_cutouts, tmp_path / "run", init=dino, batch_size=32)
    with pytest.raises(InputError, match="takes 3 bands but the dataset has 2"):
        two = {name: replace(split, pixels=split.pixels[:, :2]) for name, split in splits.items()}
        finetune((two, {**info, "bands": ["g", "r"]}), tmp_path / "run", init=dino, **SETTINGS)
    with pytest.raises(InputError, match="crop_size 32 is not a multiple of the model's patch size 7"):
        finetune(tiny_cutouts, tmp_path / "run", init=dino, patch_size=7, **SETTINGS)
    v3 = write_encoder(tmp_path / "v3", "DINOv3ViT")
    with pytest.raises(InputError, match="is a dinov3_vit model: give a ViT, DINOv2"):
        finetune(tiny_cutouts, tmp_path / "run", init=v3, **SETTINGS)
    for changes in ({"rescale_factor": 1}, {"do_normalize": False}):
        write_encoder(tmp_path / "dino", "Dinov2", **changes)
        with pytest.raises(InputError, match="does not divide by 255 and normalise"):
            finetune(tiny_cutouts, tmp_path / "run", init=dino, **SETTINGS)


def test_a_licence_of_ours_is_said_of_our_weights_alone(tuned):
    run = tuned[2]
    assert render_card(CardFacts.from_run(run, "a")).data.license is None
    assert render_card(CardFacts.from_run(run, "a", license="cc-by-nc-4.0")).data.license == "cc-by-nc-4.0"


def test_a_model_of_ours_keeps_its_patches(tuned, tiny_cutouts, tmp_path):
    """Theirs are recorded; a run of an earlier version, which recorded what was given, goes on."""
    _, init, ours = tuned
    with pytest.raises(InputError, match="run has patches of 8 pixels, not 4: give --patch_size 8"):
        finetune(tiny_cutouts, tmp_path / "run", init=ours, patch_size=4, **SETTINGS)
    small = finetune(tiny_cutouts, tmp_path / "small", init=init, patch_size=4, **SETTINGS)
    for given in ({}, {"patch_size": 4}):
        run, settings = tmp_path / f"run{len(given)}", {**SETTINGS, "init": small, "resume": "auto"}
        finetune(tiny_cutouts, run, **settings, **given)
        assert json.loads((run / "model" / "config.json").read_text())["patch_size"] == 4
        facts = json.loads((run / "run.json").read_text())
        assert facts["arguments"]["patch_size"] == 4
        finetune(tiny_cutouts, run, **settings)
        facts["arguments"]["patch_size"] = 8
        del facts["seconds"]
        (run / "run.json").write_text(json.dumps(facts))
        finetune(tiny_cutouts, run, **settings, **given)
        assert "seconds" in json.loads((run / "run.json").read_text())
    with pytest.raises(InputError, match="small has patches of 4 pixels, not 16: give --patch_size 4"):
        finetune(tiny_cutouts, run, patch_size=16, **settings)
    # somebody else's has what is given
    with pytest.raises(InputError, match=r"begun otherwise \(.*patch_size is 8, was 4"):
        finetune(tiny_cutouts, small, init=init, resume="auto", **SETTINGS)
