"""Fine-tuning on graded objects of a survey, and which of them a ranking proposes to grade next."""

import importlib
import json
import re
import shutil
from pathlib import Path

import numpy as np
import pandas
import pyarrow
import pytest
import torch
from conftest import make_cutouts, save_toy
from safetensors.torch import load_file, save_file
from tiny_runs import cutouts as cutouts_of
from tiny_runs import write_classifier_run

from lens_ssl_hf import InputError, finetune, grade, rank, read_cutout, score
from lens_ssl_hf.data.tensors import CutoutTensors, center_crop
from lens_ssl_hf.survey import proposals
from lens_ssl_hf.survey.graded_cutouts import graded_cutouts

pytestmark = pytest.mark.usefixtures("in_tmp_path")

SETTINGS = {"backbone": "vitt8", "precision": "fp32", "log_every": 1, "steps": 4, "eval_every": 2, "batch_size": 16}
ASINH = {"kind": "asinh", "black": [-2.0] * 3, "white": [60.0, 50.0, 70.0], "softening": [5.0, 4.0, 6.0]}


@pytest.fixture
def survey():
    """Scores of 12 files of flux, and the splits and facts of a dataset of another stretch."""
    Path("cutouts").mkdir()
    for i in range(12):
        np.save(f"cutouts/{i}.npy", np.random.default_rng(i).normal(10, 9, (3, 50, 50)).astype("f4"))
    run = write_classifier_run(Path("model"))
    path = run / "model" / "config.json"
    other = cutouts_of(3) | {"stretch": ASINH | {"softening": [3.0] * 3}}
    path.write_text(json.dumps(json.loads(path.read_text()) | {"cutouts": other}))
    score(str(run), "cutouts", "scores")
    splits, info = make_cutouts()
    return splits, info | {"stretch": ASINH}


def write_grades(ids, grades, grader="ann", name="grades.csv"):
    pandas.DataFrame({"id": ids, "grade": grades, "grader": grader}).to_csv(name, index=False)
    return name


def test_graded_cutouts_are_those_of_the_dataset_with_the_share_of_votes(survey, caplog):
    _, info = survey
    tables = [write_grades([f"{i}.npy" for i in (7, 3, 5, 1)], ["A", "X", "B", "A"])]
    tables.append(write_grades(["3.npy", "7.npy"], ["A", "X"], "ben", "other.csv"))
    tables.append(write_grades(["7.npy"], ["B"], "cy", "third.csv"))
    found, share = graded_cutouts(tables, "scores", info, held_out={"1.npy", "0-1"})
    assert found.ids == ["3.npy", "5.npy", "7.npy"] and share.tolist() == pytest.approx([0.5, 1, 2 / 3])
    assert found.labels.tolist() == [0, 1, 1] and "1 of 4 graded objects are in validation or test" in caplog.text
    like = {"cutouts": {name: info[name] for name in cutouts_of(3)}, "num_channels": 3, "image_size": 32}
    config = type("Config", (), {"to_dict": lambda self: like})()
    expected = [center_crop(read_cutout(f"cutouts/{i}.npy", config), info["size"]) for i in (3, 5, 7)]
    assert torch.equal(found.pixels, torch.from_numpy(np.stack(expected)))


def test_a_scale_and_a_zero_point_are_the_same_but_for_what_nothing_is_scaled_for(survey):
    """A WCS gives a scale that differs from a stated one in its last digits."""
    grades, info = write_grades(["3.npy"], ["A"]), survey[1]
    near = info | {"pixel_scale": 0.16800000003627247, "zero_point": 26.9995}
    found, expected = (graded_cutouts(grades, "scores", one)[0].pixels for one in (near, info))
    assert torch.equal(found, expected)


def test_a_graded_cutout_that_is_too_small_is_left_out(survey, caplog):
    np.save("cutouts/12.npy", np.load("cutouts/3.npy")[:, 8:-8, 8:-8])  # enough for the model, not for the dataset
    score("model", "cutouts", "again")
    grades = write_grades(["12.npy", "3.npy"], ["A", "B"])
    found, share = graded_cutouts([grades], "again", survey[1])
    assert found.ids == ["3.npy"] and share.tolist() == [1]
    assert "1 of 2 graded cutouts are not as the dataset needs them, and left out; the first is 12.npy" in caplog.text


def test_graded_cutouts_of_a_saved_dataset_are_its_own_and_its_test_split_is_left_out(caplog):
    splits, info = make_cutouts()
    score(str(write_classifier_run(Path("model"))), save_toy((splits, info), Path("data")), "scores")
    grades = write_grades(["0-3", "0-90", "2-1", "1-5"], ["A", "X", "A", "A"])
    held_out = {*splits["validation"].ids, *splits["test"].ids}
    found, share = graded_cutouts([grades], "scores", info, held_out)
    assert found.ids == ["0-3", "0-90"] and share.tolist() == [1, 0] and "2 of 4 graded objects" in caplog.text
    assert torch.equal(found.pixels, splits["train"].pixels[[3, 90]])
    run = finetune("data", "run", extra_labels=[grades], extra_scores="scores", **SETTINGS)
    facts = json.loads((run / "run.json").read_text())
    assert facts["num_extra"] == 2 and facts["num_labels"] == len(splits["train"])  # whose labels of these two go
    with pytest.raises(InputError, match="all graded objects of scores are in the validation or test split"):
        finetune("data", "x", extra_labels=write_grades(["2-1"], ["A"]), extra_scores="scores", **SETTINGS)


def test_what_was_scored_under_another_name_is_still_held_out_and_counts_once(survey, caplog):
    splits, info = survey
    grades = write_grades([f"{i}.npy" for i in range(4)], ["A", "X", "A", "A"])
    pool, _ = graded_cutouts([grades], "scores", info)
    for name, chosen in (("train", [0]), ("test", [2, 3])):
        one, also = splits[name], pool.select(torch.tensor(chosen))
        texts = (getattr(one, key) + [f"{name} {text}" for text in getattr(also, key)] for key in ("ids", "groups"))
        pixels, labels = (torch.cat([getattr(both, key) for both in (one, also)]) for key in ("pixels", "labels"))
        splits = splits | {name: CutoutTensors(pixels, labels, *texts, one.subclasses + also.subclasses)}
    run = finetune((splits, info), "run", extra_labels=[grades], extra_scores="scores", **SETTINGS)
    facts = json.loads((run / "run.json").read_text())
    assert facts["num_extra"] == 2 and facts["num_labels"] == len(splits["train"]) + 1
    assert "2 of 4 graded cutouts are in validation or test: left out" in caplog.text
    assert "labels are of graded cutouts: the grades count" in caplog.text
    grades = write_grades(["2.npy"], ["A"])
    with pytest.raises(InputError, match="all graded cutouts are in the validation or test split"):
        finetune((splits, info), "x", extra_labels=[grades], extra_scores="scores", **SETTINGS)


def test_a_training_on_grades_goes_on_with_the_same_ones_only(survey):
    grades = write_grades([f"{i}.npy" for i in range(12)], ["A", "X"] * 6)
    other = write_grades(["0.npy", "4.npy"], ["X", "X"], "ben", "other.csv")
    extra = {"extra_labels": [grades, Path(other)], "extra_scores": Path("scores")}
    run = finetune(survey, "run", labels=20, **SETTINGS, **extra)
    facts = json.loads((run / "run.json").read_text())
    assert facts["num_extra"] == 12 and facts["num_labels"] == facts["num_train_images"] == 32
    shutil.copytree(run, "cut")
    shutil.rmtree("cut/model")
    Path("cut/checkpoints/step-00000004.safetensors").unlink(missing_ok=True)
    for change in ({}, {"extra_labels": [grades], "extra_scores": "scores"}):
        with pytest.raises(InputError, match=r"begun otherwise \(.*the extra labels or their cutouts are"):
            finetune(survey, "cut", labels=20, resume="auto", **SETTINGS, **change)
    shutil.copy(grades, "moved.csv")
    extra["extra_labels"] = ["moved.csv", other]
    resumed = finetune(survey, "cut", labels=20, resume="auto", **SETTINGS, **extra)
    weights, expected = (load_file(one / "model" / "model.safetensors") for one in (resumed, run))
    assert all(torch.equal(weights[name], expected[name]) for name in expected)


def test_graders_who_disagree_give_a_soft_label(survey):
    """The loss is the cross entropy with both answers: of 0.5 each it is never below log 2."""
    ids = [f"{i}.npy" for i in range(12)]
    tables = [write_grades(ids, ["A"] * 12), write_grades(ids, ["X"] * 12, "ben", "other.csv")]
    splits, info = survey
    splits = splits | {"train": splits["train"].select(torch.tensor([0, 1]))}
    settings = SETTINGS | {"steps": 60, "batch_size": 14, "eval_every": 60, "learning_rate": 1e-3}
    run = finetune((splits, info), "run", extra_labels=tables, extra_scores="scores", **settings)
    loss = [json.loads(line).get("loss") for line in (run / "metrics.jsonl").read_text().splitlines()]
    assert min(one for one in loss if one is not None) > 12 / 14 * np.log(2) - 1e-6


@pytest.mark.parametrize(
    ("spoil", "options", "match"),
    [
        (lambda: None, {"extra_scores": None}, "extra_labels and extra_scores need each other"),
        (
            lambda: write_grades(["99.npy"], ["A"]),
            {},
            r"grades.csv has a grade of '99.npy', which scores does not",
        ),
        (lambda: write_grades(["0.npy"], ["E"]), {}, r"grades.csv, row 1 has the grade 'E'"),
        (
            lambda: Path("cutouts/11.npy").unlink(),
            {},
            r"the graded cutouts cannot be read \(cutouts is not what",
        ),
        (lambda: shutil.rmtree("cutouts"), {}, r"the graded cutouts cannot be read \(cutouts does not exist"),
        (lambda: None, {"extra_scores": "nowhere"}, "nowhere holds no readable manifest.json"),
        (
            lambda: None,
            {"size": 64},
            r"the graded cutout 0.npy is not as the dataset needs it \(.* 50 x 50 pixels",
        ),
        (lambda: None, {"bands": ["r", "g", "i"]}, r"the cutouts of cutouts state no bands: they were scored with"),
        (lambda: None, {"pixel_scale": 0.171}, "state no pixel_scale: they were scored with 0.168, but the dataset"),
        (lambda: None, {"zero_point": 27.002}, "state no zero_point: they were scored with 27.0, but the dataset has"),
    ],
)
def test_grades_that_cannot_be_trained_on_end_in_one_sentence(spoil, options, match, survey):
    splits, info = survey
    extra = {"extra_labels": write_grades(["0.npy", "1.npy"], ["A", "X"]), "extra_scores": "scores"}
    spoil()
    extra |= {name: value for name, value in options.items() if name in extra}
    with pytest.raises(InputError, match=match) as error:
        finetune((splits, info | options), "run", **SETTINGS, **extra)
    assert "\n" not in str(error.value) and not Path("run").exists()


@pytest.fixture
def ensemble():
    """Scores of noise by two models, with embeddings; and its rows."""
    rng = np.random.default_rng(0)
    flux = rng.normal(10, 9, (150, 3, 40, 40)).astype("f4")
    flux[:, :, 16:24, 16:24] += rng.uniform(0, 60, (150, 3, 1, 1))
    np.save("stack.npy", flux)
    models = [str(write_classifier_run(Path(name))) for name in ("one", "two")]
    for name, shift in zip(models, (-8, 8)):
        weights = load_file(f"{name}/model/model.safetensors")
        weights["classifier.bias"][1] += shift
        save_file(weights, f"{name}/model/model.safetensors", {"format": "pt"})
        config = json.loads(Path(name, "model/config.json").read_text())
        config["cutouts"]["stretch"] = ASINH | {"softening": [3.0 + (shift > 0)] * 3}
        Path(name, "model/config.json").write_text(json.dumps(config))
    score(models, "stack.npy", "scores", shard_size=40, embeddings=True)
    return pandas.concat(map(pandas.read_parquet, sorted(Path("scores").glob("*.parquet"))), ignore_index=True)


def test_uncertain_rows_are_nearest_to_the_threshold_by_their_spread(ensemble):
    facts = rank("scores", "ranking", top=20, audit=10, uncertain=15)
    found = pandas.read_parquet("ranking/ranking.parquet")
    listed, proposed = found[:30], found[30:]
    rest = ensemble[~ensemble["id"].isin(listed["id"])]
    order = (rest["logit"].abs() / rest["spread"]).argsort()
    assert proposed["id"].to_list() == rest["id"].iloc[order[:15]].to_list() and facts["uncertain"] == 15
    assert set(proposed["sample"]) == {"uncertain"}
    assert proposed[["rank", "inclusion_probability"]].isna().all(axis=None)
    tables = [write_grades(proposed["id"][:5], ["A"] * 5), write_grades(proposed["id"][5:8], ["X"] * 3, "b", "b.csv")]
    rank("scores", "next", top=20, audit=10, uncertain=15, graded=tables)
    again = pandas.read_parquet("next/ranking.parquet")[30:]
    assert again["id"].to_list() == rest["id"].iloc[order[8:23]].to_list()


def test_a_calibration_moves_the_threshold():
    table = pyarrow.table({"logit": [-1.0, 0.0, 1.9, 4.0]})
    assert proposals.doubt(table, None).argmax() == 1
    assert proposals.doubt(table, {"a": 2.0, "b": -4.0}).argmax() == 2


def test_diverse_rows_are_of_all_kinds_among_the_best(ensemble):
    facts = rank("scores", "ranking", top=10, uncertain=3, diverse=4)
    found = pandas.read_parquet("ranking/ranking.parquet")
    assert found["sample"].to_list() == ["top"] * 10 + ["uncertain"] * 3 + ["diverse"] * 4
    assert found["id"].is_unique and facts["diverse"] == 4 and "embedding" not in found
    rest = ensemble[~ensemble["id"].isin(found["id"][:13])].sort_values("logit", ascending=False)
    assert set(found["id"][13:]) <= set(rest["id"][: 4 * 20])
    rng = np.random.default_rng(0)
    kinds = rng.choice(8, 2000, p=[0.86, *[0.02] * 7])
    embeddings = 20 * np.eye(8)[kinds] + rng.normal(size=(2000, 8))
    assert set(kinds[proposals.unlike(embeddings, 12, seed=0)]) == set(range(8))
    assert len(set(kinds[:12])) < 5  # as many at random


def test_grades_of_proposed_rows_change_no_estimate(ensemble):
    rank("scores", "ranking", top=40, audit=30, uncertain=20)
    found = pandas.read_parquet("ranking/ranking.parquet")
    is_lens = (np.arange(len(found)) % 3 == 0) & (np.arange(len(found)) < 50)
    grades = np.where(is_lens, "A", "X")
    plain = grade("ranking", write_grades(found["id"][:70], grades[:70]), "plain")
    more = grade("ranking", write_grades(found["id"], grades), "more")
    for name in ("purity", "completeness", "calibration"):
        assert plain[name] == more[name]
    assert "20 graded rows were chosen by their scores" in Path("more/grading.md").read_text()


def test_diverse_rows_need_embeddings(survey):
    with pytest.raises(InputError, match="scores holds no embeddings: score again with --embeddings, or"):
        rank("scores", "ranking", diverse=3)
    assert not Path("ranking").exists()


def test_the_experiment_says_what_its_curves_do(monkeypatch):
    root = Path(__file__).parents[1]
    monkeypatch.syspath_prepend(root / "scripts")
    needed = importlib.import_module("active_learning").needed
    assert needed({"grades": [5, 9, 13], "completeness": [0.5, 0.6, 0.55]}) == 9
    assert needed({"grades": [5], "completeness": [0.5]}) is None
    found = json.loads((root / "model_cards/results/active_learning.json").read_text())
    text = (root / "docs/survey.md").read_text()
    for name, one in found["strategies"].items():
        assert one["grades_needed"] == list(map(needed, one["curves"]))
        low, high = (f"{limit(one['grades_needed']):,}" for limit in (min, max))
        assert re.search(rf"\b{low}\s+to\s+{high}\b", text), name
