"""A search by indexes finds what the exact one finds, with the same similarities."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import datasets
import numpy as np
import pyarrow
import pytest
from pyarrow import parquet
from tiny_runs import write_classifier_run

from lens_ssl_hf import InputError, score, search
from lens_ssl_hf.commands import search as command

COUNT, SHARDS, TOP = 400, 4, 10
# A process that kills itself before the second index takes its place.
KILLED = """
import os, signal, sys
from lens_ssl_hf import search
replace, done = os.replace, []
def replace_or_die(old, new):
    done.append(str(new).endswith(".faiss"))
    if sum(done) == 2:
        os.kill(os.getpid(), signal.SIGKILL)
    replace(old, new)
os.replace = replace_or_die
search("scores", "killed", "object 3", top=10, index=True)
"""


@pytest.fixture(scope="module")
def scores(tmp_path_factory):
    folder = tmp_path_factory.mktemp("survey")
    datasets.disable_progress_bars()
    write_classifier_run(folder / "run")
    pixels = np.random.default_rng(0).uniform(90, 110, (COUNT, 3, 40, 40))
    pixels[:, :, 14:26, 14:26] += np.random.default_rng(1).uniform(0, 140, (COUNT, 3, 1, 1))
    columns = {"id": [f"object {i}" for i in range(COUNT)], "pixels": pixels.astype("float32").tolist()}
    parquet.write_table(pyarrow.table(columns), folder / "input.parquet")
    score(str(folder / "run"), folder / "input.parquet", folder / "scores", COUNT // SHARDS, embeddings=True)
    return folder / "scores"


@pytest.fixture(autouse=True)
def copied(scores, tmp_path, monkeypatch):
    """Scores to write beside; of each shard few candidates."""
    pytest.importorskip("faiss", reason="faiss is not installed: pip install faiss-cpu")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("lens_ssl_hf.survey.listed.SHEET", 4)
    monkeypatch.setattr("lens_ssl_hf.survey.index.SPARE", 0)
    Path("scores").mkdir()
    for path in scores.iterdir():
        Path("scores", path.name).write_bytes(path.read_bytes())


def found(output, index, **options):
    search("scores", output, ["object 3", "object 250"], "object 120", top=TOP, index=index, **options)
    table = parquet.read_table(f"{output}/ranking.parquet")
    return table["id"].to_pylist(), table["similarity"].to_numpy()


def assert_as_exact(name):
    (exact, similarity), (proposed, again) = found(f"{name} exact", False), found(f"{name} indexed", True)
    assert proposed == exact and len(exact) == TOP and again == pytest.approx(similarity, abs=1e-6)
    return exact


def indexes():
    return {path.name: path.stat().st_mtime_ns for path in Path("scores/index").iterdir()}


def test_indexes_are_made_once_and_lead_to_the_exact_result(capsys):
    assert_as_exact("first")
    before = indexes()
    assert sorted(name.rpartition(".")[2] for name in before) == ["faiss"] * SHARDS + ["npz"]
    assert_as_exact("second")
    assert indexes() == before
    assert score_again()["counts"]["scored"] == COUNT  # a run that goes on is not disturbed


def score_again():
    facts = json.loads(Path("scores/manifest.json").read_text())
    return score(facts["models"][0]["model"], facts["input"]["path"], "scores", COUNT // SHARDS, embeddings=True)


def test_indexes_of_a_changed_shard_are_made_again():
    before = assert_as_exact("before"), indexes()
    path = sorted(Path("scores").glob("*.parquet"))[1]
    table = parquet.read_table(path, partitioning=None)
    order = np.random.default_rng(2).permutation(len(table))
    place = table.column_names.index("embedding")
    parquet.write_table(table.set_column(place, "embedding", table["embedding"].take(order)), path)
    assert assert_as_exact("after") != before[0]
    of_shard = {name for name in indexes() if name.startswith(path.stem)}
    assert len(indexes()) == SHARDS + 1 and len(of_shard) == 1 and not of_shard & set(before[1])


def test_a_killed_build_leaves_nothing_half_done():
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[1])}
    killed = subprocess.run([sys.executable, "-c", KILLED], env=environment, capture_output=True)
    assert killed.returncode == -signal.SIGKILL and not Path("killed").exists()
    left = indexes()
    assert sum(name.endswith(".faiss") for name in left) == 1 and any(name.endswith(".partial") for name in left)
    assert_as_exact("again")
    kept = {name: time for name, time in left.items() if not name.endswith(".partial")}
    assert len(indexes()) == SHARDS + 1 and kept.items() <= indexes().items()


def test_a_survey_in_which_most_rows_are_one_object_falls_back_to_the_exact_search():
    for path in Path("scores").glob("*.parquet"):
        table = parquet.read_table(path, partitioning=None)
        is_given = np.isin(table["id"].to_pylist(), ["object 3", "object 250", "object 120"])
        for name in ("ra", "dec"):  # what is at the place of a given one is left out
            values = pyarrow.array(np.where(is_given, 20.0, 10.0))
            table = table.set_column(table.column_names.index(name), name, values)
        parquet.write_table(table, path)
    (exact, _), (proposed, _) = found("exact", False), found("indexed", True)
    assert len(exact) == 1 and proposed == exact


def test_what_goes_wrong_ends_in_one_sentence(monkeypatch, capsys):
    found("first", True)
    whitening = next(Path("scores/index").glob("*.npz"))
    for path in (whitening, next(Path("scores/index").glob("*.faiss"))):
        whole = path.read_bytes()
        path.write_bytes(whole[:1000] if path == whitening else b"IxSQ")
        with pytest.raises(InputError, match=rf"{path.name} .*: remove it, and it is made again"):
            found("second", True)
        path.write_bytes(whole)
    monkeypatch.setitem(sys.modules, "faiss", None)
    with pytest.raises(InputError, match=r"faiss is not installed: pip install 'lens-ssl-hf\[search\]'"):
        found("third", True)
    monkeypatch.setattr(sys, "argv", ["lens-ssl", "scores", "--output", "out", "--anomalies", "5", "--index"])
    with pytest.raises(SystemExit):
        command.main()
    assert "index is given without like" in capsys.readouterr().err
