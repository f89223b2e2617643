"""A ranking as CSV, Parquet, FITS and VOTable."""

import csv
import re
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow
from astropy.table import Column, MaskedColumn, Table
from pyarrow import parquet

from ..files import through_memory
from ..quoting import in_spreadsheet

VIEWER = "https://www.legacysurvey.org/viewer?ra={0:.6f}&dec={1:.6f}&zoom=16&layer=ls-dr10&mark={0:.6f},{1:.6f}"
_UCDS = {"ra": "pos.eq.ra;meta.main", "dec": "pos.eq.dec;meta.main", "id": "meta.id;meta.main"}
_NOT_XML = re.compile("[^\t\n\r\x20-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")  # one makes the VOTable unreadable


def write_tables(table: pyarrow.Table, folder: Path) -> None:
    """Write ranking.csv, .parquet, .fits and .vot, with the same values in all."""
    for i, name in enumerate(table.column_names):
        table = table.set_column(i, name, _of_common_type(table[name]))
    with open(folder / "ranking.csv", "w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(table.column_names)
        writer.writerows(map(in_spreadsheet, row.values()) for row in table.to_pylist())
    parquet.write_table(table, folder / "ranking.parquet")
    with through_memory(folder / "ranking.fits") as file:
        _of_astropy(table, ascii_only=True).write(file, format="fits")
    _of_astropy(table, ascii_only=False).write(folder / "ranking.vot", format="votable")


def _of_common_type(values: pyarrow.ChunkedArray) -> pyarrow.ChunkedArray:
    """Numbers in a type that each of the formats has: int64, float32 or float64; larger integers as text."""
    if pyarrow.types.is_float16(values.type):
        return values.cast(pyarrow.float32())
    if not pyarrow.types.is_integer(values.type):
        return values
    try:
        return values.cast(pyarrow.int64())
    except pyarrow.ArrowInvalid:
        return values.cast(pyarrow.string())


def _of_astropy(table: pyarrow.Table, ascii_only: bool) -> Table:
    found = Table()
    for name in table.column_names:
        column = _column(table[name], ascii_only)
        if name in ("ra", "dec") and column.dtype.kind == "f":
            column.unit = "deg"
        if name in _UCDS:
            column.meta["ucd"] = _UCDS[name]
        found[name] = column
    return found


def _column(values: pyarrow.ChunkedArray, ascii_only: bool) -> Any:
    """Text, numbers with NaN for missing ones, or integers with a mask."""
    cells, kind = values.to_pylist(), values.type
    if pyarrow.types.is_floating(kind):
        return Column(np.array([np.nan if cell is None else cell for cell in cells], kind.to_pandas_dtype()))
    if pyarrow.types.is_integer(kind):
        numbers = np.array([0 if cell is None else cell for cell in cells], kind.to_pandas_dtype())
        mask = [cell is None for cell in cells]
        return MaskedColumn(numbers, mask=mask, fill_value=-1) if any(mask) else Column(numbers)
    texts = ["" if cell is None else str(cell) for cell in cells]
    if ascii_only:
        return Column([text.encode("ascii", "backslashreplace").decode() for text in texts])
    return Column([_NOT_XML.sub("\N{REPLACEMENT CHARACTER}", text) for text in texts])
