"""
The cells of a report in two files; while a study runs, each cell is a directory, which several commands can share.

`cells.parquet` has a row per cell: its name, what identifies it, and the rest of its cell.json as JSON text, in which
floats are exact, and null and a missing entry stay two things. `predictions.parquet` has the rows of all cells'
predictions.parquet, with the name of the cell in the column `cell`.
"""

import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pyarrow
from pyarrow import compute, parquet

from ..errors import InputError
from ..files import write_json, writing

CELLS, PREDICTIONS = "cells.parquet", "predictions.parquet"
IDENTITY = ("method", "backbone", "labels", "seed", "subset", "fold")
_NUMBERS = ("seed", "subset", "fold")
_SCHEMA = pyarrow.schema(
    [("cell", pyarrow.string())]
    + [(name, pyarrow.int64() if name in _NUMBERS else pyarrow.string()) for name in IDENTITY]
    + [("facts", pyarrow.string())]
)


def pack_cells(records: Sequence[Mapping[str, Any]], folder: str | os.PathLike) -> None:
    """
    Write cells.parquet and predictions.parquet: the records of cells without weights and local paths, and their
    predictions on the test split (not those on test_large).

    Raises:
        [`InputError`]: `folder` cannot be written, or a cell's predictions cannot be read.
    """
    rows, tables = [], []
    for record in records:
        source = Path(record["directory"])
        settings = {name: value for name, value in record["settings"].items() if name not in ("output_dir", "init")}
        facts = {name: value for name, value in record.items() if name not in (*IDENTITY, "directory")}
        text = json.dumps({**facts, "settings": settings})
        rows.append({"cell": source.name, **{name: record[name] for name in IDENTITY}, "facts": text})
        if (source / PREDICTIONS).is_file():
            own = _read(source / PREDICTIONS)
            own = own.drop_columns([name for name in own.column_names if name == "cell"])  # of the user's own table
            tables.append(own.add_column(0, "cell", pyarrow.repeat(source.name, len(own))))
    _write(Path(folder) / PREDICTIONS, pyarrow.concat_tables(tables, promote_options="permissive"))
    _write(Path(folder) / CELLS, pyarrow.Table.from_pylist(rows, _SCHEMA))


def unpack_cells(report: str | os.PathLike, folder: str | os.PathLike) -> list[dict[str, Any]]:
    """
    Make the directories of a report's cells again, in which a study resumes and from which its report can be written.

    Args:
        report (`str` or `os.PathLike`): holds what [`pack_cells`] wrote.
        folder (`str` or `os.PathLike`): gets cells/ and pretrainings/. What is there already stays.

    Returns:
        `list[dict]`: the records, as those of [`~lens_ssl_hf.study.run.Study.records`].

    Raises:
        [`InputError`]: a file is missing, is damaged or lacks the predictions of a cell, or `folder` cannot be
            written.
    """
    report = Path(report)
    predictions = _read(report / PREDICTIONS)
    records = [_record(row, report / CELLS) for row in _read(report / CELLS).to_pylist()]
    tested = {record["directory"] for record in records if record["labels"] != "none"}
    if lacks := sorted(tested - set(predictions["cell"].to_pylist())):
        raise InputError(f"{report / PREDICTIONS} lacks the cell {lacks[0]}: write the report again")
    unpacked = []
    for record in records:
        name = record["directory"]
        directory = Path(folder) / ("cells" if name in tested else "pretrainings") / name
        if not (directory / "cell.json").exists():
            if name in tested:
                own = predictions.filter(compute.equal(predictions["cell"], name)).drop_columns("cell")
                unknown = [column for column in own.column_names if own[column].null_count == len(own)]
                _write(directory / PREDICTIONS, own.drop_columns(unknown))
            write_json(directory / "cell.json", record)  # last, since it says that the cell is whole
        unpacked.append({**record, "directory": str(directory)})
    return unpacked


def _record(row: Mapping[str, Any], path: Path) -> dict[str, Any]:
    """What stood in the cell.json of a row; its `directory` is the name of the cell."""
    try:
        record = {**{name: row[name] for name in IDENTITY}, "directory": row["cell"], **json.loads(row["facts"])}
        is_plain = Path(row["cell"]).name == row["cell"]  # the name becomes that of a directory
    except (KeyError, TypeError, ValueError, RecursionError) as error:
        raise InputError(f"{path} is damaged ({error!r}): write the report again") from error
    if not is_plain:
        raise InputError(f"{path} is damaged (a cell is named {row['cell']!r}): write the report again")
    return record


def _read(path: Path) -> pyarrow.Table:
    try:
        return parquet.read_table(path, partitioning=None)
    except (OSError, ValueError) as error:  # of Arrow, too
        raise InputError(f"{path} cannot be read ({error}): write the report again") from error


def _write(path: Path, table: pyarrow.Table) -> None:
    with writing(path) as new:
        parquet.write_table(table, new, compression="zstd")
