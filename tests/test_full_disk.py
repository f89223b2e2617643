"""A disk that is full while something is written: one sentence, nothing half-written, and the next try works."""

import contextlib
import resource
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


@pytest.mark.parametrize(
    "write",
    [
        lambda survey: rank(survey / "scores", "out", top=20, audit=10, known=survey / "known.csv"),
        lambda survey: search(survey / "scores", "out", like="5", top=20),
        lambda survey: draw_map(survey / "scores", "out"),
        lambda survey: grade(survey / "ranking", survey / "grades.csv", "out"),
    ],
    ids=["rank", "search", "map", "grade"],
)
def test_whatever_is_written_when_the_disk_is_full(write, survey):
    failures, size = 0, 0
    while True:
        try:
            with at_most(size):
                write(survey)
            break
        except InputError as error:
            assert str(error).startswith("cannot write out") and "\n" not in str(error)
            assert ".partial" not in str(error) and not list(Path().iterdir())
        failures, size = failures + 1, max(2000, 3 * size)
    assert failures >= 3 and Path("out").is_dir()


def test_a_disk_that_is_full_is_told_from_one_that_cannot_be_written():
    with pytest.raises(InputError, match=r"cannot write a/b.txt \(No space left on device\): make room and try again"):
        with writing(Path("a/.c.x.partial/b.txt")), open("/dev/full", "w") as file:
            file.write("x")
