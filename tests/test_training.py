"""The training loops: resuming, selection, subsets, schedules, monitors, refusals."""

import dataclasses
import json
import math
import re
import shutil
import subprocess
import sys
import time
from importlib import metadata
from itertools import pairwise
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from conftest import save_toy
from safetensors.torch import load_file
from sklearn.metrics import roc_auc_score
from sklearn.neighbors import KNeighborsClassifier
from tiny_runs import tiny_vit, write_pretrain_run
from tqdm.auto import tqdm
from transformers import AutoModel, ViTForImageClassification, ViTModel

from lens_ssl_hf import InputError, evaluate_model, export, finetune, load_cutouts, predict, pretrain
from lens_ssl_hf.commands.parsing import parse
from lens_ssl_hf.data.info import CutoutInfo
from lens_ssl_hf.data.tensors import splits_and_info
from lens_ssl_hf.hub.card import CardFacts, render_card
from lens_ssl_hf.models import backbone_config
from lens_ssl_hf.models.backbones import load_encoder
from lens_ssl_hf.study.plan import Plan
from lens_ssl_hf.training import monitors, trainer
from lens_ssl_hf.training.accelerator import native_precision
from lens_ssl_hf.training.arguments import FinetuneArguments, PretrainArguments, make_arguments, recipe
from lens_ssl_hf.training.finetune import label_subset, parameter_groups
from lens_ssl_hf.training.monitors import (
    FeatureMonitor,
    accuracy,
    collapse_warning,
    knn_scores,
    probe_scores,
    roc_auc,
)
from lens_ssl_hf.training.pretrain import _open_data
from lens_ssl_hf.training.progress import Forecast
from lens_ssl_hf.training.run_directory import RunDirectory, origin, read_run
from lens_ssl_hf.training.schedules import cosine, last_momentum, linear

FAST = {"backbone": "vitt8", "precision": "fp32", "log_every": 1}
SSL = {
    **FAST,
    "batch_size": 32,
    "epochs": 2,
    "checkpoint_every": 1,
    "num_local_views": 1,
    "num_prototypes": 64,
    "head_hidden_size": 32,
    "projection_size": 64,
    "prediction_hidden_size": 16,
}


def lines(run):
    return [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]


@pytest.fixture(scope="module")
def dino_run(tiny_cutouts, tmp_path_factory):
    return pretrain(tiny_cutouts, tmp_path_factory.mktemp("runs") / "dino", "dino", **SSL)


@pytest.mark.parametrize("method", ["ibot", "simsiam"])
def test_pretraining_writes_a_run(method, tiny_cutouts, tmp_path):
    run = pretrain(tiny_cutouts, tmp_path / "run", method, **{**SSL, "epochs": 1})
    facts = json.loads((run / "run.json").read_text())
    assert facts["method"] == method and facts["data"]["fingerprint"] == "0123456789abcdef"
    logged = lines(run)
    assert (
        logged[0]["knn_auc"] > 0
        and logged[0]["probe_auc"] > 0
        and logged[-1]["step"] == 3
        and math.isfinite(logged[1]["loss"])
    )
    model = AutoModel.from_pretrained(run / "model")
    assert model.config.cutouts["bands"] == ["g", "r", "i"] and model.config.cutouts["image_mean"]


def test_run_json_says_how_the_run_was_made(dino_run):
    facts = json.loads((dino_run / "run.json").read_text())
    for package in ("torch", "transformers", "accelerate", "safetensors", "datasets", "numpy"):
        assert facts["versions"][package] == metadata.version(package)
    assert facts["versions"]["python"] == ".".join(map(str, sys.version_info[:3]))
    describe = "git describe --always --dirty --abbrev=12".split()
    git = subprocess.run(describe, cwd=Path(__file__).parent, capture_output=True, text=True)
    assert facts["git_revision"] == (git.stdout.strip() if git.returncode == 0 else None)
    resolved = {**recipe("dino"), **SSL, "method": "dino"}  # what was given, over the recipe
    assert {name: facts["arguments"][name] for name in resolved} == resolved
    assert set(facts["arguments"]) == {field.name for field in dataclasses.fields(PretrainArguments)}
    assert facts["data"]["fingerprint"] == "0123456789abcdef"


def test_a_resumed_pretraining_equals_an_uninterrupted_one(dino_run, tiny_cutouts, tmp_path):
    shutil.copytree(dino_run, tmp_path / "cut")
    checkpoints = sorted((tmp_path / "cut" / "checkpoints").iterdir())
    assert [path.name for path in checkpoints] == ["step-00000003.safetensors", "step-00000006.safetensors"]
    checkpoints[1].unlink()
    shutil.rmtree(tmp_path / "cut" / "model")
    resumed = pretrain(tiny_cutouts, tmp_path / "cut", "dino", resume="auto", **SSL)
    weights, expected = (load_file(run / "model" / "model.safetensors") for run in (resumed, dino_run))
    assert weights.keys() == expected.keys()
    assert all(torch.equal(weights[name], expected[name]) for name in weights)
    assert lines(resumed) == lines(dino_run)


def test_a_run_is_not_continued_with_other_settings_or_data(dino_run, tiny_cutouts):
    before = (dino_run / "run.json").read_bytes()
    assert pretrain(tiny_cutouts, dino_run, "dino", resume="auto", **SSL) == dino_run  # finished: nothing to do
    assert (dino_run / "run.json").read_bytes() == before
    with pytest.raises(InputError, match="epochs is 3, was 2"):
        pretrain(tiny_cutouts, dino_run, "dino", resume="auto", **{**SSL, "epochs": 3})
    splits, info = tiny_cutouts
    with pytest.raises(InputError, match="the data is another"):
        pretrain((splits, {**info, "fingerprint": "f"}), dino_run, "dino", resume="auto", **SSL)
    swapped = {**splits, "train": splits["train"].select(torch.arange(95, -1, -1))}
    with pytest.raises(InputError, match="the cutouts are others"):
        pretrain((swapped, info), dino_run, "dino", resume="auto", **SSL)
    assert (dino_run / "run.json").read_bytes() == before


def test_settings_that_a_method_does_not_use_may_have_had_other_defaults(tmp_path):
    arguments = vars(PretrainArguments(**recipe("simsiam"), method="simsiam"))
    facts = {"task": "pretrain", "method": "simsiam", "arguments": arguments, "data": {}}
    begun = {**facts, "arguments": {**arguments, "num_local_views": 4, "local_size": 16}}
    (tmp_path / "run.json").write_text(json.dumps(begun))
    RunDirectory(tmp_path, "auto").check_same(facts)
    with pytest.raises(InputError, match="epochs is 7"):
        RunDirectory(tmp_path, "auto").check_same({**facts, "arguments": {**arguments, "epochs": 7}})


def test_a_run_of_a_version_with_gradient_accumulation_goes_on_where_it_used_none(dino_run, tiny_cutouts, tmp_path):
    shutil.copytree(dino_run, tmp_path / "run")
    facts = json.loads((dino_run / "run.json").read_text())
    for steps in (1, 2):
        facts["arguments"]["gradient_accumulation_steps"] = steps
        (tmp_path / "run" / "run.json").write_text(json.dumps(facts))
        if steps == 1:
            assert pretrain(tiny_cutouts, tmp_path / "run", "dino", resume="auto", **SSL) == tmp_path / "run"
            assert "gradient_accumulation" not in str(render_card(CardFacts.from_run(tmp_path / "run", "name")))
    with pytest.raises(InputError, match="gradient_accumulation_steps is 1, was 2"):
        pretrain(tiny_cutouts, tmp_path / "run", "dino", resume="auto", **SSL)


def test_a_run_that_was_cut_before_its_first_checkpoint_begins_anew(dino_run, tiny_cutouts, tmp_path):
    shutil.copytree(dino_run, tmp_path / "cut")
    shutil.rmtree(tmp_path / "cut" / "model")
    shutil.rmtree(tmp_path / "cut" / "checkpoints")
    resumed = pretrain(tiny_cutouts, tmp_path / "cut", "dino", resume="auto", **SSL)
    assert lines(resumed) == lines(dino_run)


@pytest.mark.parametrize("task", ["pretrain", "finetune"])
def test_a_run_goes_on_in_the_precision_that_it_began_with(task, tiny_cutouts, tmp_path, monkeypatch):
    """On another machine, too, which would have chosen another one; here it is killed before its first checkpoint."""
    train, settings = (pretrain, SSL) if task == "pretrain" else (finetune, {**FAST, "steps": 2})
    settings = {**settings, "precision": "auto"}

    def killed(*_, **__):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(trainer, "optimizer_step", killed)
        with pytest.raises(KeyboardInterrupt):
            train(tiny_cutouts, tmp_path / "run", **settings)
    assert not list((tmp_path / "run").glob("checkpoints/*"))
    facts = json.loads((tmp_path / "run" / "run.json").read_text())
    assert facts["precision"] == native_precision(torch.device("cpu"))
    other = {"bf16": "fp32", "fp32": "bf16"}[facts["precision"]]
    (tmp_path / "run" / "run.json").write_text(json.dumps({**facts, "precision": other}))
    run = train(tiny_cutouts, tmp_path / "run", resume="auto", **settings)
    assert json.loads((run / "run.json").read_text())["precision"] == other


@pytest.mark.parametrize(
    "capabilities,precision",
    [({"avx512_bf16": True}, "bf16"), ({"amx_bf16": True}, "bf16"), ({"avx512_bf16": False, "avx2": True}, "fp32")],
)
def test_the_precision_is_a_property_of_the_cpu(capabilities, precision, monkeypatch):
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: capabilities)
    assert native_precision(torch.device("cpu")) == precision


def test_what_a_run_goes_on_with_is_noted(dino_run, tiny_cutouts, tmp_path, caplog):
    shutil.copytree(dino_run, tmp_path / "cut")
    shutil.rmtree(tmp_path / "cut" / "model")
    facts = json.loads((dino_run / "run.json").read_text())
    assert "resumed" not in facts and facts["versions"]["torch"] == torch.__version__
    begun = {**facts, "versions": {**facts["versions"], "torch": "2.11.0"}}
    (tmp_path / "cut" / "run.json").write_text(json.dumps(begun))
    run = pretrain(tiny_cutouts, tmp_path / "cut", "dino", resume="auto", **SSL)
    went_on = json.loads((run / "run.json").read_text())
    assert went_on["versions"]["torch"] == "2.11.0" and went_on["resumed"] == [{"versions": facts["versions"]}]
    assert "begun with other versions" in caplog.text


@pytest.mark.parametrize("text", ["", '{"task": ', "[]", "null", "\\xff", "[" * 10**5, '{"task": 3}'])
def test_a_damaged_run_is_named(text, tiny_cutouts, tmp_path):
    (tmp_path / "run.json").write_bytes(text.encode("latin-1"))
    with pytest.raises(InputError, match=re.escape(str(tmp_path))):
        finetune(tiny_cutouts, tmp_path, resume="auto", **FAST)


@pytest.mark.parametrize("name", ["arguments", "data", "run_id", "precision", "task", "image_mean"])
@pytest.mark.parametrize("value", [None, 3, "x", ...])
def test_facts_of_another_kind_are_named(name, value, dino_run, tiny_cutouts, tmp_path):
    facts = json.loads((dino_run / "run.json").read_text())
    del facts["seconds"], facts[name]
    (tmp_path / "run.json").write_text(json.dumps(facts if value is ... else {**facts, name: value}))
    if (name, value) in (("run_id", "x"), ("run_id", ...), ("precision", ...), ("image_mean", ...)):
        assert read_run(tmp_path)["task"] == "pretrain"  # nothing to be seen of it
        return
    with pytest.raises(InputError, match=re.escape(str(tmp_path))):
        pretrain(tiny_cutouts, tmp_path, "dino", resume="auto", **SSL)


def test_a_damaged_line_takes_no_other_with_it(tiny_cutouts, tmp_path, caplog):
    settings = {**FAST, "steps": 4, "eval_every": 1, "batch_size": 16}
    run = finetune(tiny_cutouts, tmp_path / "run", **settings)
    facts, log = json.loads((run / "run.json").read_text()), (run / "metrics.jsonl").read_bytes().splitlines(True)
    del facts["seconds"]
    (run / "run.json").write_text(json.dumps(facts))
    for damage in (b"\xff\xfe\n", b'{"step": "x"}\n', b"[1]\n", b'{"step": 1, "lo\n'):
        (run / "metrics.jsonl").write_bytes(b"".join([*log[:3], damage, *log[3:], b'{"step": 4, "los']))
        finetune(tiny_cutouts, run, resume="auto", **settings)
        assert (run / "metrics.jsonl").read_bytes().splitlines(True) == log
        assert "line 4 of" in caplog.text
        caplog.clear()
        (run / "run.json").write_text(json.dumps(facts))


def test_checkpoints_are_of_one_run(dino_run, tiny_cutouts, tmp_path):
    shutil.copytree(dino_run, tmp_path / "a")
    (tmp_path / "a" / "run.json").unlink()
    for resume in ("never", "auto"):  # of which run, nobody knows
        with pytest.raises(InputError, match="holds checkpoints without the run"):
            pretrain(tiny_cutouts, tmp_path / "a", "dino", resume=resume, **SSL)
    settings = {**SSL, "seed": 1}
    other = pretrain(tiny_cutouts, tmp_path / "b", "dino", **{**settings, "epochs": 1})
    shutil.rmtree(other / "model")
    newest = max((dino_run / "checkpoints").iterdir())
    shutil.copy(newest, other / "checkpoints")
    with pytest.raises(InputError, match=rf"{newest.name} is of another run"):
        pretrain(tiny_cutouts, other, "dino", resume="auto", **{**settings, "epochs": 1})


def test_pretraining_needs_no_labels(tiny_cutouts, tmp_path, caplog):
    splits, info = tiny_cutouts
    unlabelled = dataclasses.replace(splits["train"], labels=torch.full((96,), -1))
    run = pretrain(({"unlabelled": unlabelled}, info), tmp_path / "run", "dino", **{**SSL, "epochs": 1})
    assert caplog.text.count("features are not compared with labels") == 1
    assert not any("knn_auc" in line for line in lines(run)) and read_run(run)["num_train_labels"] == 0
    assert all(1 <= line["effective_rank"] <= 96 for line in (lines(run)[0], lines(run)[-1]))
    assert "have not been evaluated" in (export(run, tmp_path / "exported") / "README.md").read_text()


def test_no_evaluation_with_a_score_is_no_model(tiny_cutouts, tmp_path):
    """One validation cutout is so bright that the classifier cannot score it."""
    splits, info = tiny_cutouts
    validation = dataclasses.replace(splits["validation"], pixels=splits["validation"].pixels.clone())
    validation.pixels[0] = 3e38
    info = info | {"stretch": {**info["stretch"], "kind": "linear"}}  # whose pixels may have any value
    with pytest.raises(InputError, match="the scores of all evaluations were NaN"):
        finetune(({**splits, "validation": validation}, info), tmp_path / "run", steps=2, **FAST)
    assert not (tmp_path / "run" / "model").exists() and "NaN" not in (tmp_path / "run" / "metrics.jsonl").read_text()


def test_bands_in_another_order_are_refused(dino_run, tiny_cutouts, tmp_path):
    splits, info = tiny_cutouts
    with pytest.raises(InputError, match="takes the bands g, r, i but the dataset has i, r, g: choose --bands g r i"):
        finetune((splits, {**info, "bands": ["i", "r", "g"]}), tmp_path / "run", init=dino_run, **FAST)


def test_a_pretraining_goes_on_from_the_weights_of_another(dino_run, tiny_cutouts, tmp_path):
    still = {**SSL, "epochs": 1, "learning_rate": 1e-12, "final_learning_rate": 0.0, "init": dino_run}
    run = pretrain(tiny_cutouts, tmp_path / "run", "ibot", **still)
    begun, went_on = (load_encoder(one).state_dict() for one in (dino_run, run))
    assert went_on.keys() - begun.keys() == {"embeddings.mask_token"}
    for name, value in begun.items():
        torch.testing.assert_close(went_on[name], value, rtol=0, atol=1e-6)
    facts = json.loads((run / "run.json").read_text())
    assert (facts["method"], facts["init_method"], facts["backbone"]) == ("ibot", "dino", "vitt8")
    assert facts["init_run"]["run_id"] == json.loads((dino_run / "run.json").read_text())["run_id"]
    assert "went on from a pretraining on 96 cutouts of toy." in str(render_card(CardFacts.from_run(run, "name")))
    splits, info = tiny_cutouts
    with pytest.raises(InputError, match="takes the bands g, r, i but"):
        pretrain((splits, {**info, "bands": ["i", "r", "g"]}), tmp_path / "bands", **still)
    with pytest.raises(InputError, match="has patches of 8 pixels, not 4: give --patch_size 8"):
        pretrain(tiny_cutouts, tmp_path / "patches", **{**still, "patch_size": 4, "local_size": 8})


def test_finetuning_learns_and_keeps_the_best_weights(dino_run, tiny_cutouts, tmp_path):
    run = finetune(tiny_cutouts, tmp_path / "run", init=dino_run, labels=48, steps=30, eval_every=10, **FAST)
    facts = json.loads((run / "run.json").read_text())
    assert (facts["num_labels"], facts["num_lenses"]) == (48, 24)
    assert facts["init_method"] == "dino" and facts["backbone"] == "vitt8"
    aucs = {line["step"]: line["validation_auc"] for line in lines(run) if "validation_auc" in line}
    assert facts["validation_auc"] == pytest.approx(max(aucs.values()), rel=1e-5)
    assert facts["best_step"] == max(aucs, key=aucs.get)
    assert max(aucs.values()) > 0.9
    model, info = ViTForImageClassification.from_pretrained(run / "model", output_loading_info=True)
    assert not info["missing_keys"] and not info["unexpected_keys"]
    assert model.config.id2label == {0: "nonlens", 1: "lens"}


def test_a_stock_vit_of_another_image_size_is_fine_tuned(tiny_cutouts, tmp_path):
    torch.manual_seed(3)
    config = tiny_vit(3)
    config.image_size = 48
    ViTModel(config).save_pretrained(tmp_path / "stock")
    settings = {**FAST, "steps": 2, "eval_every": 1, "batch_size": 32, "labels": 32}
    run = finetune(tiny_cutouts, tmp_path / "run", init=tmp_path / "stock", linear_probe=True, **settings)
    stock, model = (
        ViTModel.from_pretrained(tmp_path / "stock"),
        ViTForImageClassification.from_pretrained(run / "model"),
    )
    assert model.config.image_size == 32 and model.config.num_labels == 2
    tuned = dict(model.vit.named_parameters())
    for name, parameter in stock.named_parameters():
        if "position_embeddings" in name:  # 6 x 6 patches became 4 x 4
            assert tuned[name].shape == (1, 17, 32) and torch.equal(tuned[name][:, 0], parameter[:, 0])
            assert torch.allclose(tuned[name][:, 1:].mean(dim=1), parameter[:, 1:].mean(dim=1), atol=0.05)
        elif "pooler" not in name:
            assert torch.equal(tuned[name], parameter), name
    assert json.loads((run / "run.json").read_text())["crop_size"] == 32
    assert np.isfinite(predict(run, tiny_cutouts).score).all()


def test_an_exported_backbone_is_known_for_what_it_is(dino_run, tiny_cutouts, tmp_path, capfd):
    exported = export(dino_run, tmp_path / "lens-dino-vitt8")
    run = finetune(tiny_cutouts, tmp_path / "run", init=exported, steps=1, precision="fp32")
    facts = json.loads((run / "run.json").read_text())
    assert (facts["init_method"], facts["backbone"]) == ("dino", "vitt8")
    assert "UNEXPECTED" not in "".join(capfd.readouterr())


def test_a_linear_probe_leaves_the_backbone_alone(dino_run, tiny_cutouts, tmp_path):
    run = finetune(tiny_cutouts, tmp_path / "run", init=dino_run, linear_probe=True, steps=3, **FAST)
    encoder = AutoModel.from_pretrained(dino_run / "model").encoder
    probe = ViTForImageClassification.from_pretrained(run / "model").vit
    assert all(torch.equal(a, b) for a, b in zip(encoder.state_dict().values(), probe.state_dict().values()))


def test_training_from_a_saved_dataset(tiny_cutouts, tmp_path):
    path = save_toy(tiny_cutouts, tmp_path / "cutouts")
    splits, info = splits_and_info(path)
    assert info["fingerprint"] == tiny_cutouts[1]["fingerprint"] and splits["test"].ids == tiny_cutouts[0]["test"].ids
    assert torch.equal(splits["train"].pixels, tiny_cutouts[0]["train"].pixels)
    assert (finetune(path, tmp_path / "run", steps=1, **FAST) / "model" / "config.json").is_file()
    with pytest.raises(InputError, match=r"missing does not exist"):
        splits_and_info(tmp_path / "missing")


@pytest.mark.parametrize("task", ["pretrain", "finetune"])
def test_a_test_split_of_another_source_is_not_that_of_the_run(task, tiny_cutouts, tmp_path):
    path, info = save_toy(tiny_cutouts, tmp_path / "cutouts"), tiny_cutouts[1]
    cutouts = load_cutouts(path, cache_dir=str(tmp_path / "cache"))
    cutouts["test"].info.description = CutoutInfo(**info | {"name": "other", "fingerprint": "other"}).to_json()
    if task == "pretrain":
        run = pretrain(cutouts, tmp_path / "run", "dino", **{**SSL, "epochs": 1, "eval_every": 0})
    else:
        run = finetune(cutouts, tmp_path / "run", steps=1, **FAST)
    assert read_run(run)["data"] == vars(CutoutInfo(**info))
    assert evaluate_model(run, cutouts, num_bootstrap=0)["fingerprint"] == "other"
    assert not (run / "evaluation").exists() and len(list(run.glob("evaluation-other-*/metrics.json"))) == 1
    own = load_cutouts(path, cache_dir=str(tmp_path / "cache"))["test"]
    cutouts["unlabelled"], cutouts["test"] = cutouts["test"], own
    if task == "pretrain":  # with further cutouts from elsewhere, the test split is the run's own all the same
        run = pretrain(cutouts, tmp_path / "more", "dino", **{**SSL, "epochs": 1, "eval_every": 0})
        assert read_run(run)["num_train_images"] == len(cutouts["train"]) + len(cutouts["unlabelled"])
    evaluate_model(run, cutouts, num_bootstrap=0)
    assert (run / "evaluation" / "metrics.json").is_file()


def test_a_folder_named_scratch_is_no_start(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    write_pretrain_run(tmp_path / "scratch")
    assert origin("scratch", None) == {"init": "scratch", "init_method": "scratch"}
    assert origin("./scratch", None)["init_method"] == "dino"


def test_label_subsets_are_nested_stratified_and_seeded():
    labels = (torch.arange(1000) % 5 == 0).long()
    subsets = [set(label_subset(labels, str(n), seed=3).tolist()) for n in (10, 100, 333, 1000)]
    assert [len(subset) for subset in subsets] == [10, 100, 333, 1000]
    assert all(small <= large for small, large in pairwise(subsets))
    assert [int(labels[list(subset)].sum()) for subset in subsets] == [2, 20, 67, 200]
    assert set(label_subset(labels, "100", seed=4).tolist()) != subsets[1]
    with pytest.raises(InputError, match="1000 labelled"):
        label_subset(labels, "1001", seed=0)


def test_parameter_groups_hold_every_parameter_once():
    model = ViTForImageClassification(backbone_config("vitt8"))
    groups = parameter_groups(model, 1.0, 10.0, weight_decay=0.05)
    peaks = {id(p): group["peak"] for group in groups for p in group["params"]}
    assert len(peaks) == sum(len(group["params"]) for group in groups) == len(list(model.parameters()))
    heads = {id(p) for p in model.classifier.parameters()}
    assert all(peak == (10 if number in heads else 1) for number, peak in peaks.items())
    assert all(group["weight_decay"] == 0.05 * (p.ndim >= 2) for group in groups for p in group["params"])


def test_a_long_training_says_how_long_it_takes(capsys):
    with tqdm(total=10**9, disable=True) as bar:
        forecast = Forecast(Accelerator(), bar, 10**9)
        for done in (10, 20, 30):
            time.sleep(0.01)
            forecast.update(done)
    steps, estimate = capsys.readouterr().out.splitlines()
    assert steps == "1,000,000,000 steps" and re.fullmatch(r"about \d+ h \d\d min for 999,999,980 steps", estimate)


def test_schedules():
    values = [cosine(1.0, 0.1, step, 100, warmup_steps=10) for step in range(101)]
    assert values[0] == pytest.approx(0.1) and values[9] == values[10] == 1.0
    assert values[55] == pytest.approx(0.55) and values[100] == pytest.approx(0.1)
    assert all(a >= b for a, b in pairwise(values[10:]))
    assert [linear(0.04, 0.07, step, 3) for step in (0, 1, 3, 9)] == pytest.approx([0.04, 0.05, 0.07, 0.07])


def test_roc_auc_and_knn_agree_with_scikit_learn():
    rng = np.random.default_rng(0)
    labels, scores = rng.integers(0, 2, 300), rng.integers(0, 20, 300) / 20  # with ties
    assert roc_auc(torch.tensor(labels), torch.tensor(scores)) == pytest.approx(roc_auc_score(labels, scores))
    assert math.isnan(roc_auc(torch.ones(3), torch.rand(3)))
    bank, queries = rng.normal(size=(200, 8)), rng.normal(size=(50, 8))
    bank_labels = rng.integers(0, 2, 200)
    unit = [x / np.linalg.norm(x, axis=1, keepdims=True) for x in (bank, queries)]

    def weights(distances):  # on the unit sphere, similarity = 1 - distance^2 / 2
        return np.exp((1 - distances**2 / 2) / 0.1)

    reference = KNeighborsClassifier(20, weights=weights, algorithm="brute").fit(unit[0], bank_labels)
    ours = knn_scores(torch.tensor(bank), torch.tensor(bank_labels), torch.tensor(queries), k=20, temperature=0.1)
    np.testing.assert_allclose(ours.numpy(), reference.predict_proba(unit[1])[:, 1], atol=1e-5)


def test_what_is_not_a_number_has_no_rank():
    labels = torch.arange(100) % 2
    scores = torch.rand(100, generator=torch.Generator().manual_seed(0))
    for number in (1, 100):
        scores[:number] = torch.nan
        assert math.isnan(roc_auc(labels, scores)) and math.isnan(accuracy(labels, scores))
    features = torch.randn(100, 8)
    poisoned = features.clone()
    poisoned[3] = torch.nan
    assert knn_scores(features, labels, poisoned).isnan().nonzero().tolist() == [[3]]
    assert knn_scores(poisoned, labels, features).isnan().all()


def test_collapse_is_named():
    uniform = {"loss": math.log(64), "teacher_entropy": math.log(64), "output_std": 0.1}
    assert "uniform" in collapse_warning("dino", uniform, 64)
    assert "one-hot" in collapse_warning("ibot", {**uniform, "teacher_entropy": 0.01}, 64)
    healthy = {"loss": 3.0, "teacher_entropy": 2.0, "output_std": 0.1}
    assert collapse_warning("dino", healthy, 64) is None
    assert "ln K" in collapse_warning("dino", {**healthy, "loss": 4.13}, 64)
    assert collapse_warning("ibot", {**healthy, "loss": 4.13, "cls_loss": 3.0}, 64) is None
    assert "alike" in collapse_warning("dino", {**healthy, "output_std": 1e-4}, 64)
    assert "collapse" in collapse_warning("simsiam", {"output_std": 1e-3}, 64)
    assert collapse_warning("simsiam", {"output_std": 1 / 8}, 64) is None


@pytest.mark.parametrize("method", ["simsiam", "dino", "ibot"])
def test_recipes_are_settings(method):
    arguments = PretrainArguments(**recipe(method), method=method)
    if method == "dino":  # what --help and the API show is what runs
        assert arguments == PretrainArguments()
    assert arguments.optimizer == ("sgd" if method == "simsiam" else "adamw")


def test_the_command_line_wins_over_the_recipe_and_the_recipe_over_the_defaults(monkeypatch):
    def parsed(line):
        monkeypatch.setattr(sys, "argv", ["run_ssl.py", *line.split()])
        return parse(PretrainArguments)[0]

    assert parsed("").optimizer == parsed("--method ibot").optimizer == "adamw"
    simsiam = parsed("--method simsiam")
    assert simsiam.optimizer == "sgd" and simsiam.learning_rate == recipe("simsiam")["learning_rate"]
    other = parsed("--learning_rate 0.5 --method simsiam --optimizer adamw")
    assert (other.optimizer, other.learning_rate, other.weight_decay) == ("adamw", 0.5, simsiam.weight_decay)


@pytest.mark.parametrize(
    "settings,word",
    [
        ({"backbone": "vith14"}, "vitb8"),
        ({"batch_size": 512}, "lower batch_size"),
        ({"epoch": 3}, "epochs"),
        ({"crop_size": 30}, "patch_size"),
        ({"crop_size": 64}, "crop_size"),
        ({"precision": "fp16"}, "bf16"),
        ({"global_scale_min": 1.5}, "global_scale_min"),
        ({"gradient_accumulation_steps": 2}, "unknown setting 'gradient_accumulation_steps'"),
        ({"local_scale_min": 0.5, "local_scale_max": 0.4}, "local_scale_max"),
        ({"num_local_views": -1}, "num_local_views"),
        ({"teacher_temperature": 0}, "teacher_temperature"),
        ({"learning_rate": math.nan}, "learning_rate"),
        ({"seed": 2**32}, "seed"),
        ({"batch_size": 1}, "batch_size"),
        ({"blur_probability": 1.2}, "blur_probability"),
        ({"num_prototypes": 1}, "num_prototypes must be at least 2"),
        ({"learning_rate": 1e30}, "learning_rate must be at most 10"),
        ({"noise_sigma": 1e30}, "noise_sigma must be at most 10"),
        ({"student_temperature": math.inf}, "student_temperature must be a finite number"),
    ],
)
def test_bad_settings_of_pretraining_are_named(settings, word, tiny_cutouts, tmp_path):
    with pytest.raises(InputError, match=word):
        pretrain(tiny_cutouts, tmp_path / "run", **{"batch_size": 32, **settings})
    assert not (tmp_path / "run").exists()


def test_every_process_of_a_pretraining_has_two_images(tiny_cutouts):
    with pytest.raises(InputError, match="batch_size 2 leaves one image per process: give at least 4"):
        _open_data(tiny_cutouts, PretrainArguments(batch_size=2), SimpleNamespace(num_processes=2))


@pytest.mark.parametrize(
    ("train", "name", "value", "fix"),
    [
        (finetune, "linear_probe", "no", "True or False"),
        (finetune, "deterministic", 1, "True or False"),
        (finetune, "steps", 2.0, "a whole number"),
        (finetune, "batch_size", True, "a whole number"),
        (finetune, "seed", None, "a whole number"),
        (finetune, "init", None, "text or a path"),
        (finetune, "report_to", 5, "text or a path"),
        (pretrain, "rotate", "no", "True or False"),
        (pretrain, "epochs", "3", "a whole number"),
        (pretrain, "epochs", np.float64(1.5), "a whole number"),
        (pretrain, "learning_rate", "7e-4", "a number, such as 7.0e-4"),
        (pretrain, "output_dir", 3, "text or a path"),
    ],
)
def test_values_of_another_kind_are_named(train, name, value, fix, tiny_cutouts, tmp_path):
    with pytest.raises(InputError, match=re.escape(f"{name} is {value!r}: give {fix}")):
        train(tiny_cutouts, **{"output_dir": tmp_path / "run", name: value})
    assert not (tmp_path / "run").exists()


def test_values_of_numpy_and_paths_become_plain():
    given = {"epochs": np.int64(3), "learning_rate": np.float64(0.5), "rotate": np.bool_(False), "init": Path("a")}
    arguments = make_arguments(PretrainArguments, given | {"weight_decay": 0, "report_to": "tensorboard"})
    found = [getattr(arguments, name) for name in (*given, "weight_decay", "report_to")]
    assert list(map(repr, found)) == ["3", "0.5", "False", "'a'", "0", "['tensorboard']"]
    arguments = make_arguments(FinetuneArguments, {"extra_labels": [Path("a")], "extra_scores": Path("b")})
    assert (arguments.extra_labels, arguments.extra_scores, arguments.subset_seed) == (["a"], "b", None)
    with pytest.raises(InputError, match=r"subset_seed must be below 2\^63"):
        make_arguments(FinetuneArguments, {"subset_seed": 2**70})


def test_a_run_goes_on_with_the_same_pixels_and_labels_alone(tiny_cutouts, tmp_path):
    """Ids and fingerprint stay where a notebook corrects labels."""
    splits, info = tiny_cutouts
    settings = {"backbone": "cnn", "steps": 2, "eval_every": 1, "precision": "fp32", "resume": "auto"}
    run = finetune(tiny_cutouts, tmp_path / "run", **settings)
    assert finetune(tiny_cutouts, tmp_path / "run", **settings) == run
    for name, change in (("labels", lambda labels: 1 - labels), ("pixels", lambda pixels: 255 - pixels)):
        for split in ("train", "validation"):
            other = dataclasses.replace(splits[split], **{name: change(getattr(splits[split], name))})
            with pytest.raises(InputError, match=r"begun otherwise \(the pixels or labels are others"):
                finetune(({**splits, split: other}, info), tmp_path / "run", **settings)


def test_a_cnn_needs_a_pixel_after_its_last_halving(tiny_cutouts, tmp_path):
    settings = {"backbone": "cnn", "steps": 1, "precision": "fp32"}
    with pytest.raises(InputError, match="crop_size is 3: give at least 4"):
        finetune(tiny_cutouts, tmp_path / "3", crop_size=3, **settings)  # it has no patches
    assert (finetune(tiny_cutouts, tmp_path / "4", crop_size=4, **settings) / "model").is_dir()
    with pytest.raises(InputError, match="crop_size 33 is not a multiple of patch_size 8"):
        FinetuneArguments(crop_size=33)
    with pytest.raises(InputError, match="batches of one cutout are too small"):  # for batch norm
        finetune(tiny_cutouts, tmp_path / "1", crop_size=4, batch_size=1, **settings)


def test_what_accelerate_was_told_changes_no_gradient_and_no_evaluation(tiny_cutouts, tmp_path, monkeypatch):
    settings = {**FAST, "precision": "bf16", "steps": 2, "eval_every": 1, "labels": 32, "batch_size": 16}
    run = finetune(tiny_cutouts, tmp_path / "run", **settings)
    monkeypatch.setenv("ACCELERATE_MIXED_PRECISION", "bf16")
    monkeypatch.setenv("ACCELERATE_GRADIENT_ACCUMULATION_STEPS", "4")
    AcceleratorState._reset_state()
    try:
        told = finetune(tiny_cutouts, tmp_path / "told", **settings | {"precision": "auto"})
    finally:
        AcceleratorState._reset_state()
    assert read_run(told)["precision"] == "bf16" and lines(told) == lines(run)


def test_bad_settings_of_finetuning_are_named(dino_run, tiny_cutouts, tmp_path):
    splits, info = tiny_cutouts
    for labels in ("many", "²", "0"):
        with pytest.raises(InputError, match="labels"):
            FinetuneArguments(labels=labels)
    assert FinetuneArguments(init="google/vit", crop_size=28).crop_size == 28  # whose patches the model knows
    with pytest.raises(InputError, match="validation"):
        finetune(({"train": splits["train"]}, info), tmp_path / "run", **FAST)
    with pytest.raises(InputError, match="bands"):
        finetune((splits, {**info, "bands": ["g"]}), tmp_path / "run", init=dino_run, **FAST)
    with pytest.raises(InputError, match="already holds a run"):
        finetune(tiny_cutouts, dino_run, **FAST)
    (tmp_path / "file").touch()
    with pytest.raises(InputError, match="cannot be written"):
        finetune(tiny_cutouts, tmp_path / "file" / "run", **FAST)


def test_the_probe_sees_what_brightness_hides_from_neighbours():
    """One direction in 20 tells the classes apart; another one, which says nothing, is thirty times as wide."""
    generator = torch.Generator().manual_seed(0)
    labels = torch.arange(400) % 2
    features = torch.randn(400, 20, generator=generator)
    features[:, 0] *= 30
    features[:, 1] += 3 * labels
    known, rest = slice(200), slice(200, 400)
    neighbours = knn_scores(features[known], labels[known], features[rest])
    probed = probe_scores(features[known], labels[known], features[rest])
    assert roc_auc(labels[rest], neighbours) < 0.9 and roc_auc(labels[rest], probed) > 0.95


@pytest.mark.parametrize("most", [96, 95, 50])
def test_the_monitor_sees_both_of_classes_that_take_turns(most, tiny_cutouts, monkeypatch):
    monkeypatch.setattr(monitors, "MONITORED", most)
    for labelled, split in zip(FeatureMonitor(tiny_cutouts[0], 32, [0.4] * 3, [0.1] * 3, Accelerator()).labelled,
                               tiny_cutouts[0].values()):  # fmt: skip
        lenses, count = int((labelled[1] == 1).sum()), len(labelled[1])
        assert lenses == count - lenses and min(len(split), most) / 2 < count <= most
        assert len(split) > most or torch.equal(labelled[1], split.labels)


@pytest.mark.parametrize(
    ("start", "steps", "end"),
    [(0.99, 300, 0.99), (0.99, 3000, 0.99), (0.99, 3001, 1.0), (0.9, 300, 0.9), (0.9, 400, 1.0)],
)
def test_the_teachers_momentum_stays_in_short_runs_and_rises_to_1_in_others(start, steps, end):
    assert last_momentum(start, steps) == end


def test_the_last_momentum_of_the_teacher_is_recorded_as_what_it_is(tiny_cutouts, tmp_path, caplog, monkeypatch):
    """
    Beside the settings, so that a longer run with the same ones has its own; also in the study. A run from before
    there was the option has 1, as it had.
    """
    settings = {**SSL, "teacher_momentum": 0.9}
    run = pretrain(tiny_cutouts, tmp_path / "run", "dino", **settings)
    assert f"{read_run(run)['arguments']['epochs'] * 3} steps are few: after 1,000 to 3,000" in caplog.text
    assert {line["teacher_momentum"] for line in lines(run) if "teacher_momentum" in line} == {0.9}
    facts = json.loads((run / "run.json").read_text())
    assert facts["resolved"] == {"final_teacher_momentum": 0.9, "stream": "no"}
    assert (facts["arguments"]["final_teacher_momentum"], facts["arguments"]["stream"]) == (None, "auto")
    pretrain(tiny_cutouts, run, "dino", **settings, final_teacher_momentum=0.9, stream="no", resume="auto")
    with pytest.raises(InputError, match=r"begun otherwise \(final_teacher_momentum is 1.0, was None\)"):
        pretrain(tiny_cutouts, run, "dino", **settings, final_teacher_momentum=1.0, resume="auto")
    monkeypatch.setattr(sys, "argv", ["run_ssl.py", "--config", str(run / "run.json"), "--epochs", "999"])
    assert (parse(PretrainArguments)[0].final_teacher_momentum, parse(PretrainArguments)[0].stream) == (None, "auto")
    facts["arguments"] |= facts.pop("resolved")  # as earlier versions recorded it
    facts.pop("seconds")
    (run / "run.json").write_text(json.dumps(facts))
    pretrain(tiny_cutouts, run, "dino", **settings, resume="auto")
    assert read_run(run)["arguments"] == {**facts["arguments"], "resume": "auto"}
    del facts["arguments"]["final_teacher_momentum"]
    (run / "run.json").write_text(json.dumps(facts))
    with pytest.raises(InputError, match=r"begun otherwise \(final_teacher_momentum is 0.9, was 1.0\)"):
        pretrain(tiny_cutouts, run, "dino", **settings, resume="auto")
    pretrain(tiny_cutouts, run, "dino", **settings, final_teacher_momentum=1.0, resume="auto")
    study = Plan({None: tiny_cutouts}, tmp_path, ["dino"], ["vitt8"], ["all"], 1, 1, {"dino": {"epochs": 1}})
    assert study.settings(study.cells()[0]).final_teacher_momentum == 0.99
    study.pretraining["dino"] |= {"epochs": 9999}
    assert study.settings(study.cells()[0]).final_teacher_momentum == 1
