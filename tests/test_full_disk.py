"""A disk that is full while something is written: one sentence, nothing half-written, and the next try works."""

import contextlib
import os
import resource
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow
import pytest
from pyarrow import parquet
from tiny_runs import write_classifier_run

from lens_ssl_hf import InputError, draw_map, grade, rank, score, search
from lens_ssl_hf.files import writing

pytestmark = pytest.mark.usefixtures("in_tmp_path")
COUNT = 40


@contextlib.contextmanager
def at_most(size):
    """No file grows beyond `size` bytes."""
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, limits[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)


@pytest.fixture(scope="module")
def survey(tmp_path_factory):
    """A scored and ranked survey, and grades of it."""
    folder = tmp_path_factory.mktemp("survey")
    rng = np.random.default_rng(0)
    pixels = rng.uniform(0, 255, (COUNT, 3, 40, 40)).astype("f4").tolist()
    columns = {"id": range(COUNT), "pixels": pixels, "ra": rng.uniform(0, 9, COUNT), "dec": rng.uniform(0, 9, COUNT)}
    parquet.write_table(pyarrow.table(columns), folder / "shard.parquet")
    score(write_classifier_run(folder / "run"), folder / "shard.parquet", folder / "scores", embeddings=True)
    rank(folder / "scores", folder / "ranking", top=20, audit=20)
    table = pd.read_parquet(folder / "ranking" / "ranking.parquet")
    table.assign(grade=["A", "X"] * (COUNT // 2))[["id", "grade"]].to_csv(folder / "grades.csv", index=False)
    table[["ra", "dec"]].head(5).to_csv(folder / "known.csv", index=False)
    return folder


WRITES = {
    "rank": lambda survey: rank(survey / "scores", "out", top=20, audit=10, known=survey / "known.csv"),
    "search": lambda survey: search(survey / "scores", "out", like="5", top=20),
    "map": lambda survey: draw_map(survey / "scores", "out"),
    "grade": lambda survey: grade(survey / "ranking", survey / "grades.csv", "out"),
}


def fill_the_disk(survey):
    """Write everything with more and more room, until it succeeds."""
    for name, write in WRITES.items():
        failures, size = 0, 0
        while True:
            try:
                with at_most(size):
                    write(survey)
                break
            except InputError as error:
                assert str(error).startswith("cannot write out") and "\n" not in str(error), name
                assert ".partial" not in str(error) and not list(Path().iterdir()), name
            failures, size = failures + 1, max(2000, 3 * size)
        assert failures >= 3 and Path("out").is_dir(), name
        shutil.rmtree("out")


def test_whatever_is_written_when_the_disk_is_full(survey):
    """In a process of its own: the limit holds for all that a process writes, the output that pytest captures too."""
    code = f"from pathlib import Path; import test_full_disk; test_full_disk.fill_the_disk(Path({str(survey)!r}))"
    path = os.pathsep.join([str(Path(__file__).parent), str(Path(__file__).parents[1])])
    command = [sys.executable, "-X", "faulthandler", "-c", code]
    done = subprocess.run(command, env={**os.environ, "PYTHONPATH": path}, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_a_disk_that_is_full_is_told_from_one_that_cannot_be_written():
    with pytest.raises(InputError, match=r"cannot write a/b.txt \(No space left on device\): make room and try again"):
        with writing(Path("a/.c.x.partial/b.txt")), open("/dev/full", "w") as file:
            file.write("x")
