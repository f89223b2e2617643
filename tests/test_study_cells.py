"""The two files of a report hold its cells exactly, and those that are committed give the committed numbers."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from pyarrow import parquet

from lens_ssl_hf import InputError
from lens_ssl_hf.evaluation.predictions import Predictions
from lens_ssl_hf.study.cells import IDENTITY, pack_cells, unpack_cells
from lens_ssl_hf.study.statistics import compare

RESULTS = Path(__file__).parents[1] / "model_cards" / "results"


def write_cell(folder, name, identity, settings, columns=None, **facts):
    """A cell's directory as a study leaves it, and its record."""
    directory = folder / ("pretrainings" if identity[2] == "none" else "cells") / name
    directory.mkdir(parents=True)
    record = {**dict(zip(IDENTITY, identity)), "directory": str(directory), "settings": settings, **facts}
    (directory / "cell.json").write_text(json.dumps(record))
    if identity[2] != "none":
        scores = np.random.default_rng(len(name)).random(5)
        table = Predictions(list("abcde"), np.array([0, 1, -1, 1, 0]), list("vwxyz"), [""] * 5, scores, columns or {})
        table.save(directory / "predictions.parquet")
    return record


@pytest.fixture
def records(tmp_path):
    folder = tmp_path / "study"
    local = {"output_dir": str(folder), "init": str(folder / "run"), "resume": "auto"}
    probes = {"knn": {"roc_auc": 0.1 + 0.2, "tpr10": None}}
    columns = {"ra": [0.1, None, 3.0, 4.0, 5.0], "cell": ["own"] * 5}
    return [
        write_cell(folder, "dino-a", ("dino", "vitt8", "none", 0, 0, None), local, git_revision=None, probes=probes),
        write_cell(folder, "dino-b", ("dino", "vitt8", "16", 0, 0, 0), local, columns, metrics={"accuracy": 1 / 3}),
        write_cell(folder, "profile", ("profiles", "", "all", 0, 1, 1), {"crop_size": 32}, metrics={"roc_auc": 1.0}),
    ]


def test_a_report_gives_the_same_records(records, tmp_path):
    pack_cells(records, tmp_path / "report")
    assert {path.name for path in (tmp_path / "report").iterdir()} == {"cells.parquet", "predictions.parquet"}
    found = unpack_cells(tmp_path / "report", tmp_path / "again")
    for one, record in zip(found, records, strict=True):
        settings = {name: value for name, value in record["settings"].items() if name not in ("output_dir", "init")}
        moved = record["directory"].replace(str(tmp_path / "study"), str(tmp_path / "again"))
        assert one == {**record, "settings": settings, "directory": moved}
        text = (Path(moved) / "cell.json").read_text()
        assert json.loads(text) == {**one, "directory": Path(moved).name} and str(tmp_path) not in text


def test_a_report_gives_the_same_predictions(records, tmp_path):
    pack_cells(records, tmp_path / "report")
    unpack_cells(tmp_path / "report", tmp_path / "again")
    for name, columns in (("dino-b", {"ra": [0.1, None, 3.0, 4.0, 5.0]}), ("profile", {})):
        one, other = (
            Predictions.load(tmp_path / folder / "cells" / name / "predictions.parquet")
            for folder in ("study", "again")
        )
        assert (one.id, one.group, one.subclass) == (other.id, other.group, other.subclass)
        assert one.label.tolist() == other.label.tolist() and one.score.tobytes() == other.score.tobytes()
        assert other.columns == columns


def test_cells_that_are_there_stay(records, tmp_path):
    pack_cells(records, tmp_path / "report")
    path = tmp_path / "study" / "cells" / "profile" / "cell.json"
    shutil.rmtree(tmp_path / "study" / "cells" / "dino-b")
    path.write_text("its own")
    unpack_cells(tmp_path / "report", tmp_path / "study")
    assert path.read_text() == "its own" and (tmp_path / "study" / "cells" / "dino-b" / "cell.json").is_file()


def change(path, **columns):
    table = parquet.read_table(path).to_pydict() | columns
    parquet.write_table(parquet.read_table(path).slice(0, 0).from_pydict(table), path)


@pytest.mark.parametrize(
    "spoil,message",
    [
        (lambda report: (report / "cells.parquet").unlink(), r"cells\.parquet cannot be read"),
        (lambda report: (report / "predictions.parquet").write_bytes(b"PAR1"), r"predictions\.parquet cannot be read"),
        (lambda report: change(report / "cells.parquet", facts=["{", "{}", "{}"]), r"cells\.parquet is damaged"),
        (lambda report: change(report / "cells.parquet", cell=["../a", "b", "c"]), r"a cell is named '\.\./a'"),
        (
            lambda report: change(report / "cells.parquet", cell=["dino-a", "other", "profile"]),
            r"lacks the cell other",
        ),
    ],
)
def test_a_damaged_report_is_named(spoil, message, records, tmp_path):
    pack_cells(records, tmp_path / "report")
    spoil(tmp_path / "report")
    with pytest.raises(InputError, match=message):
        unpack_cells(tmp_path / "report", tmp_path / "again")
    assert not list(tmp_path.glob("a*"))


@pytest.mark.parametrize(
    "study,labels",
    [
        ("simulated", {"all"}),
        pytest.param("simulated", None, marks=pytest.mark.slow),
        pytest.param("simulated_600", None, marks=pytest.mark.slow),
    ],
)
def test_the_committed_predictions_give_the_committed_intervals(study, labels, tmp_path):
    """All but the completeness on the large test split, whose scores are not committed."""
    committed = json.loads((RESULTS / study / "results.json").read_text())["rows"]
    cells = [cell for cell in unpack_cells(RESULTS / study, tmp_path) if cell["labels"] != "none"]
    rows = compare([cell for cell in cells if labels is None or cell["labels"] in labels])
    wanted = [row for row in committed if labels is None or row["labels"] in labels]
    assert [row["method"] for row in rows] == [row["method"] for row in wanted]
    for row, one in zip(rows, wanted):
        assert row["roc_auc"]["value"] == pytest.approx(one["roc_auc"]["value"], abs=1e-12)
        for measure in ("roc_auc", "accuracy"):
            assert flat(row[measure]) == pytest.approx(flat(one[measure]), abs=1e-9)


def flat(entry):
    """value, low and high of a measure and of its differences, and their p-values."""
    minus = {f"{name} {key}": value for name, one in entry.get("minus", {}).items() for key, value in one.items()}
    return {name: value for name, value in (entry | minus).items() if name != "minus" and value is not None}
