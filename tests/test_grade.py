"""Estimates from grades against simulation and brute force; calibrations that score finds; bad input."""

import json
import shutil
import sys
from dataclasses import asdict
from pathlib import Path

import numpy as np
import pandas
import pyarrow
import pytest
import torch
from astropy.table import Table
from conftest import make_cutouts, save_toy
from pyarrow import parquet
from scipy.special import expit
from scipy.stats import hypergeom
from tiny_runs import write_classifier_run

from lens_ssl_hf import InputError, export, grade, rank, score
from lens_ssl_hf.commands import grade as command
from lens_ssl_hf.inference.classifier import Classifier
from lens_ssl_hf.survey import calibration as calibrations
from lens_ssl_hf.survey import manifest as manifests
from lens_ssl_hf.survey.estimates import completeness, lens_interval, lenses_beyond, lenses_of_survey
from lens_ssl_hf.survey.grades import agreement, grades_of, read_grades, votes_by_object
from lens_ssl_hf.survey.inputs import Options

pytestmark = pytest.mark.usefixtures("in_tmp_path")

ROWS, TOP, AUDIT = 2000, 100, 400


def write_scores(logits, ids=None, folder="scores"):
    """One shard of scores of a model, whose cutouts are gone."""
    count = len(logits)
    options = {"shard_size": count, "views": 1, "embeddings": False, **asdict(Options())}
    model = {"model": "m", "weights_sha256": "0" * 64, "cutouts": {}, "num_bands": 3, "size": 32}
    given = {"path": "gone", "kind": "files", "cutouts": count, "fingerprint": "0"}
    manifest = {"models": [model], "input": given, "options": options, "calibration": None, "versions": {}}
    Path(folder).mkdir()
    Path(folder, "manifest.json").write_text(json.dumps(manifest))
    columns = {"id": np.arange(count) + 2**60 if ids is None else ids, "source": [""] * count}
    nothing = pyarrow.nulls(count, pyarrow.float64())
    columns |= {"ra": nothing, "dec": nothing, "p_lens": nothing, "score": expit(logits), "logit": logits}
    facts = json.dumps({"key": manifests.key_of(manifest), "flagged": 0, "first_flag": None})
    table = pyarrow.table(columns).replace_schema_metadata({manifests.METADATA: facts})
    parquet.write_table(table, f"{folder}/scores-00000-of-00001.parquet")


@pytest.fixture
def survey():
    """A ranking, and for each of its ids whether it is a lens: P(lens) = 1 / (1 + exp(-(logit - 2)))."""
    rng = np.random.default_rng(0)
    logits = rng.normal(-3, 2.5, ROWS)
    is_lens = rng.random(ROWS) < expit(logits - 2)
    write_scores(logits)
    rank("scores", "ranking", top=TOP, audit=AUDIT)
    table = parquet.read_table("ranking/ranking.parquet").to_pandas()
    return table.assign(is_lens=is_lens[table["id"] - 2**60])


def write_grades(ids, grades, name="grades.csv", **columns):
    pandas.DataFrame({"id": ids, "grade": grades, **columns}).to_csv(name, index=False)
    return name


def graded(survey, name="grades.csv"):
    return write_grades(survey["id"], np.where(survey["is_lens"], "B", "x"), name)


def test_numbers_of_lenses_are_those_that_neither_tail_excludes():
    population, drawn = 60, 20
    for found in range(drawn + 1):
        kept = [
            number
            for number in range(found, population - drawn + found + 1)
            if min(hypergeom.sf(found - 1, population, number, drawn), hypergeom.cdf(found, population, number, drawn))
            > 0.025
        ]
        assert lens_interval(found, drawn, population) == (kept[0], kept[-1])
    assert lens_interval(3, 20, 20) == (3, 3) and lens_interval(0, 300, 10**9)[1] == pytest.approx(1.222e7, rel=1e-3)
    assert lens_interval(1, 20, 60, ungraded=2) == (lens_interval(1, 20, 60)[0], lens_interval(3, 20, 60)[1])


@pytest.mark.parametrize("beyond", [0, 4, 40, 400])
def test_intervals_of_completeness_cover_the_truth(beyond):
    rest, drawn, inside, draws = 20_000, 300, 60, 1000
    top = pandas.DataFrame({"is_lens": np.arange(100) < inside})
    found, covered, estimates = {}, [], []
    for lenses in hypergeom(rest, beyond, drawn).rvs(draws, random_state=0):
        if lenses not in found:
            audit = pandas.DataFrame({"is_lens": (np.arange(drawn) < lenses).astype(float)})
            found[lenses] = lenses_beyond(top.astype(float), audit, rest)
        estimates.append(found[lenses]["value"])
        one = completeness(top.astype(float), found[lenses], 100)
        covered.append(one["low"] <= inside / (inside + beyond) <= one["high"])
        assert (one["completeness"] is None) == (lenses == 0)
    assert np.mean(covered) >= 0.945  # 95 % less two standard errors of the simulation
    assert np.mean(estimates) == pytest.approx(beyond, abs=4 * max(np.std(estimates), 1e-9) / draws**0.5)


def test_first_rows_without_a_grade_count_alike_in_completeness_and_in_all_lenses():
    """8 of 16 graded ones are lenses, so 10 of 20 are; 10 more are in the rest by 3 of 30 audited rows of 100."""
    top = pandas.DataFrame({"is_lens": [1.0] * 8 + [0.0] * 8 + [np.nan] * 4})
    beyond = lenses_beyond(top, pandas.DataFrame({"is_lens": [1.0] * 3 + [0.0] * 27}), 100)
    assert lenses_of_survey(top, beyond)["lenses"]["value"] == pytest.approx(20)
    found = [completeness(top, beyond, rank) for rank in (8, 16, 18, 20)]
    assert [one["completeness"] for one in found] == pytest.approx([0.4, 0.4, 0.45, 0.5])
    assert all(one["low"] < one["completeness"] < one["high"] for one in found)


def test_a_calibration_recovers_what_made_the_grades():
    a, b, deviations = 0.8, -1.5, []
    for seed in range(60):
        rng = np.random.default_rng(seed)
        logits = rng.normal(-4, 2, 20_000)
        labels = (rng.random(len(logits)) < expit(a * logits + b)).astype(float)
        order = np.argsort(-logits)
        rows = np.append(order[:500], rng.choice(order[500:], 1000, replace=False))
        fitted = calibrations.fit(logits[rows], labels[rows], np.repeat([1, 19.5], [500, 1000]))
        deviations.append([(fitted["a"] - a) / fitted["a_error"], (fitted["b"] - b) / fitted["b_error"]])
    assert np.abs(np.mean(deviations, axis=0)).max() < 0.5 and np.std(deviations, axis=0) == pytest.approx(1, abs=0.3)
    separated = calibrations.fit(np.array([1.0, 2, 3, -5, -6]), np.array([1.0, 1, 1, 0, 0]), np.ones(5))
    assert 0 < separated["a"] < 1


def test_purity_and_completeness_by_rank(survey):
    found = grade("ranking", graded(survey))
    top, audit = survey[:TOP]["is_lens"], survey[TOP:]["is_lens"]
    assert 5 <= audit.sum() and found["lenses"] == top.sum()
    assert found["purity"][3] | {"low": 0, "high": 0} == {
        "rank": 10, "graded": 10, "lenses": int(top[:10].sum()), "purity": top[:10].mean(), "low": 0, "high": 0
    }  # fmt: skip
    p, z = top.mean(), 1.959964
    middle, half = p + z**2 / 200, z * np.sqrt(p * (1 - p) / 100 + z**2 / 4e4)
    expected = np.array([middle - half, middle + half]) / (1 + z**2 / 100)  # Wilson (1927)
    assert [found["purity"][-1][key] for key in ("low", "high")] == pytest.approx(expected, abs=1e-6)
    others, rest = audit.sum() * (ROWS - TOP) / AUDIT, ROWS - TOP
    assert [one["completeness"] for one in found["completeness"]] == pytest.approx(
        [top[: one["rank"]].sum() / (top.sum() + others) for one in found["purity"]]
    )
    low, high = lens_interval(int(audit.sum()), AUDIT, rest)
    assert found["completeness"][-1]["low"] == top.sum() / (top.sum() + high)
    assert found["completeness"][-1]["high"] == top.sum() / (top.sum() + low)
    share = found["survey"]["prevalence"]
    assert share == pytest.approx(
        {"value": (top.sum() + others) / ROWS, "low": (top.sum() + low) / ROWS, "high": (top.sum() + high) / ROWS}
    )
    calibration = json.loads(Path("grading/calibration.json").read_text())
    assert abs(calibration["a"] - 1) < 3 * calibration["a_error"] and calibration["lowest_logit"] is None
    assert calibration["prevalence"] == share["value"]
    assert json.loads(Path("grading/grading.json").read_text()) == found
    assert Path("grading/purity_completeness.png").stat().st_size > 10_000
    text = Path("grading/grading.md").read_text()
    assert f"| 100 | 100 | {top.sum()} | {p:.3f} [" in text and "One person graded" in text
    numbers = "{value:.3g} [{low:.3g}, {high:.3g}]".format(**share)
    assert f"[{top.sum() + low}, {top.sum() + high}] lenses among 2000 rows, a prevalence of {numbers}." in text


def test_without_a_lens_in_the_audit_sample_completeness_has_a_bound_only(survey):
    ids = survey["id"]
    found = grade("ranking", write_grades(ids, ["A"] * TOP + ["X"] * AUDIT))
    last, most = found["completeness"][-1], lens_interval(0, AUDIT, ROWS - TOP)[1]
    assert last == {"rank": TOP, "completeness": None, "low": TOP / (TOP + most), "high": 1.0}
    assert found["completeness"][3]["high"] == 0.1
    assert f"up to {most} may be beyond the first rows" in Path("grading/grading.md").read_text()


def test_rows_without_a_grade_widen_the_intervals_and_too_many_end_the_claim(survey):
    whole = grade("ranking", graded(survey), "whole")
    few = grade("ranking", graded(survey.drop([20, 21, TOP + 10])), "few")
    assert few["graded"] == TOP - 2 and few["beyond"]["ungraded"] == 1
    lenses, of_whole = few["survey"]["lenses"], whole["survey"]["lenses"]
    assert lenses["low"] < of_whole["low"] and lenses["high"] > of_whole["high"]
    assert few["calibration"]["prevalence"] == few["survey"]["prevalence"]["value"]
    for name in ("purity", "completeness"):
        assert few[name][-1]["low"] < whole[name][-1]["low"] and few[name][-1]["high"] > whole[name][-1]["high"]
    assert "2 of the first rows have no grade" in Path("few/grading.md").read_text()
    shorter = grade("ranking", graded(survey[: TOP + 50]), "shorter")
    assert shorter["beyond"]["ungraded"] == 0 and shorter["beyond"]["graded"] == 50
    assert shorter["beyond"]["value"] == survey["is_lens"][TOP : TOP + 50].sum() * (ROWS - TOP) / 50
    begun = grade("ranking", graded(survey[:37]), "begun")["purity"]
    assert [one["rank"] for one in begun] == [1, 2, 5, 10, 20, 37, 50, 100]
    assert ["reason" in one for one in begun] == [False] * 6 + [True] * 2 and begun[5]["graded"] == 37
    half = grade("ranking", graded(survey[::2]), "half")
    assert half["purity"][-1]["reason"] == "50 of 100 have no grade" and not half["completeness"]
    assert "of the audit sample have no grade" in half["beyond"]["reason"]
    audit = grade("ranking", graded(survey[TOP:]), "audit")
    assert all("reason" in one for one in audit["purity"]) and Path("audit/purity_completeness.png").is_file()
    none = grade("ranking", graded(survey[:TOP]), "none")
    assert "Completeness is not measured: no row of an audit sample" in Path("none/grading.md").read_text()
    assert none["calibration"]["lowest_logit"] == survey["logit"][:TOP].min() and none["purity"][-1]["purity"]
    logits = survey["logit"].to_numpy()
    assert (np.isfinite(calibrations.apply(none["calibration"], logits)) == (np.arange(len(logits)) < TOP)).all()


def test_too_few_lenses_give_no_calibration_but_all_else(survey):
    found = grade("ranking", write_grades(survey["id"], ["A"] * 9 + ["X"] * (TOP + AUDIT - 9)))
    assert "the grades have 9 lenses" in found["calibration"]["reason"] and found["purity"][-1]["purity"] == 0.09
    assert (
        not Path("grading/calibration.json").exists() and "There is none: a" in Path("grading/grading.md").read_text()
    )
    found = grade("ranking", write_grades(survey["id"], ["A"] * (TOP + AUDIT)), "all")
    assert "no non-lens" in found["calibration"]["reason"]
    found = grade("ranking", write_grades(survey["id"][:TOP], ["X"] * 80 + ["A"] * 20), "worse")
    assert "no likelier lenses where the model scores them higher" in found["calibration"]["reason"]


def test_rows_that_were_not_chosen_by_their_logit_give_no_calibration(survey):
    """As in a folder of `search`: the share of lenses at a logit is not that of the survey."""
    path = Path("ranking/ranking.parquet")
    table = pandas.read_parquet(path)
    table["logit"] = table["logit"].to_numpy()[[*reversed(range(TOP)), *range(TOP, TOP + AUDIT)]]
    table.to_parquet(path)
    assert "not chosen by their logit" in grade("ranking", graded(survey[:TOP]), "top")["calibration"]["reason"]
    assert "reason" not in grade("ranking", graded(survey), "all")["calibration"]


def test_another_prevalence_multiplies_the_odds(survey):
    here = grade("ranking", graded(survey), "here")["calibration"]
    there = grade("ranking", "grades.csv", "there", prevalence=1e-4)["calibration"]
    ratio = (1e-4 / (1 - 1e-4)) / (here["prevalence"] / (1 - here["prevalence"]))
    logits = np.array([-5.0, 0, 5])
    before, after = (calibrations.apply(one, logits) for one in (here, there))
    assert after / (1 - after) == pytest.approx(ratio * before / (1 - before))


def test_graders_are_averaged_and_compared(survey):
    write_grades([1, 2, 3, 4], ["A", "B", "C", "X"], "one.csv", grader=["ann"] * 4)
    write_grades([1, 2, 3, 4], [1, 0, 0, 0], "two.csv")
    write_grades([1, 2, 3, 4, 4], ["lens", "LENS", "lens", "lens", "nonlens"], "three.csv", grader=["cy"] * 5)
    votes = votes_by_object(read_grades(["one.csv", "two.csv", "three.csv"]), {*"1234"}, "here")
    assert votes.mean(axis=1).to_dict() == pytest.approx({"1": 1, "2": 2 / 3, "3": 1 / 3, "4": 0})
    found = agreement(votes)
    assert found["graders"] == {"ann": 4, "cy": 4, "two.csv": 4}
    pairs = {tuple(one["graders"]): one for one in found["pairs"]}
    # Of ann and cy: equal on 3 of 4, by chance on 1/2 * 3/4 + 1/2 * 1/4 = 1/2.
    assert pairs["ann", "cy"] == {"graders": ["ann", "cy"], "shared": 4, "raw": 0.75, "kappa": pytest.approx(0.5)}
    # Equal pairs per object 1, 1/3, 1/3, 1: 2/3; by chance 1/2.
    assert found["fleiss"] == {"shared": 4, "kappa": pytest.approx(1 / 3)}
    write_grades([5], ["A"], "apart.csv")
    votes = votes_by_object(read_grades(["one.csv", "apart.csv"]), {*"12345"}, "here")
    assert agreement(votes)["pairs"][0]["reason"] == "they share no object"
    strict = votes_by_object(read_grades(["one.csv"], ["a"]), {*"1234"}, "here")
    assert strict["ann"].to_list() == [1, 0, 0, 0]
    ids = survey["id"][:TOP]
    write_grades(ids, ["A"] * TOP, "all.csv")
    found = grade("ranking", [graded(survey[:TOP]), "all.csv"])
    # What two of three call a lens is one, for the numbers and for the calibration alike.
    write_grades(ids, ["X"] * TOP, "none.csv")
    alone = grade("ranking", "grades.csv", "alone")
    third = grade("ranking", ["grades.csv", "all.csv", "none.csv"], "third")
    for name in ("purity", "completeness", "survey"):
        assert alone[name] == third[name]
    assert alone["calibration"]["a"] == third["calibration"]["a"]
    assert found["ties"] == TOP - found["lenses"] == TOP - survey["is_lens"][:TOP].sum()


@pytest.mark.parametrize(
    ("first", "second", "grades"),
    [
        ({"time": ["2025-03-01T10:00:00Z"]}, {"time": ["2025-01-01T10:00:00Z"]}, ["X"]),
        ({"time": ["2025-01-01T10:30:00Z"]}, {"time": ["2025-01-01 12:00+02:00"]}, ["X"]),  # half past and at 10
        ({"time": ["2025-01-01T10:00:00Z"]}, {"time": ["2025-01-01T10:00:00Z"]}, ["A"]),
        ({"time": ["2025-03-01T10:00:00Z"]}, {}, ["A"]),
        ({}, {"time": ["2025-01-01T10:00:00Z"]}, ["A"]),
    ],
)
def test_of_two_grades_by_one_grader_the_later_counts(first, second, grades):
    write_grades(["=7"], ["X"], "again.csv", grader=["ann"], **first)
    write_grades(["=7"], ["A"], "round1.csv", grader=["ann"], **second)
    write_grades(["=7", "8"], ["A", "A"], "bob.csv", grader=["bob"] * 2, time=["2026-01-01T10:00:00Z"] * 2)
    files = ["again.csv", "bob.csv", "round1.csv"]
    found = read_grades(files)
    assert found[found["grader"] == "ann"]["grade"].to_list() == grades and len(found) == 3
    # and where one of them has the id as spreadsheets do
    write_grades(["'=7"], ["A"], "round1.csv", grader=["ann"], **second)
    found = grades_of(read_grades(files), {"=7", "8"})
    assert found[found["grader"] == "ann"]["grade"].to_list() == grades and len(found) == 3


def test_a_single_table_of_grades_needs_no_list(survey):
    for table in (graded(survey), Path("grades.csv")):
        assert read_grades(table).equals(read_grades(["grades.csv"]))
    rank("scores", "again", top=TOP, graded="grades.csv")
    assert json.loads(Path("again/ranking.json").read_text())["graded"] == TOP


@pytest.mark.parametrize("suffix", ["parquet", "fits"])
def test_numbers_name_objects_and_graders_whatever_their_type(suffix):
    """pandas makes integers floats where one is missing; there is a grader 0."""
    tables = [f"{name}.{suffix}" for name in ("first", "second")]
    for table, grade_, year, kind in zip(tables, "XA", (2024, 2025), (np.int64, np.float64)):
        columns = {"id": np.array([7, 8]).astype(kind), "grade": [grade_] * 2, "grader": np.array([0, 1]).astype(kind)}
        columns["time"] = [f"{year}-01-01T10:00:00Z"] * 2
        parquet.write_table(pyarrow.table(columns), table) if suffix == "parquet" else Table(columns).write(table)
    found = read_grades(tables)
    assert list(zip(found["id"], found["grader"], found["grade"])) == [("7", "0", "A"), ("8", "1", "A")]


def test_ids_that_lost_their_last_digits_as_floats_are_refused():
    """As pandas has integers beside a missing one: here the id is that of another object."""
    for name, grade_ in (("ids", None), ("more", "X")):
        table = {"id": [float(2**60 + 1), None if grade_ is None else 7.0], "grade": ["A", grade_]}
        parquet.write_table(pyarrow.table(table), f"{name}.parquet")
        with pytest.raises(InputError, match=rf"{name}.parquet, column 'id': ids are stored as floats and have lost"):
            read_grades(f"{name}.parquet")


def test_graders_are_those_of_the_page_whatever_spreadsheets_need_before_them():
    graders = ["'@ann", "'-", "''=x", "'quoted'", "ben"]
    found = read_grades(write_grades([*"abcde"], ["A"] * 5, grader=graders))
    assert found["grader"].to_list() == ["@ann", "-", "'=x", "'quoted'", "ben"]


def test_ids_are_matched_as_text_and_as_spreadsheets_have_them():
    ids = ["=a", "'=b", "007", "c"]
    write_scores(np.arange(4.0), ids)
    rank("scores", "ranking")
    csv = pandas.read_csv("ranking/ranking.csv", dtype=str)
    assert csv["id"].to_list() == ["c", "007", "''=b", "'=a"]
    found = grade("ranking", write_grades(csv["id"], ["A", "X", "A", "X"]))
    assert found["graded"] == 4 and [one["lenses"] for one in found["purity"]] == [1, 1, 2]
    assert grade("ranking", write_grades(ids, ["X", "A", "X", "A"]), "raw")["purity"] == found["purity"]


@pytest.mark.parametrize(
    ("text", "options", "match"),
    [
        ("id,grade\n5,A\n", {}, r"grades.csv has a grade of '5', which ranking does not hold \(1 such\)"),
        (f"id,grade\n{2**60},D\n", {}, r"grades.csv, row 1 has the grade 'D': give A, B, C or X"),
        (f"id,grade\n{2**60},\n", {}, r"grades.csv holds no grade"),
        (
            f"id,grade,time\n{2**60},,Monday\n{2**60},A,1/2/2026\n",
            {},
            r"grades.csv, row 2 has the time '1/2/2026': give ISO 8601",
        ),
        (f"id,grade,Grade\n{2**60},A,X\n", {}, r"grades.csv has the columns grade and Grade: keep one of them"),
        (f"ID,id,grade\n{2**60},{2**60 + 1},X\n", {}, r"grades.csv has the columns ID and id: keep one of them"),
        ("id,grade\n,A\n", {}, r"grades.csv, row 1 has a grade but no id"),
        ("name,grade\n1,A\n", {}, r"grades.csv has no column 'id' \(it has name, grade\)"),
        (None, {"labels": "nowhere.csv"}, r"nowhere.csv cannot be read"),
        (None, {"ranking": "nowhere"}, r"nowhere/ranking.parquet cannot be read"),
        (None, {"positive": ["A", "X"]}, r"positive is A X: choose from A, B and C"),
        (None, {"prevalence": 1.0}, r"prevalence is 1.0: give a share between 0 and 1"),
        (None, {"prevalence": 1e-4}, r"share of lenses in this survey is unknown .*: grade an audit sample"),
        (None, {"store_in": "run"}, r"the scores are not of run \(its weights are others\)"),
        (None, {"output": "scores"}, r"scores exists already"),
    ],
)
def test_what_cannot_be_graded_ends_in_one_sentence(text, options, match, survey):
    graded(survey[:TOP])
    if text:
        Path("grades.csv").write_text(text)
    if "store_in" in options:
        write_classifier_run(Path("run"))
    before = sorted(Path().iterdir())
    with pytest.raises(InputError, match=match) as error:
        grade(**{"ranking": "ranking", "labels": ["grades.csv"], **options})
    assert "\n" not in str(error.value) and sorted(Path().iterdir()) == before


def read(folder):
    return pandas.concat(map(pandas.read_parquet, sorted(Path(folder).glob("*.parquet"))))


def write_other_run(path):
    write_classifier_run(Path(path))
    model = Classifier.load(path).model
    with torch.no_grad():
        model.classifier.bias[1] += 1
    model.save_pretrained(f"{path}/model")
    return path


def grade_by_score(scores, output, **options):
    """Grades that follow the scores, with errors; every object is in the ranking or its audit."""
    rank(scores, f"{output}-ranking", top=60, audit=132)
    table = pandas.read_parquet(f"{output}-ranking/ranking.parquet")
    is_lens = (np.arange(len(table)) % 7 == 0) ^ (table["logit"] > table["logit"].median())
    grade(f"{output}-ranking", write_grades(table["id"], np.where(is_lens, "a", "c")), output, **options)
    return json.loads(Path(output, "calibration.json").read_text())


def test_a_stored_calibration_fills_p_lens_and_scores_without_it_are_refused(caplog):
    save_toy(make_cutouts(), Path("data"))
    run = str(write_classifier_run(Path("run")))
    score(run, "data", "scores")
    assert read("scores")["p_lens"].isna().all()
    numbers = grade_by_score("scores", "grading", store_in=run)
    assert json.loads(Path("run/model/calibration.json").read_text()) == numbers
    manifest = score(run, "data", "calibrated")
    logits, found = read("calibrated")[["logit", "p_lens"]].to_numpy().T
    assert expit(numbers["a"] * logits + numbers["b"]) == pytest.approx(found, abs=1e-12)
    assert manifest["calibration"] == numbers and len(set(found)) > 100
    with pytest.raises(InputError, match=r"scores that were made otherwise \(the calibration is another\)"):
        score(run, "data", "scores")
    score(run, "data", "views", views=8)
    assert read("views")["p_lens"].isna().all() and "a calibration of other views: p_lens stays empty" in caplog.text


def test_a_calibration_says_where_it_was_made_and_its_use_elsewhere_is_warned_of(caplog):
    run = str(write_classifier_run(Path("run")))
    splits, info = make_cutouts()
    save_toy((splits, info), Path("here"))
    save_toy(({name: splits[name] for name in ("train", "validation")}, info), Path("there"))
    score(run, "here", "scores")
    numbers = grade_by_score("scores", "grading", store_in=run)
    score(run, "here", "again")
    assert "was made on" not in caplog.text
    score(run, "there", "elsewhere")
    assert f"was made on here ({numbers['input']['cutouts']} cutouts), and p_lens is wrong here if" in caplog.text
    caplog.clear()
    grade("grading-ranking", "grades.csv", "moved", prevalence=1e-3)
    score(run, "there", "moved-scores", calibration="moved/calibration.json")
    Path("old.json").write_text(json.dumps({key: value for key, value in numbers.items() if key != "input"}))
    score(run, "there", "old-scores", calibration="old.json")
    assert "was made on" not in caplog.text and not read("old-scores")["p_lens"].isna().any()


@pytest.mark.parametrize("half", [False, True])
def test_an_export_keeps_p_lens(half):
    save_toy(make_cutouts(), Path("data"))
    run = str(write_classifier_run(Path("run")))
    score(run, "data", "scores")
    grade_by_score("scores", "grading", store_in=run)
    score(run, "data", "calibrated")
    export(run, "exported", half=half)
    export(run, "exported", half=half)  # it is taken for an export, and replaced
    score("exported", "data", "of-export")
    found, expected = (read(name)["p_lens"].to_numpy() for name in ("of-export", "calibrated"))
    assert found == pytest.approx(expected, abs=1e-2 if half else 1e-12) and np.ptp(expected) > 0.05
    text = Path("exported/calibration.json").read_text()
    assert json.loads(text)["models"] == [manifests.weights_sha256("exported")] and str(Path.cwd()) not in text


def test_the_calibration_of_other_weights_is_not_exported(caplog):
    save_toy(make_cutouts(), Path("data"))
    run = str(write_classifier_run(Path("run")))
    score(run, "data", "scores")
    grade_by_score("scores", "grading", store_in=run)
    shutil.copy(Path(write_other_run("other"), "model/model.safetensors"), "run/model")
    export(run, "exported")
    assert not Path("exported/calibration.json").exists()
    assert "run/model/calibration.json is a calibration of other models: it is not exported" in caplog.text


def test_the_calibration_of_an_ensemble_is_given_by_its_file():
    save_toy(make_cutouts(), Path("data"))
    models = [str(write_classifier_run(Path("run"))), write_other_run("other")]
    score(models, "data", "scores")
    with pytest.raises(InputError, match="the scores are of 2 models: leave store_in out"):
        grade_by_score("scores", "stored", store_in="run")
    numbers = grade_by_score("scores", "grading")
    score(models, "data", "calibrated", calibration="grading/calibration.json")
    logits, found = read("calibrated")[["logit", "p_lens"]].to_numpy().T
    assert expit(numbers["a"] * logits + numbers["b"]) == pytest.approx(found, abs=1e-12)
    with pytest.raises(InputError, match=r"calibration.json is a calibration of other models: give one made from"):
        score("run", "data", "x", calibration="grading/calibration.json")
    Path("c.json").write_text("{}")
    with pytest.raises(InputError, match=r"c.json is no calibration: give what lens-ssl grade wrote"):
        score("run", "data", "x", calibration="c.json")
    assert not Path("x").exists()


def test_the_command_prints_the_report_or_one_sentence(survey, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", f"lens-ssl ranking --labels {graded(survey)} --positive A B".split())
    command.main()
    assert Path("grading/grading.md").read_text() in capsys.readouterr().out
    with pytest.raises(SystemExit) as stopped:
        command.main()
    assert stopped.value.code == 2 and "error: grading exists already" in capsys.readouterr().err
