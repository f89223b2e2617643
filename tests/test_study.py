"""The study: its cells are done once, its numbers are those of the cells, its statistics those of the textbooks."""

import json
import os
import runpy
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from conftest import make_split, save_toy
from sklearn.metrics import accuracy_score, roc_auc_score

from lens_ssl_hf import InputError
from lens_ssl_hf.evaluation.metrics import measure
from lens_ssl_hf.evaluation.predictions import Predictions
from lens_ssl_hf.evaluation.probes import extract_features, linear_probe
from lens_ssl_hf.models.backbones import load_encoder
from lens_ssl_hf.study.cards import write_cards
from lens_ssl_hf.study.cells import unpack_cells
from lens_ssl_hf.study.ensembles import ensembles
from lens_ssl_hf.study.plan import Cell, describe_plan
from lens_ssl_hf.study.report import collect, write_report
from lens_ssl_hf.study.run import Study, write_data
from lens_ssl_hf.study.statistics import _correct, compare
from lens_ssl_hf.study.tables import caption
from lens_ssl_hf.training.finetune import label_subset
from lens_ssl_hf.training.run_directory import read_run

ROOT = Path(__file__).parents[1]
TINY = {"crop_size": 16, "precision": "fp32", "eval_every": 1}
TINY_DINO = {
    **TINY,
    "epochs": 1,
    "batch_size": 48,
    "num_local_views": 4,
    "local_size": 8,
    "head_hidden_size": 16,
    "num_prototypes": 16,
}
TINY_STEPS = {**TINY, "steps": 1, "batch_size": 16}


METHODS = ("supervised", "dino", "dino-linear", "cnn", "profiles")


def make_study(cutouts, folder, methods=METHODS, labels=("16",), **changes):
    settings = {"pretraining": {"dino": TINY_DINO}, "finetuning": {"all": TINY_STEPS}, "seeds": 1, "subsets": 2}
    return Study({None: cutouts}, folder, methods, ["vitt8"], labels, **{**settings, **changes})


def statistics(run):
    return read_run(run)["image_mean"], read_run(run)["image_std"]


@pytest.fixture(scope="module")
def finished(tiny_cutouts, tmp_path_factory):
    """A study that is done, its cutouts, its records, and the report's folder and results."""
    splits, info = tiny_cutouts
    large = make_split(4200, 5)
    large = large.select(torch.cat([(large.labels == 0).nonzero()[:, 0], torch.arange(1, 101, 2)]))
    folder = tmp_path_factory.mktemp("finished")
    cutouts = {**splits, "test_large": large}, info
    study = make_study(cutouts, folder / "study")
    plan = describe_plan(study)
    assert "pretrainings: 1, cells: 2 (16 labels), to do: 3" in plan and "0 of 11 are done" in plan
    records = study.run()
    return study, cutouts, records, folder / "report", write_report(study, records, folder / "report")


def test_cells_are_done_once(finished):
    study, cutouts, records, _, _ = finished
    assert records[0]["labels"] == "none" and sorted(r["method"] for r in records[1:]) == sorted(METHODS * 2)
    assert all(record["metrics"]["roc_auc"] > 0.9 for record in records if record["method"] == "profiles")
    assert not list(study.output_dir.rglob("checkpoints"))
    kept = {path.parent.name for path in study.output_dir.rglob("model")}
    assert kept == {
        Cell(m, b, "16", 0, 0).name for m, b in (("supervised", "vitt8"), ("dino", "vitt8"), ("cnn", ""))
    } | {"dino-vitt8-seed0"}
    before = {path: path.stat().st_mtime_ns for path in study.output_dir.rglob("cell.json")}
    assert make_study(cutouts, study.output_dir).run() == records
    assert "11 of 11 are done" in describe_plan(study)
    assert {path: path.stat().st_mtime_ns for path in study.output_dir.rglob("cell.json")} == before


def test_a_linear_cell_is_a_regression_on_frozen_features(finished):
    _, (splits, _), records, _, _ = finished
    cls = records[0]["directory"]
    subset = splits["train"].select(label_subset(splits["train"].labels, "16", 0))
    sets = [(extract_features(load_encoder(cls), one, *statistics(cls)).numpy(), one.labels.numpy())
            for one in (subset, splits["validation"], splits["test"])]  # fmt: skip
    scores, _ = linear_probe(*sets[0], *sets[1], sets[2][0])
    (linear,) = [r for r in records if r["method"] == "dino-linear" and r["subset"] == 0]
    assert linear["metrics"]["roc_auc"] == pytest.approx(roc_auc_score(sets[2][1], scores)) and not linear["settings"]


def test_what_was_reported_is_enough_to_resume(finished, tmp_path):
    _, cutouts, _, report, results = finished
    with pytest.raises(InputError, match="holds the report of a study, not its cells"):
        make_study(cutouts, report)
    unpack_cells(report, tmp_path)
    moved = make_study(cutouts, tmp_path)
    assert "11 of 11 are done" in describe_plan(moved)
    with pytest.raises(
        InputError, match=r"needs the weights of dino-vitt8-seed0, which are gone: delete .*cell\.json"
    ):
        make_study(cutouts, tmp_path, subsets=3)
    again = write_report(moved, moved.run(), tmp_path)  # without the scores of test_large
    assert not (tmp_path / "cells.parquet").exists()
    for row, before in zip(again["rows"], results["rows"]):
        assert row["roc_auc"] == before["roc_auc"]
        assert row["completeness_at_fpr_1e-3"]["value"] == pytest.approx(before["completeness_at_fpr_1e-3"]["value"])
    assert "Completeness has no interval" in caption(again) and "Completeness has" not in caption(results)


def test_tables_are_means_over_the_cells(finished):
    _, _, records, report, results = finished
    assert json.loads((report / "results.json").read_text()) == results
    table = (report / "table.md").read_text()
    for row in results["rows"]:
        own = [r for r in records if r["method"] == row["method"] and r["labels"] == "16"]
        assert row["roc_auc"]["value"] == pytest.approx(np.mean([r["metrics"]["roc_auc"] for r in own]))
        assert row["accuracy"]["value"] == pytest.approx(np.mean([r["metrics"]["accuracy"] for r in own]))
        large = np.mean([r["metrics_large"]["completeness_at_fpr_1e-3"] for r in own])
        assert row["completeness_at_fpr_1e-3"]["value"] == pytest.approx(large)
        assert f"{row['roc_auc']['value']:.3f} ({row['roc_auc']['low']:.3f} to" in table
    tabulars = (report / "table.tex").read_text().split(r"\end{tabular}")[:-1]
    heads = [line for line in table.splitlines() if line.startswith(("| labels", "| ROC AUC of frozen features"))]
    assert len(heads) == 3 and "ROC AUC minus that of small CNN (95 %)" in heads[1]
    for tabular, head in zip(tabulars, heads, strict=True):
        assert {line.count("&") for line in tabular.splitlines() if line.endswith(r"\\")} == {head.count("|") - 2}
    for picture in ("label_efficiency.png", "roc-vitt8.png", "calibration-vitt8.png"):
        assert (report / picture).read_bytes()[:4] == b"\x89PNG"


def test_a_collapse_is_told_below_the_table(finished):
    study, _, records, _, results = finished
    collapsed = [{**one, "collapsed": True} if one["labels"] == "none" else one for one in records]
    told = caption(collect(study, collapsed, results["rows"]))
    assert "This pretraining collapsed (seed 0)" in told and "collapsed" not in caption(results)


def test_cards_have_the_numbers_of_every_budget(finished, tmp_path):
    study, (_, info), records, _, results = finished
    cards = write_cards(study, records, results, tmp_path, tmp_path / "report")
    assert [card.name for card in cards] == ["lens-dino-vitt8.md", "lens-dino-vitt8-classifier.md"]
    (dino,) = [row for row in results["rows"] if row["method"] == "dino"]
    for card in cards:
        assert f"| 16 | fine-tuned | 1 x 2 | {dino['accuracy']['value']:.3f} (" in card.read_text()
        assert "| 16 | linear probe | 1 x 2 |" in card.read_text()
        assert "| 16 | small CNN | 1 x 2 |" in card.read_text()
        assert "(report/roc-vitt8.png)" in card.read_text() and info["fingerprint"] in card.read_text()


def test_continued_methods_go_on_from_the_pretrainings_of_an_earlier_study(tiny_cutouts, tmp_path):
    splits, info = tiny_cutouts
    simulated = splits, {**info, "name": "simulated", "simulated": True}
    earlier = make_study(simulated, tmp_path / "earlier", ["dino"], subsets=1)
    earlier.run()
    settings = {"pretraining": {"dino-continued": TINY_DINO}, "subsets": 1, "earlier_study": tmp_path / "earlier"}
    study = make_study(tiny_cutouts, tmp_path / "study", ["supervised", "dino-continued"], **settings)
    records = study.run()
    facts = read_run(records[0]["directory"])
    assert facts["init_run"] == read_run(tmp_path / "earlier" / "pretrainings" / "dino-vitt8-seed0")
    results = write_report(study, records, tmp_path / "study")
    table = (tmp_path / "study" / "table.md").read_text()
    assert (
        "DINO, continued, vitt8: 1 epochs on 96 images, after 1 on 96 images of simulated; 0 minutes on cpu" in table
    )
    assert results["rows"][1]["roc_auc"]["minus"]["supervised"]["p"] is None  # of one seed
    (card, _) = write_cards(study, records, results, tmp_path, tmp_path / "study")
    assert "went on from a pretraining on 96 cutouts of simulated (**simulated**)" in card.read_text()


def test_cells_of_a_pretraining_that_was_replaced_are_not_compared(tiny_cutouts, tmp_path):
    folder, name = tmp_path / "study", "dino-vitt8-seed0"

    def run(epochs=1):
        settings = {"dino": TINY_DINO | {"epochs": epochs}}
        study = make_study(tiny_cutouts, folder, ("dino-linear",), subsets=1, pretraining=settings)
        study.run()
        return list(study.failures.values())

    assert run() == []
    shutil.rmtree(folder / "pretrainings")
    assert run() == []  # it comes out the same
    shutil.rmtree(folder / "pretrainings")
    (failure,) = run(epochs=2)
    assert f"-subset0 was made from another {name}, which was replaced since: delete {folder}/cells/" in failure
    assert not (folder / "pretrainings" / name / "cell.json").exists()
    shutil.rmtree(folder / "cells")
    assert run(epochs=2) == []
    record = json.loads((folder / "pretrainings" / name / "cell.json").read_text())
    (folder / "pretrainings" / name / "cell.json").write_text(json.dumps(record | {"weights": 1}))
    with pytest.raises(InputError, match=f"was made from another {name}"):
        run(epochs=2)


def test_a_cell_that_is_killed_while_it_tidies_up_is_whole(tiny_cutouts, tmp_path, monkeypatch):
    remove = shutil.rmtree

    def killed(folder, **options):
        if Path(folder).name != "model" or not Path(folder).exists():
            return remove(folder, **options)
        (Path(folder) / "config.json").unlink()
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(shutil, "rmtree", killed)
        with pytest.raises(KeyboardInterrupt):
            make_study(tiny_cutouts, tmp_path, methods=["cnn"]).run()
    records = make_study(tiny_cutouts, tmp_path, methods=["cnn"]).run()
    assert [record["subset"] for record in records] == [0, 1]
    assert not list(tmp_path.rglob("checkpoints")) and len(list(tmp_path.rglob("model"))) == 1


@pytest.mark.parametrize("text", ["", "[]", "null", "[" * 10**5, '{"settings": 3}', '{"method": "cnn"}'])
def test_a_damaged_record_is_named(text, tiny_cutouts, tmp_path):
    study = make_study(tiny_cutouts, tmp_path, methods=["cnn"])
    path = study.directory(study.cells()[0]) / "cell.json"
    path.parent.mkdir(parents=True)
    path.write_text(text)
    with pytest.raises(InputError, match=r"cell\.json .*: delete it"):
        make_study(tiny_cutouts, tmp_path, methods=["cnn"])
    path.unlink()
    (tmp_path / "study.json").write_text(text)
    with pytest.raises(InputError, match=r"study\.json .*: delete it"):
        study.run()


def test_a_cell_is_taken_by_one_process_only(tiny_cutouts, tmp_path):
    study = make_study(tiny_cutouts, tmp_path, methods=["profiles"])
    cell = study.cells()[0]
    with study._claim(cell) as first, study._claim(cell) as second:
        assert (first, second) == (True, False)
    study.do(cell)
    with study._claim(cell) as late:
        assert not late


def test_mistakes_are_refused_before_anything_is_trained(tiny_cutouts, tmp_path):
    splits, info = tiny_cutouts
    without_test = {name: split for name, split in splits.items() if name != "test"}, info
    continued = {"methods": ["ibot-continued"], "pretraining": {"ibot-continued": TINY_DINO}}
    for change, message in (
        ({"methods": ["supervised", "byol"]}, "methods has 'byol'"),
        ({"labels": ["1k"]}, "labels must be a positive number or all"),
        ({"labels": ["16", "200"]}, "labels is 200 but the training split has 96"),
        ({"seeds": 0}, "seeds must be positive"),
        ({"methods": ["supervised-long"]}, "add a self-supervised method"),
        ({"methods": ["ibot-continued"]}, "give earlier_study"),
        (continued | {"earlier_study": tmp_path / "none"}, "none/pretrainings/ibot-vitt8-seed0"),
        ({"finetuning": {"all": {"stesp": 3}}}, "unknown setting 'stesp'"),
        ({"cutouts": without_test}, "no test split"),
    ):
        with pytest.raises(InputError, match=message):
            make_study(change.pop("cutouts", tiny_cutouts), tmp_path, **change)
    make_study(tiny_cutouts, tmp_path, methods=["cnn"], subsets=1).run()
    with pytest.raises(InputError, match="holds cnn-seed0-labels16-subset0, made with steps 1, now 2"):
        make_study(tiny_cutouts, tmp_path, ["cnn"], finetuning={"all": {**TINY_STEPS, "steps": 2}})
    assert make_study(tiny_cutouts, tmp_path, methods=["cnn"], subsets=1, labels=["016"]).labels == ["16"]
    with pytest.raises(InputError, match="smaller than crop_size 64"):
        make_study(tiny_cutouts, tmp_path, ["profiles"], finetuning={"all": {"crop_size": 64}})
    with pytest.raises(InputError, match="crop_size is 2: give at least 4"):
        make_study(tiny_cutouts, tmp_path / "2", ["cnn"], finetuning={"all": {**TINY_STEPS, "crop_size": 2}})
    make_study(tiny_cutouts, tmp_path / "other", ["profiles"], subsets=1).run()
    with pytest.raises(InputError, match="holds profiles-labels16-subset0, made with crop_size 16"):
        make_study(tiny_cutouts, tmp_path / "other", ["profiles"], finetuning={"all": {"crop_size": 8}})
    for data in ({None: (splits, {**info, "fingerprint": "another"})}, {0: tiny_cutouts}):
        with pytest.raises(InputError, match="holds a study of other data"):
            Study(data, tmp_path, ["profiles"], [], ["16"]).run()
    (tmp_path / "cells" / "cnn-seed0-labels16-subset0" / "cell.json").write_text("{")
    with pytest.raises(InputError, match=r"cell\.json cannot be read"):
        make_study(tiny_cutouts, tmp_path, methods=["cnn"], subsets=1)


@pytest.mark.parametrize(
    ("kind", "method", "settings", "message"),
    [
        ("pretraining", "dino", {"patch_size": 4}, "dino has patch_size 4, the fine-tuning of supervised 8: leave it"),
        ("finetuning", "dino", {"patch_size": 4}, "dino has patch_size 4, the pretraining of dino 8: leave it out"),
        ("pretraining", "dino", {"crop_size": 24}, "dino has crop_size 24, the fine-tuning of supervised 16: give --"),
        ("finetuning", "cnn", {"crop_size": 24}, "of cnn has crop_size 24, the pretraining of dino 16: give --"),
        ("pretraining", "dino", {"init": "x"}, "has init, .*: choose a -continued method and give earlier_study"),
        ("finetuning", "supervised", {"init": "x"}, "has init, .*: choose a -continued method and give earlier_study"),
        ("pretraining", "dino", {"seed": 1}, "the pretraining of dino has seed, .*: give seeds"),
        ("finetuning", "all", {"seed": 1}, "the fine-tuning of all has seed, .*: give seeds"),
        ("finetuning", "all", {"subset_seed": 1}, "the fine-tuning of all has subset_seed, .*: give subsets"),
        ("finetuning", "all", {"labels": "32"}, "the fine-tuning of all has labels, .*: choose labels"),
        ("pretraining", "dino", {"backbone": "vits8"}, "the pretraining of dino has backbone, .*: choose backbones"),
        ("pretraining", "dino", {"method": "ibot"}, "the pretraining of dino has method, .*: choose methods"),
        ("pretraining", "dino", {"output_dir": "x"}, "the pretraining of dino has output_dir, .*: leave it out"),
        ("pretraining", "dino", {"resume": "never"}, "the pretraining of dino has resume, .*: leave it out"),
        ("pretraining", "dino", {"stop_on_collapse": True}, "of dino has stop_on_collapse, .*: leave it out"),
    ],
)
def test_settings_that_make_cells_incomparable_are_refused(kind, method, settings, message, tiny_cutouts, tmp_path):
    given = {"pretraining": {"dino": TINY_DINO}, "finetuning": {"all": TINY_STEPS}}
    given[kind] = given[kind] | {method: given[kind].get(method, {}) | settings}
    with pytest.raises(InputError, match=message):
        make_study(tiny_cutouts, tmp_path, ("supervised", "dino", "cnn", "profiles"), **given)


def test_all_vits_may_have_other_patches_which_are_recorded(tiny_cutouts, tmp_path):
    patches = {"patch_size": 4}
    given = {"pretraining": {"dino": TINY_DINO | patches}, "finetuning": {"all": TINY_STEPS | patches}, "subsets": 1}
    study = make_study(tiny_cutouts, tmp_path, ("supervised", "dino"), **given)
    study.run()
    assert not study.failures
    found = {}
    for path in tmp_path.glob("*/*/model/config.json"):
        config, cell, run = (
            json.loads(one.read_text()) for one in (path, path.parents[1] / "cell.json", path.parents[1] / "run.json")
        )
        records = cell["settings"]["patch_size"], run["arguments"]["patch_size"]
        found[cell["method"], cell["labels"]] = config.get("backbone_config", config)["patch_size"], *records
    assert found == dict.fromkeys([("dino", "none"), ("dino", "16"), ("supervised", "16")], (4, 4, 4))


@pytest.mark.parametrize(
    "error", [InputError("no room"), torch.OutOfMemoryError("no room\nTry this."), MemoryError("no room")]
)
def test_a_cell_that_fails_does_not_end_the_study(tiny_cutouts, tmp_path, monkeypatch, error):
    study = make_study(tiny_cutouts, tmp_path, subsets=1)
    monkeypatch.setattr("lens_ssl_hf.study.run.pretrain", lambda *_, **__: raise_(error))
    assert sorted(record["method"] for record in study.run()) == ["cnn", "profiles", "supervised"]
    assert {cell.name: message for cell, message in study.failures.items()} == {"dino-vitt8-seed0": "no room"}
    monkeypatch.setattr("lens_ssl_hf.study.run.pretrain", lambda *_, **__: torch.empty(10**15))
    study = make_study(tiny_cutouts, tmp_path, subsets=1)
    study.run()
    assert "allocate memory" in str(study.failures)
    monkeypatch.setattr("lens_ssl_hf.study.run.pretrain", lambda *_, **__: raise_(RuntimeError("a bug")))
    with pytest.raises(RuntimeError, match="a bug"):
        make_study(tiny_cutouts, tmp_path, subsets=1).run()


def raise_(error):
    raise error


def test_folds_are_averaged_and_may_come_from_several_commands(tiny_cutouts, tmp_path):
    def folds(*numbers):
        return {fold: ({**tiny_cutouts[0], "test": make_split(40 + 8 * fold, 7 + fold)}, tiny_cutouts[1])
                for fold in numbers}  # fmt: skip

    def study(*numbers):
        return Study(folds(*numbers), tmp_path, ["profiles"], ["vitt8"], ["all"], seeds=1, subsets=1)

    study(0, 1).run()
    last = study(2)
    records = last.run()
    results = write_report(last, records, tmp_path)
    write_data(study(3))  # another command has begun
    assert collect(last, records, results["rows"]) == results == json.loads((tmp_path / "results.json").read_text())
    assert results["folds"] == [0, 1, 2] and results["test"]["num_lenses"] == 20 + 24 + 28
    (row,) = results["rows"]
    assert row["roc_auc"]["value"] == pytest.approx(np.mean([record["metrics"]["roc_auc"] for record in records]))
    assert "| all (96) | radial profiles |" in (tmp_path / "table.md").read_text()
    write_cell(tmp_path / "cells", "supervised", 0, 0, np.full(40, 0.5), np.arange(40) % 2, fold=0)
    begun = [*records, {**records[0], "method": "cnn", "directory": records[0]["directory"]}]
    assert "Left out, since not there for all seeds, subsets or folds: 1 of small CNN." in caption(
        collect(last, begun, compare(begun))
    )


@pytest.mark.slow
def test_two_commands_share_a_study_and_two_processes_train_it_together(tiny_cutouts, tmp_path):
    """Two commands do every cell once; under `accelerate launch` the cells score as from one process."""
    data = save_toy(tiny_cutouts, tmp_path / "toy")
    options = f"scripts/run_study.py --dataset {data} --methods supervised profiles --backbones vitt8 --labels 32 all "
    options += "--seeds 1 --subsets 2 --steps 2 --precision fp32"
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}

    def start(launcher, folder):
        command = [*launcher, *options.split(), "--output_dir", str(folder)]
        return subprocess.Popen(command, cwd=ROOT, text=True, stdout=-1, stderr=-1, env=environment)

    launch = [sys.executable, "-m", "accelerate.commands.launch", "--config_file", "scripts/accelerate/cpu.yaml"]
    workers = [start([sys.executable], tmp_path / "shared") for _ in range(2)]
    outputs = [worker.communicate(timeout=600) for worker in workers]
    assert [worker.returncode for worker in workers] == [0, 0], outputs
    together = start(launch, tmp_path / "together")
    output = together.communicate(timeout=600)
    assert together.returncode == 0, output
    results = [json.loads((tmp_path / name / "results.json").read_text()) for name in ("shared", "together")]
    scores = [
        [(c["method"], c["labels"], c["subset"], c["metrics"]["roc_auc"]) for c in one["cells"]] for one in results
    ]
    assert len(scores[0]) == 8 and scores[1] == [(*cell[:3], pytest.approx(cell[3], abs=2e-3)) for cell in scores[0]]
    facts = read_run(tmp_path / "together" / "cells" / "supervised-vitt8-seed0-labels32-subset0")
    assert facts["num_processes"] == 2


def test_the_long_baseline_costs_as_much_as_a_pretraining_and_a_finetuning(tiny_cutouts, tmp_path):
    study = make_study(tiny_cutouts, tmp_path, methods=["supervised-long", "dino"])
    long, plain = Cell("supervised-long", "vitt8", "16", 0, 0), Cell("supervised", "vitt8", "16", 0, 0)
    # DINO on 2 x 2 patches: the student sees 2 x 5 and 4 x 2 tokens forward and back, the teacher 2 x 5 forward.
    pretraining = 96 * (3 * (2 * 5 + 4 * 2) + 2 * 5)
    assert study.cost(Cell("dino", "vitt8", "none", 0, 0)) == pretraining
    assert study.cost(long) == pytest.approx(pretraining + study.cost(plain), rel=0.1)
    make_study(tiny_cutouts, tmp_path, methods=["supervised-long", "dino"], subsets=1).run()
    assert make_study(tiny_cutouts, tmp_path, methods=["supervised-long"]).cost(long) == study.cost(long)
    make_study(tiny_cutouts, tmp_path, methods=["supervised"])
    dearer = {"ibot": {**TINY_DINO, "epochs": 2}}
    with pytest.raises(InputError, match=r"labels16-subset0 was given the compute of a cheaper pretraining"):
        make_study(tiny_cutouts, tmp_path, methods=["ibot"], pretraining=dearer)


def test_the_long_baseline_pays_for_full_batches_alone(tiny_cutouts, tmp_path):
    """Of 96 images a pretraining in batches of 50 sees 50; earlier versions counted 96, and their cells stay."""
    methods, settings = ["supervised-long", "dino"], {"dino": TINY_DINO | {"batch_size": 50, "epochs": 10}}

    def study():
        return make_study(tiny_cutouts, tmp_path, methods, subsets=1, pretraining=settings)

    plan, cell = study(), Cell("supervised-long", "vitt8", "16", 0, 0)
    per_image, per_step = 3 * (2 * 5 + 4 * 2) + 2 * 5, 3 * 5 * 16
    assert plan.cost(Cell("dino", "vitt8", "none", 0, 0)) == 10 * 50 * per_image
    steps = {number: 1 + round(10 * number * per_image / per_step) for number in (50, 96)}
    assert plan.settings(cell).steps == steps[50]
    record = {"method": "supervised-long", "backbone": "vitt8", "labels": "16", "seed": 0, "subset": 0, "fold": None}
    path = plan.directory(cell) / "cell.json"
    path.parent.mkdir(parents=True)
    for made in range(steps[50] - 1, steps[96] + 2):
        path.write_text(json.dumps(record | {"settings": plan.recorded(cell) | {"steps": made}}))
        if made in steps.values():
            study()
            continue
        with pytest.raises(InputError, match=f"made with steps {made}, now {steps[50]}"):
            study()


def write_cell(folder, method, seed, subset, scores, labels, fold=None, groups=None):
    ids = [str(i) for i in range(len(labels))]
    kinds = ["lens" if label else "hard_nonlens" if i % 2 else "field" for i, label in enumerate(labels)]
    directory = folder / f"{method}-{seed}-{subset}-{fold}"
    Predictions(ids, labels, groups or ids, kinds, scores).save(directory / "predictions.parquet")
    cell = {"method": method, "backbone": "vitt8", "labels": "100", "num_labels": 100, "fold": fold}
    return {**cell, "seed": seed, "subset": subset, "directory": str(directory)}


def scores_of(labels, signal, noise):
    return 1 / (1 + np.exp(-(signal * labels + noise)))


def test_one_test_group_gives_values_without_intervals(tmp_path):
    rng, labels = np.random.default_rng(0), np.arange(60) % 2
    cells = [
        write_cell(
            tmp_path, "supervised", seed, subset, scores_of(labels, 1, rng.normal(size=60)), labels, groups=["a"] * 60
        )
        for seed in range(3)
        for subset in range(3)
    ]
    (row,) = compare(cells, num_bootstrap=20)
    assert 0.5 < row["roc_auc"]["value"] < 1 and row["roc_auc"]["low"] is row["roc_auc"]["high"] is None


def test_differences_are_paired_and_mean_over_folds(tmp_path):
    rng = np.random.default_rng(0)
    labels = np.arange(200) % 3 % 2
    cells, values = [], {}
    for fold in (0, 1):
        noise = rng.normal(size=200)  # common to both sides: a paired comparison is not disturbed by it
        for method, signal in (("supervised", 1.0), ("dino", 1.6)):
            for seed in range(3):
                for subset in range(3):
                    scores = scores_of(labels, signal, noise + 0.05 * rng.normal(size=200))
                    cells.append(write_cell(tmp_path, method, seed, subset, scores, labels, fold))
                    values.setdefault(method, []).append(roc_auc_score(labels, scores))
    cells.append(write_cell(tmp_path, "ibot", 0, 0, scores, labels, fold=0))  # without fold 1: not whole
    supervised, dino = compare(cells, num_bootstrap=500)
    assert (supervised["seeds"], supervised["subsets"]) == (3, 3) and dino["method"] == "dino"
    assert dino["roc_auc"]["value"] == pytest.approx(np.mean(values["dino"]))
    assert dino["accuracy"]["value"] > 0 and "minus" not in supervised["roc_auc"]
    for name in ("roc_auc", "auc_vs_hard_nonlens"):
        minus, ours, base = dino[name]["minus"]["supervised"], dino[name], supervised[name]
        assert minus["value"] == pytest.approx(ours["value"] - base["value"])
        assert minus["low"] > 0 and minus["p"] == minus["p_holm"] < 0.001
        assert minus["high"] - minus["low"] < np.hypot(*(side["high"] - side["low"] for side in (ours, base)))
    cells.append(write_cell(tmp_path, "simsiam", 0, 0, np.full(150, 0.5), labels[:150], fold=0))
    cells.append(write_cell(tmp_path, "simsiam", 0, 0, np.full(200, 0.5), labels, fold=1))
    with pytest.raises(InputError, match="another test set"):
        compare(cells, num_bootstrap=10)


@pytest.mark.parametrize("number", [4, 5])
def test_few_hard_nonlenses_give_no_auc(number, tmp_path):
    """As in an evaluation: docs/evaluation.md, "What is refused"."""
    labels = np.arange(40) < 20
    kinds = ["lens" if label else "field" for label in labels]
    kinds[20 : 20 + number] = ["hard_nonlens"] * number
    cells = [write_cell(tmp_path, "supervised", 0, 0, np.linspace(1, 0, 40), labels.astype(int))]
    path = Path(cells[0]["directory"]) / "predictions.parquet"
    table = Predictions.load(path)
    table.subclass = kinds
    table.save(path)
    measured = measure(table.label, table.score, table.group, kinds, num_bootstrap=0)["auc_vs_hard_nonlens"]["value"]
    (row,) = compare(cells, num_bootstrap=10)
    assert row.get("auc_vs_hard_nonlens", {}).get("value") == measured == (1.0 if number == 5 else None)


def test_short_runs_are_compared_with_scratch_the_other_momentum_and_small_batches(tmp_path):
    """scripts/short_runs.py: one seed beside three, and a start that has no rival."""
    compared = runpy.run_path(str(ROOT / "scripts" / "short_runs.py"))["compared"]
    rng, labels = np.random.default_rng(5), np.arange(200) % 3 % 2
    starts = {"supervised": (1.0, 3), "dino, 300, constant": (2.0, 3), "dino, 300, to 1": (1.5, 1)}
    starts |= {
        "dino, 3,000, constant": (2.5, 2),
        "dino, batches of 128, as many steps": (2.2, 1),
        "supervised-long": (2.4, 1),
    }
    cells, aucs = [], {}
    for start, (signal, seeds) in starts.items():
        for seed in range(seeds):
            scores = scores_of(labels, signal, rng.normal(size=200))
            cells.append(write_cell(tmp_path, start, seed, 0, scores, labels))
            aucs.setdefault(start, []).append(roc_auc_score(labels, scores))
    rows = {row["start"]: row for row in compared(cells)}
    means = {start: np.mean(values) for start, values in aucs.items()}
    assert {start: row["value"] for start, row in rows.items()} == pytest.approx(means)
    for start in list(starts)[1:]:
        assert rows[start]["minus from scratch"]["value"] == pytest.approx(means[start] - means["supervised"])
    rivals = {start: row["rival"] for start, row in rows.items() if "rival" in row}
    assert rivals == {
        "dino, 300, constant": "dino, 300, to 1",
        "dino, batches of 128, as many steps": "dino, 3,000, constant",
    }
    for start, rival in rivals.items():
        both = min(len(aucs[start]), len(aucs[rival]))  # of the seeds that both have
        gain = np.mean(aucs[start][:both]) - np.mean(aucs[rival][:both])
        assert rows[start]["minus rival"]["value"] == pytest.approx(gain)
    assert rows["dino, 300, to 1"]["seeds"] == 1


def test_an_ensemble_is_the_mean_logit_of_all_seeds(tmp_path):
    rng, labels = np.random.default_rng(4), np.arange(200) % 3 % 2
    cells, by_hand, single = [], [], []
    for fold in (0, 1):
        for subset in (0, 1):
            logits = labels + rng.normal(size=(3, 200))
            for seed, one in enumerate(logits):
                cells.append(write_cell(tmp_path, "dino", seed, subset, 1 / (1 + np.exp(-one)), labels, fold))
                single.append(roc_auc_score(labels, one))
            by_hand.append(roc_auc_score(labels, logits.mean(axis=0)))
            for seed in (0, 1):  # too few
                cells.append(write_cell(tmp_path, "ibot", seed, subset, 1 / (1 + np.exp(-one)), labels, fold))
    (row,) = ensembles(cells)
    assert (row["method"], row["labels"], row["members"], row["subsets"]) == ("dino", "100", 3, 2)
    found = row["roc_auc"]
    assert found["value"] == pytest.approx(np.mean(by_hand)) and found["low"] < found["value"] < found["high"]
    minus = found["minus"]["single"]
    assert minus["value"] == pytest.approx(np.mean(by_hand) - np.mean(single)) and minus["low"] > 0
    assert minus["test_set_alone"] and "auc_vs_hard_nonlens" in row


def test_intervals_know_seeds_subsets_and_groups(tmp_path):
    """Cells that differ widen the interval, where there are enough of them; and so do cutouts of few groups."""
    rng = np.random.default_rng(1)
    labels = np.arange(400) % 2
    base = scores_of(labels, 1.0, rng.normal(size=400))
    by_group = np.arange(400) // 20 % 2
    alike = scores_of(by_group, 1.0, np.repeat(rng.normal(size=20), 20))  # within a group
    groups = [str(i // 20) for i in range(400)]
    sets = {
        "grouped": [write_cell(tmp_path / "grouped", "dino", 0, 0, alike, by_group, groups=groups)],
        "single": [write_cell(tmp_path / "single", "dino", 0, 0, alike, by_group)],
    }
    for name, seeds, subsets in (("same", 3, 3), ("other", 3, 3), ("few", 2, 3), ("fewer", 3, 2)):
        scores = [
            base if name == "same" else scores_of(labels, 0.2 + 0.8 * k, rng.normal(size=400)) for k in range(seeds)
        ]
        sets[name] = [
            write_cell(tmp_path / name, "dino", k, s, scores[k], labels) for k in range(seeds) for s in range(subsets)
        ]
    found = {name: compare(cells, num_bootstrap=1000)[0]["roc_auc"] for name, cells in sets.items()}
    widths = {name: one["high"] - one["low"] for name, one in found.items()}
    standard_error = np.std([roc_auc_score(labels[i], base[i]) for i in rng.integers(400, size=(500, 400))])
    assert widths["same"] == pytest.approx(2 * 1.96 * standard_error, rel=0.15)
    assert widths["other"] > 3 * widths["same"] and widths["few"] < 1.5 * widths["same"]
    assert widths["grouped"] > 3 * widths["single"]
    assert [name for name, one in found.items() if not one["test_set_alone"]] == ["same", "other"]
    (row,) = compare([write_cell(tmp_path / "one", "dino", 0, 0, base, labels, groups=["all"] * 400)])
    assert row["roc_auc"]["low"] is row["roc_auc"]["high"] is None  # a group tells nothing of others


@pytest.mark.parametrize(
    ("seeds", "subsets", "labels", "baseline", "is_enough"),
    [
        (3, 3, "100", "supervised", True),
        (2, 3, "100", "supervised", False),
        (3, 2, "100", "supervised", False),
        (3, 1, "100", "supervised", False),
        (3, 1, "all", "supervised", True),
        (1, 1, "all", "supervised", False),
        (3, 3, "100", "profiles", True),  # of one seed, on which it does not depend
    ],
)
def test_a_p_value_needs_three_seeds_and_subsets(seeds, subsets, labels, baseline, is_enough, tmp_path):
    rng, truth, cells = np.random.default_rng(0), np.arange(60) % 2, []
    for method in ("dino", baseline):
        for seed in range(1 if method == "profiles" else seeds):
            for subset in range(subsets):
                scores = scores_of(truth, 1.0 + rng.normal(), rng.normal(size=60))
                cells.append({**write_cell(tmp_path, method, seed, subset, scores, truth), "labels": labels})
    (row,) = [row for row in compare(cells, num_bootstrap=100) if row["method"] == "dino"]
    minus = row["roc_auc"]["minus"][baseline]
    assert row["roc_auc"]["test_set_alone"] is minus["test_set_alone"] is not is_enough
    assert (minus["p"] is not None) == is_enough and minus["low"] < minus["value"] < minus["high"]


def test_the_largest_rectangle_of_cells_is_compared(tmp_path):
    labels = np.arange(40) % 2
    grid = [(seed, subset) for seed in range(2) for subset in range(4)] + [(2, 0)]
    cells = [write_cell(tmp_path, "dino", *key, np.full(40, 0.5), labels) for key in grid]
    (row,) = compare(cells, num_bootstrap=20)
    assert (row["seeds"], row["subsets"], row["left_out"]) == (2, 4, 1)
    grid = [(seed, subset) for seed in range(3) for subset in range(3)]
    more = [(0, subset) for subset in range(3, 14)]  # a p-value is worth more than many subsets of one seed
    cells = [write_cell(tmp_path, "dino", *key, np.full(40, 0.5), labels) for key in grid + more]
    (row,) = compare(cells, num_bootstrap=20)
    assert (row["seeds"], row["subsets"], row["left_out"]) == (3, 3, 11)


def test_holm():
    p_values = {"simsiam": 0.03, "dino": 0.01, "ibot": 0.04}
    rows = [{"method": m, "roc_auc": {"minus": {"supervised": {"p": p}}}} for m, p in p_values.items()]
    _correct(rows)
    corrected = [row["roc_auc"]["minus"]["supervised"]["p_holm"] for row in rows]
    assert corrected == pytest.approx([0.06, 0.03, 0.06])  # 3 x 0.01, 2 x 0.03, and 0.04 not below its predecessor


def test_accuracy_is_that_of_scikit_learn(tmp_path):
    rng = np.random.default_rng(3)
    labels, scores = rng.integers(2, size=50), rng.random(50)
    (row,) = compare([write_cell(tmp_path, "dino", 0, 0, scores, labels)], num_bootstrap=20)
    assert row["accuracy"]["value"] == pytest.approx(accuracy_score(labels, scores >= 0.5))


def test_a_plan_of_trials_is_checked_before_the_first(tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(ROOT / "scripts")
    from search_recipes import read_log, read_plan

    plan = read_plan(ROOT / "model_cards" / "results" / "trials.yaml")
    logged = {record["name"] for record in read_log(ROOT / "model_cards" / "results" / "trials.json")}
    assert len(plan["trials"]) > 30 and "ibot-quarter-views-1800" in logged
    first = {"name": "first", "method": "dino", "pretraining": {"epochs": 2}}
    for trials, message in (
        ([{"method": "dino"}], "has no name and method"),
        ([first, first], "is there twice"),
        ([{**first, "name": "../first"}], "no plain name"),
        ([{**first, "labels": 100}], "labels of first is 100: give a list"),
        ([first, {**first, "name": "second", "pretrained_by": "third"}], "second and third, which must stand before"),
        ([first, {"name": "second", "method": "dino", "pretrained_by": "first"}], "differ in method or pretraining"),
        (None, "has no 'trials'"),
    ):
        path = tmp_path / "trials.yaml"
        path.write_text(yaml.safe_dump({**plan, "trials": trials}))
        with pytest.raises(InputError, match=message):
            read_plan(path)
    (tmp_path / "log.json").write_text("{}")
    with pytest.raises(InputError, match="is no log of trials"):
        read_log(tmp_path / "log.json")
