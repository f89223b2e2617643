"""Trackers get the numbers of metrics.jsonl, also from a run that was cut and goes on."""

import json
import math

import pytest

from lens_ssl_hf import InputError, finetune
from lens_ssl_hf.training import tracking

LABELS = {"backbone": "vitt8", "precision": "fp32", "steps": 6, "eval_every": 2, "log_every": 1, "batch_size": 32}


def logged(run):
    """`{(name, step): value}` of metrics.jsonl."""
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return {(name, line["step"]): value for line in lines for name, value in line.items() if name != "step"}


def cut(run):
    """As if the run had been killed after step 5, with its last checkpoint at step 4."""
    facts = json.loads((run / "run.json").read_text())
    del facts["seconds"]
    (run / "run.json").write_text(json.dumps(facts))
    max((run / "checkpoints").glob("step-*.safetensors")).unlink()


def test_tensorboard_reads_back_what_metrics_jsonl_holds(tiny_cutouts, tmp_path):
    pytest.importorskip("tensorboard", reason="tensorboard is not installed")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    run = finetune(tiny_cutouts, tmp_path / "run", report_to="tensorboard", **LABELS)
    cut(run)
    finetune(tiny_cutouts, run, report_to=["tensorboard"], resume="auto", **LABELS)
    files = list((run / "tensorboard").glob("events.*"))
    assert len(files) == 2  # the second one goes on with the first
    events = EventAccumulator(str(run / "tensorboard")).Reload()
    found = {(name, event.step): event.value for name in events.Tags()["scalars"] for event in events.Scalars(name)}
    expected = logged(run)
    assert ("loss", 5) in expected and found.keys() == expected.keys()
    assert all(math.isclose(found[key], expected[key], rel_tol=1e-6) for key in expected)


def test_trackio_goes_on_in_the_same_run(tiny_cutouts, tmp_path, monkeypatch):
    monkeypatch.setenv("TRACKIO_DIR", str(tmp_path / "trackio"))  # before the import, which reads it
    pytest.importorskip("trackio", reason="trackio is not installed")
    from trackio.sqlite_storage import SQLiteStorage

    run = finetune(tiny_cutouts, tmp_path / "run", report_to="trackio", **LABELS)
    cut(run)
    finetune(tiny_cutouts, run, report_to="trackio", resume="auto", **LABELS)
    (name,) = SQLiteStorage.get_runs(tracking.PROJECT)
    found = {}
    for line in SQLiteStorage.get_logs(tracking.PROJECT, name):
        found |= {(key, line["step"]): value for key, value in line.items() if key not in ("step", "timestamp")}
    assert found == logged(run)


def test_without_a_choice_nothing_is_tracked(tiny_cutouts, tmp_path):
    run = finetune(tiny_cutouts, tmp_path / "run", **{**LABELS, "steps": 1})
    assert not (run / "tensorboard").exists()


@pytest.mark.parametrize(("name", "message"), [("mlflow", "must be of trackio"), ("wandb", "the package wandb")])
def test_a_tracker_that_is_missing_is_named_before_anything_is_done(
    name, message, tiny_cutouts, tmp_path, monkeypatch
):
    monkeypatch.setattr(tracking, "find_spec", lambda name: None)
    with pytest.raises(InputError, match=message):
        finetune(tiny_cutouts, tmp_path / "run", report_to=[name], **LABELS)
    assert not (tmp_path / "run").exists()
