"""A disk that is full while something is written: one sentence, nothing half-written, and the next try works."""

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow
import pytest
from astropy.io import fits
from conftest import at_most
from pyarrow import parquet
from tiny_runs import write_classifier_run

from lens_ssl_hf import InputError, draw_map, grade, rank, score, search
from lens_ssl_hf.files import through_memory, writing

pytestmark = pytest.mark.usefixtures("in_tmp_path")
COUNT = 40


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


def fill_the_disk(name, survey):
    """Write with room for a part, in the working directory."""
    with pytest.raises(InputError, match=r"cannot write out[^\n]*$") as told, at_most(4000):
        WRITES[name](survey)
    assert ".partial" not in str(told.value) and not list(Path().iterdir())


@pytest.mark.slow
@pytest.mark.parametrize("name", WRITES)
def test_whatever_is_written_when_the_disk_is_full(name, survey):
    """
    In a process of its own, as a command is: the limit holds for all that a process writes, also what pytest captures;
    and a process with many failed writes has crashed while it collected garbage, for a reason that is not known.
    """
    code = f"from pathlib import Path; import test_full_disk as t; t.fill_the_disk({name!r}, Path({str(survey)!r}))"
    path = os.pathsep.join([str(Path(__file__).parent), str(Path(__file__).parents[1])])
    command = [sys.executable, "-X", "faulthandler", "-c", code]
    done = subprocess.run(command, env={**os.environ, "PYTHONPATH": path}, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    WRITES[name](survey)
    assert Path("out").is_dir()


def test_a_disk_that_is_full_is_told_from_one_that_cannot_be_written():
    with pytest.raises(InputError, match=r"cannot write a/b.txt \(No space left on device\): make room and try again"):
        with writing(Path("a/.c.x.partial/b.txt")), open("/dev/full", "w") as file:
            file.write("x")


def test_a_disk_that_has_room_for_all_but_one_byte_is_full():
    """Of an array in FITS that fills its last block: what follows would fail otherwise."""
    values = np.zeros(720, "f4")
    for write in (lambda file: np.save(file, values), lambda file: fits.writeto(file, values)):
        with through_memory(Path("whole")) as file:
            write(file)
        size = Path("whole").stat().st_size
        with pytest.raises(InputError, match="cannot write short"), at_most(size - 1):
            with writing(Path("short")) as new, through_memory(new) as file:
                write(file)
        assert not Path("short").exists()
