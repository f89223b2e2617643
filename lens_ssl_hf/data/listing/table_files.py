"""Tables in files -> columns of Python values: CSV (also with semicolons or tabs), ECSV, Parquet, FITS, VOTable."""

import csv
import io
import re
import warnings
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any, TextIO

import numpy as np
from astropy.io import votable
from astropy.table import Table
from pyarrow import parquet

from ...errors import InputError
from ..files.cells import plain
from ..files.fits_files import open_fits
from ..files.raw import readable

FITS_TABLE_SUFFIXES = (".fits", ".fit", ".fits.gz")
VOTABLE_SUFFIXES = (".xml", ".vot", ".votable")
PARQUET_SUFFIXES = (".parquet", ".pq")
TABLE_SUFFIXES = (".csv", ".tsv", ".ecsv", *PARQUET_SUFFIXES, *FITS_TABLE_SUFFIXES, *VOTABLE_SUFFIXES)


@dataclass
class Columns:
    """
    A table.

    Args:
        values (`dict[str, list]`): by name; missing values are `None`.
        units (`dict[str, str]`): of the columns that state one.
        is_text (`bool`): all values are text, whatever they stand for (CSV).
    """

    values: dict[str, list]
    units: dict[str, str] = field(default_factory=dict)
    is_text: bool = False


def read_table(table: Path, with_words: bool = False) -> Columns:
    """
    The columns of a table; `with_words` that else count as missing values, see [`plain`].

    Raises:
        [`InputError`]: the file is damaged, or its rows and names of columns contradict themselves.
    """
    with readable(table, "a table"), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of what the parsers warn, only what ends in an error matters
        try:
            return _read(table, table.name.lower(), partial(plain, with_words=with_words))
        except UnicodeDecodeError as error:
            raise InputError(f"{table} is not UTF-8 text: save it as CSV with UTF-8") from error


def _read(table: Path, name: str, cell_of: Callable[[Any], Any]) -> Columns:
    if name.endswith(PARQUET_SUFFIXES):
        return _read_parquet(table, cell_of)
    if name.endswith(FITS_TABLE_SUFFIXES):
        with open_fits(table) as hdus:
            return _of_astropy(Table.read(hdus, format="fits"), cell_of)
    if name.endswith(VOTABLE_SUFFIXES):
        return _read_votable(table, cell_of)
    if name.endswith(".ecsv") or table.open("rb").read(7) == b"# %ECSV":
        return _of_astropy(Table.read(table.read_text(encoding="utf-8-sig"), format="ascii.ecsv"), cell_of)
    return _read_csv(table, cell_of)


def _read_csv(table: Path, cell_of: Callable[[Any], Any]) -> Columns:
    with open(table, newline="", encoding="utf-8-sig") as stream:
        above, separator = _comments(stream, table)
        stream.seek(0)
        lines = _reader(islice(stream, above, None), separator)
        header = [name.strip() for name in next(lines, [])]
        rows = []
        for cells in lines:
            if len(cells) not in (0, len(header)):
                raise InputError(_ragged(table, above + lines.line_num, cells, header, separator))
            if cells:
                rows.append(cells)
    if len(header) > 1 and not header[-1] and not any(row[-1].strip() for row in rows):
        header.pop()  # every line ends in a separator
    _check_names(header, table)
    cells = zip(*rows) if rows else [()] * len(header)
    return Columns({name: list(map(cell_of, column)) for name, column in zip(header, cells)}, is_text=True)


def _comments(stream: TextIO, table: Path) -> tuple[int, str]:
    """
    How many lines stand above the names of the columns, and what separates the names. Lines that begin with # are
    comments if names follow, but the last of them holds the names where it has as many cells as the line after it.
    """
    comments: list[str] = []
    line = first = stream.readline()
    while line.startswith("#") or (comments and line.isspace()):
        comments += [line]
        line = stream.readline()
    if comments:
        last = max(i for i, comment in enumerate(comments) if comment.startswith("#"))
        separator = _separator(comments[last])
        if separator and len({len(next(_reader([one], separator))) for one in (comments[last], line)}) == 1:
            return last, separator
    if separator := _separator(line):
        return len(comments), separator
    if 1 < len(line.split()) in [len(comment.strip("# \n").split()) for comment in comments]:
        raise InputError(f"{table} has columns separated by blanks: save it as CSV or as .ecsv")
    return 0, _separator(first) or ","


def _separator(line: str) -> str:
    """What separates most cells of a line; nothing where it has one cell."""
    plain = re.sub(r'"[^"]*"', "", line)
    found = max(",;\t|", key=plain.count)
    return found if found in plain else ""


def _reader(lines: Iterable[str], separator: str) -> Any:
    return csv.reader(lines, delimiter=separator, skipinitialspace=separator != "\t")


def _ragged(table: Path, line: int, cells: list[str], header: list[str], separator: str) -> str:
    name = {",": "comma", ";": "semicolon", "\t": "tab", "|": "bar"}[separator]
    count = f"{len(cells)} cell{'s' * (len(cells) != 1)} where the header has {len(header)}"
    if len(cells) > len(header) and not any(cell.strip() for cell in cells[len(header) :]):
        return f"{table}, line {line} ends in a {name} too many ({count}): remove it"
    return f"{table}, line {line} has {count}: correct it, and quote cells that hold a {name}"


def _check_names(names: list[str], table: Path) -> None:
    if not any(names):
        raise InputError(f"{table} has no line with the names of its columns: add one")
    for name in names:
        if not name:
            raise InputError(f"{table} has a column without a name: name it")
        if names.count(name) > 1:
            raise InputError(f"{table} has two columns {name!r}: rename or remove one of them")


def _read_parquet(table: Path, cell_of: Callable[[Any], Any]) -> Columns:
    with parquet.ParquetFile(table) as file:
        columns = file.read()
    _check_names(columns.column_names, table)
    values = (column.to_pylist() for column in columns.columns)
    return Columns({name: list(map(cell_of, column)) for name, column in zip(columns.column_names, values)})


def _read_votable(table: Path, cell_of: Callable[[Any], Any]) -> Columns:
    content = table.read_bytes()
    if re.search(rb"<STREAM[^>]*\bhref", content, re.I):  # which the parser would fetch
        raise InputError(f"{table} names another file as its content: save it with the content inside")
    found = votable.parse(io.BytesIO(content), verify="ignore").get_first_table()
    return _of_astropy(found.to_table(use_names_over_ids=True), cell_of)


def _of_astropy(table: Any, cell_of: Callable[[Any], Any]) -> Columns:
    values = {str(name).strip(): list(map(cell_of, _listed(table[name]))) for name in table.colnames}
    units = {name: str(table[name].unit) for name in table.colnames if getattr(table[name], "unit", None)}
    return Columns(values, units)


def _listed(column: Any) -> list:
    """The values of a column; the Python values of numpy's, `None` where masked."""
    if np.ma.isMA(column):
        return np.ma.asarray(column).astype(object).tolist()  # np.ma.filled would take None for the default, 999999
    if isinstance(column, np.ndarray):
        return np.asarray(column).tolist()
    return [getattr(value, "value", value) for value in column]


def typed(values: list, is_text: bool) -> tuple[str, list] | None:
    """
    A column of a dataset: its type (`int64`, `float64`, `bool` or `string`) and values; `None` for a column of lists.

    Args:
        values (`list`): what [`plain`] returned.
        is_text (`bool`): numbers are written as text and become numbers where nothing is lost.
    """
    present = [value for value in values if value is not None]
    if any(isinstance(value, list | tuple | dict | np.ndarray) for value in present):
        return None
    if is_text:
        kind = _kind_of_text(present)
    elif all(isinstance(value, bool) for value in present):
        kind = "bool"
    elif all(_is_int64(value) for value in present):
        kind = "int64"
    else:
        is_number = all(isinstance(value, float) or _is_int64(value) for value in present)
        kind = "float64" if is_number else "string"
    kind = kind if present else "string"
    make = {"bool": bool, "int64": int, "float64": float, "string": str}[kind]
    return kind, [None if value is None else make(value) for value in values]


def _is_int64(value: object) -> bool:
    """Larger whole numbers, such as unsigned ids, become text, since a float would lose digits."""
    return isinstance(value, int) and -(2**63) <= value < 2**63


def _kind_of_text(values: list[str]) -> str:
    """Numbers with leading zeros, or more digits than a number holds, stay text: they are names."""
    if all(re.fullmatch(r"0|-?[1-9]\d{0,17}", value) for value in values):
        return "int64"
    number = r"[+-]?(?:(?:0|[1-9]\d{0,14})(?:\.\d*)?|\.\d+)(?:e[+-]?\d+)?|[+-]?inf(?:inity)?"
    return "float64" if all(re.fullmatch(number, value, re.I) for value in values) else "string"
