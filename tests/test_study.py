"""Comparing initialisations: cells are done once, and the intervals cover seeds and test groups."""

import json

import numpy as np
import pytest

from lens_ssl_hf import InputError
from lens_ssl_hf.evaluation.evaluate import Predictions
from lens_ssl_hf.evaluation.study import compare, run_study, write_results


def test_cells_are_done_once_and_results_are_written(tiny_cutouts, tmp_path):
    splits, _ = tiny_cutouts
    settings = {"backbone": "vitt8", "steps": 2, "eval_every": 1, "precision": "fp32"}
    cells = run_study(tiny_cutouts, tmp_path, ["scratch"], ["16"], seeds=2, **settings)
    assert [(cell["seed"], cell["num_labels"], cell["init_method"]) for cell in cells] == [
        (0, 16, "scratch"),
        (1, 16, "scratch"),
        (0, 16, "radial profiles"),
        (1, 16, "radial profiles"),
    ]
    assert cells[2]["metrics"]["roc_auc"] > 0.9  # the toy lenses have a brighter centre
    before = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*.safetensors")}
    assert run_study(tiny_cutouts, tmp_path, ["scratch"], ["16"], seeds=2, **settings) == cells
    assert {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*.safetensors")} == before
    with pytest.raises(InputError, match="steps is 3, was 2"):
        run_study(tiny_cutouts, tmp_path, ["scratch"], ["16"], seeds=2, **{**settings, "steps": 3})
    with pytest.raises(InputError, match="same name"):
        run_study(tiny_cutouts, tmp_path, ["a/dino", "b/dino"], ["16"], **settings)
    rows = compare(cells, num_bootstrap=200)
    write_results(tmp_path / "results.json", cells, rows)
    results = json.loads((tmp_path / "results.json").read_text())
    auc = results["rows"][0]["roc_auc"]
    assert auc["low"] <= auc["value"] <= auc["high"]
    assert auc["value"] == pytest.approx(np.mean([cell["metrics"]["roc_auc"] for cell in cells[:2]]))
    assert results["finetuning"]["scratch"]["steps"] == 2 and results["finetuning"]["scratch"]["layer_decay"] == 1
    assert results["test"]["num_lenses"] == 24 and len(splits["test"]) == 48


def write_cell(folder, method, seed, scores, labels):
    ids = [str(i) for i in range(len(labels))]
    kinds = ["lens" if label else "hard" if i % 2 else "field" for i, label in enumerate(labels)]
    directory = folder / f"{method}-{seed}"
    Predictions(ids, labels, ids, kinds, scores).save(directory / "evaluation" / "predictions.parquet")
    return {"init": method, "init_method": method, "num_labels": 100, "seed": seed, "directory": str(directory)}


def test_differences_share_the_test_groups(tmp_path):
    rng = np.random.default_rng(0)
    labels = np.arange(200) % 3 % 2
    noise = rng.normal(size=200)  # common to both sides: a paired comparison is not disturbed by it
    cells = []
    for method, signal in (("scratch", 1.0), ("dino", 2.0)):
        for seed in range(3):
            logits = signal * labels + noise + 0.05 * rng.normal(size=200)
            cells.append(write_cell(tmp_path, method, seed, 1 / (1 + np.exp(-logits)), labels))
    scratch, dino = compare(cells, num_bootstrap=500)
    assert (scratch["init_method"], dino["init_method"]) == ("scratch", "dino")
    for name in ("roc_auc", "auc_vs_hard", "auc_vs_field"):
        ours, base = dino[name], scratch[name]
        assert ours["difference"] == pytest.approx(ours["value"] - base["value"])
        assert ours["difference_low"] > 0
        widths = [side["high"] - side["low"] for side in (ours, base)]
        assert ours["difference_high"] - ours["difference_low"] < np.hypot(*widths)
    cells.append(write_cell(tmp_path, "ibot", 0, np.full(150, 0.5), labels[:150]))
    with pytest.raises(InputError, match="different test sets"):
        compare(cells)
