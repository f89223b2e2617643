"""The rows of a table as cutouts: their files, labels, groups, splits, positions and further columns."""

import math
import os
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from astropy.coordinates import Angle
from astropy.units import Unit

from ...errors import InputError
from ..files.cells import plain
from ..files.stacks import HDF5_SUFFIXES, STACK_SUFFIXES, Stack, open_hdf5, open_npy
from ..options import DataArguments
from .file_patterns import check_pattern, suggest_pattern
from .labels import check_label_map, label_of, parse_label_map
from .names import harmless_names, local_path
from .rows import BadFiles, Listing, Row
from .splits import SPLIT_NAMES
from .table_files import TABLE_SUFFIXES, Columns, read_table, typed

OWN_COLUMNS = ("id", "pixels", "label", "subclass", "group", "ra", "dec", "image")  # of every dataset
_HOURS = "h|hrs?|hours?|hourangle"
_ANGLES = {"degs?|degrees?": 1.0, "rads?|radians?": math.degrees(1), _HOURS: 15.0}  # as catalogues spell them
_KEYS = ("file", "label", "split", "fold", "group", "ra", "dec", "subclass", "id")


def list_catalogue(table: Path, options: DataArguments, bad: BadFiles) -> Listing:
    """
    Cutouts that a table names, one a row: files, or the cutouts of a stack of the same name where it names none.

    Raises:
        [`InputError`]: a column is missing or cannot be told from another; a cell cannot be understood.
    """
    columns, stack = open_catalogue(table, options)
    return list_rows(table, columns, options, bad, stack)


def open_catalogue(table: Path, options: DataArguments) -> tuple[Columns, Stack | None]:
    """A table, and the stack of the same name where the table names no files."""
    columns = read_table(table, with_words=bool(options.label_map))
    if options.file_column == DataArguments.file_column and not _matches(options.file_column, list(columns.values)):
        if stack := _stack_beside(table, options):
            _refuse_pattern(table, options)
            _check_lengths(stack, table, columns)
            return columns, stack
    return columns, None


def list_stack(path: Path, options: DataArguments, bad: BadFiles) -> Listing:
    """
    The cutouts of a stack, with the columns beside it in HDF5, or those of a table of the same name; without a column
    of labels they are unlabelled.

    Raises:
        [`InputError`]: the file holds no stack, or several; or it and its table differ in length.
    """
    table, columns, stack, left_out = open_stack(path, options)
    listing = list_rows(table, columns, options, bad, stack)
    listing.left_out = [*left_out, *listing.left_out]
    return listing


def open_stack(path: Path, options: DataArguments) -> tuple[Path, Columns, Stack, list[str]]:
    """The file that holds the columns of a stack, these columns, the stack, and what of the file is left out."""
    _refuse_pattern(path, options)
    with_words = bool(options.label_map)
    if path.name.lower().endswith(HDF5_SUFFIXES):
        stack, values, left_out = open_hdf5(path, options.hdu, with_words)
        return path, Columns(values), stack, left_out
    tables = [path.with_name(name) for name in _siblings(path, TABLE_SUFFIXES)]
    if len(tables) > 1:
        raise InputError(f"{tables[0]} and {tables[1]} both stand beside {path}: keep one of them")
    stack = open_npy(path, has_table=bool(tables))
    if not tables:
        return path, Columns({}), stack, []
    columns = read_table(tables[0], with_words)
    _check_lengths(stack, tables[0], columns)
    return tables[0], columns, stack, []


def _refuse_pattern(path: Path, options: DataArguments) -> None:
    if options.file_pattern:
        raise InputError(f"file_pattern has no meaning for {path}, of which a stack holds all cutouts: leave it out")


def _check_lengths(stack: Stack, table: Path, columns: Columns) -> None:
    count = len(next(iter(columns.values.values()), ()))
    if len(stack) != count:
        raise InputError(f"{stack.path} holds {len(stack)} cutouts and {table} {count} rows: give one row per cutout")


def _stack_beside(table: Path, options: DataArguments) -> Stack | None:
    """The stack that has the name of a table but for the suffix, if there is one."""
    found = [table.with_name(name) for name in _siblings(table, STACK_SUFFIXES)]
    if len(found) > 1:
        raise InputError(f"{found[0]} and {found[1]} both stand beside {table}: give one of them as the dataset")
    if not found:
        return None
    if found[0].name.lower().endswith(HDF5_SUFFIXES):
        return open_hdf5(found[0], options.hdu)[0]
    return open_npy(found[0], has_table=True)


def _siblings(path: Path, suffixes: tuple[str, ...]) -> list[str]:
    """Names beside `path` that differ from its own by one of these suffixes."""
    stem = path.stem
    names = (entry.name for entry in path.parent.iterdir() if entry.is_file() and entry.name != path.name)
    return sorted(name for name in names if name.startswith(stem) and name[len(stem) :].lower() in suffixes)


def list_rows(
    table: Path, columns: Columns, options: DataArguments, bad: BadFiles, stack: Stack | None = None
) -> Listing:
    """As [`list_catalogue`], of a table that has been read; the pixels are those of `stack` where one is given."""
    label_map = parse_label_map(options.label_map)
    names = _column_names(table, list(columns.values), options, stack is not None)
    if label_map:  # then the words of labels were kept, which stand for missing values in all other columns
        others = columns.values.keys() - {names.get("label")}
        columns.values |= {name: list(map(plain, columns.values[name])) for name in others}
    _refuse_unused_splits(table, columns, names, options)
    count = len(next(iter(columns.values.values()), ())) if columns.values else len(stack or ())
    if not count:
        raise InputError(f"{table} names no cutouts: add rows")
    text = {key: [_text(value) for value in columns.values[name]] for key, name in names.items()}
    paths = _paths(table, text, options, stack, count)
    ids = _ids(table, columns, names, text, stack, count)
    if "label" in text:
        check_label_map(label_map, set(text["label"]), f"column {names['label']!r} of {table}")
    extra, left_out, notes = _further_columns(table, columns, names)
    if "label" not in text:
        have = f" (it has {', '.join(columns.values)}; name yours with label_column)" if columns.values else ""
        notes = [f"{table} has no column {options.label_column!r}{have}", *notes]
    groups, kinds = (harmless_names(text.get(key) or [""] * count, table.parent) for key in ("group", "subclass"))
    rows, seen = [], {}
    for i, name in enumerate(ids):
        cell = {key: values[i] for key, values in text.items()}
        where = f"{table}, row {i + 1}"
        if paths[i] in seen and stack is None:
            twice = f"{table} names {cell['file']} twice, in rows {seen[paths[i]]} and {i + 1}: remove one of them"
            bad.add(f"{cell['file']} (row {i + 1})", InputError(twice))
            continue
        seen[paths[i]] = i + 1
        label = _label(cell.get("label", ""), where, names.get("label"), label_map)
        ra, dec = (read_position(key, cell.get(key), where, names.get(key), columns.units) for key in ("ra", "dec"))
        split = _split(cell, label, where, options, names)
        row = Row(name, paths[i], label, split, groups[i], kinds[i], ra, dec)
        row.position = None if stack is None else i
        row.columns = {key: values[i] for key, (_, values) in extra.items()}
        rows.append(row)
    _check_folds(table, rows, text, options)
    return Listing(rows, left_out, notes, {key: kind for key, (kind, _) in extra.items()}, stack)


def find_column(name: str, available: Sequence[str], table: Path, key: str) -> str | None:
    """
    The column that is called `name`, else the one that is without regard to case, `None` where there is none.

    Raises:
        [`InputError`]: several columns differ from `name` by case alone.
    """
    found = _matches(name, available)
    if len(found) > 1:
        raise InputError(
            f"{table} has the columns {' and '.join(found)}: name the one that is meant with {key}_column"
        )
    return found[0] if found else None


def _matches(name: str, available: Sequence[str]) -> list[str]:
    if name in available:
        return [name]
    return [column for column in available if column.strip().casefold() == name.strip().casefold()]


def _column_names(table: Path, available: list[str], options: DataArguments, has_stack: bool) -> dict[str, str]:
    """The table's names of the columns that matter; those that are missing and may be are left out."""
    names = {}
    required = set() if has_stack else {"file"}
    required |= {"fold"} if options.test_fold is not None else set()
    required |= {"label"} if options.label_map else set()
    for key in _KEYS:
        if key == "file" and has_stack:
            continue
        name = getattr(options, f"{key}_column")
        found = find_column(name, available, table, key)
        if found is not None:
            names[key] = found
        elif key in required or name != getattr(DataArguments, f"{key}_column"):
            raise InputError(
                f"{table} has no column {name!r} (it has {', '.join(available)}): name yours with {key}_column"
            )
    return names


def _refuse_unused_splits(table: Path, columns: Columns, names: dict[str, str], options: DataArguments) -> None:
    """
    Raises:
        [`InputError`]: a column without a meaning holds splits, in place of which others would be drawn.
    """
    if "split" in names or options.test_fold is not None:
        return
    for name in set(columns.values) - set(names.values()):
        words = {_text(value).strip().lower() for value in columns.values[name]} - {""}
        if words <= set(SPLIT_NAMES) and len({SPLIT_NAMES[word] for word in words}) > 1:
            found = ", ".join(sorted(words))
            raise InputError(
                f"{table} holds splits in column {name!r} ({found}): give split_column {name}, or remove it"
            )


def _paths(
    table: Path, text: dict[str, list[str]], options: DataArguments, stack: Stack | None, count: int
) -> list[tuple[Path, ...]]:
    """The files of each row."""
    if stack is not None:
        return [(stack.path,)] * count
    if options.file_pattern:
        check_pattern(options.file_pattern, options.bands)
    elif option := suggest_pattern(text["file"]):
        raise InputError(
            f"{table} names one file per band, which belong to one cutout: give {option}, and one row for each object "
            f"with what stands for {{id}} in column {options.file_column!r}"
        )
    paths = []
    for i, name in enumerate(text["file"]):
        if not name:
            where = f"{table}, row {i + 1}"
            raise InputError(f"{where}: column {options.file_column!r} is empty: name the file or remove the row")
        pattern = options.file_pattern
        files = [pattern.format(id=name, band=band) for band in options.bands] if pattern else [name]
        paths.append(tuple(local_path(file, table.parent) for file in files))
    if paths and not any(os.path.lexists(files[0]) for files in paths[:20]):
        raise InputError(f"{table}: {paths[0][0]} does not exist: paths in a table are relative to its folder")
    return paths


def _ids(
    table: Path,
    columns: Columns,
    names: dict[str, str],
    text: dict[str, list[str]],
    stack: Stack | None,
    count: int,
) -> list[str]:
    """The name of each row in the dataset: its id, else its file, else its place in the stack."""
    if "id" not in names:
        if stack is not None:
            return [f"{stack.path.stem}-{i}" for i in range(count)]
        return harmless_names(text["file"], table.parent)
    refuse_rounded(columns.values[names["id"]], table, names["id"])
    ids = harmless_names([identifier(value) for value in columns.values[names["id"]]], table.parent)
    rows: dict[str, int] = {}
    for i, name in enumerate(ids):
        if not name:
            raise InputError(
                f"{table}, row {i + 1}: column {names['id']!r} is empty: fill it, or give another id_column"
            )
        if name in rows:
            raise InputError(
                f"{table} has the id {name!r} in rows {rows[name] + 1} and {i + 1}: make ids unique, or give another "
                "id_column"
            )
        rows[name] = i
    return ids


def _further_columns(
    table: Path, columns: Columns, names: dict[str, str]
) -> tuple[dict[str, tuple[str, list]], list[str], list[str]]:
    """Type and values of the columns that have no meaning of their own; those left out; and what was renamed."""
    found: dict[str, tuple[str, list]] = {}
    left_out, notes = [], []
    for name, values in columns.values.items():
        if name in names.values():
            continue
        column = typed(values, columns.is_text)
        if column is None:
            left_out.append(f"column {name} (not one value per row)")
            continue
        kind, values = column
        if kind == "string":
            texts = iter(harmless_names([value for value in values if value is not None], table.parent))
            values = [None if value is None else next(texts) for value in values]
        own = name.replace(".", "_")  # a dot means a nested column to Parquet
        own = f"table_{own}" if own.lower() in OWN_COLUMNS or own in found else own
        if own != name:
            notes.append(f"column {name} of the table is called {own}")
        found[own] = (kind, values)
    return found, left_out, notes


def _label(text: str, where: str, column: str | None, label_map: dict[str, int]) -> int:
    label = label_of(text, label_map)
    if label is None:
        raise InputError(
            f"{where}: unknown label {text!r} in column {column!r}: use lens/nonlens, 1/0 or true/false, and nothing "
            f"or -1 for no label; or say what it means, as in --label_map '{text}=nonlens'"
        )
    return label


def _split(cell: dict[str, str], label: int, where: str, options: DataArguments, names: dict[str, str]) -> str | None:
    if options.test_fold is not None:
        fold = _number(cell["fold"], where, names["fold"])
        if fold is None and label >= 0:
            raise InputError(f"{where}: column {names['fold']!r} is empty: give a fold")
        if fold == options.test_fold:
            return "test"
        return "validation" if fold is not None and fold == options.validation_fold else "train"
    text = cell.get("split", "").lower()
    if text and text not in SPLIT_NAMES and not (label < 0 and text in ("unlabelled", "unlabeled")):
        raise InputError(
            f"{where}: unknown split {text!r} in column {names['split']!r}: use train, validation or test"
        )
    return SPLIT_NAMES.get(text)


def _check_folds(table: Path, rows: list[Row], text: dict[str, list[str]], options: DataArguments) -> None:
    if options.validation_fold is not None and options.test_fold is None:
        raise InputError("validation_fold is given without test_fold: give both, or only test_fold")
    for option, split in (("test_fold", "test"), ("validation_fold", "validation")):
        fold = getattr(options, option)
        if fold is not None and not any(row.split == split for row in rows):
            folds = ", ".join(sorted(set(text["fold"]) - {""}))
            raise InputError(f"{table} has no cutouts of {option} {fold} alone: choose among the folds {folds}")


def read_position(key: str, text: str | None, where: str, column: str | None, units: dict[str, str]) -> float | None:
    """Degrees from a cell of `ra` or `dec`: a number, or sexagesimal (hours for `ra`)."""
    if not text:
        return None
    if re.fullmatch(r"[+-]?\s*\d+(?:\s*[:hdms°′″'\"]\s*|\s+)\d+.*", text):
        degrees = _sexagesimal(key, text, where, column)
    else:
        degrees = _number(text, where, column)
        if unit := units.get(column):
            degrees = _in_degrees(degrees, unit, key, where, column)
    low, high = {"ra": (-360, 360), "dec": (-90, 90)}[key]
    if not low <= degrees <= high:
        raise InputError(
            f"{where}: {text!r} in column {column!r} is no {key} in degrees: correct it, or leave it empty"
        )
    return degrees


def _sexagesimal(key: str, text: str, where: str, column: str) -> float:
    try:
        unit = None if re.search("[hd°]", text) else "hourangle" if key == "ra" else "deg"
        return float(Angle(text, unit=unit).deg)
    except (ValueError, TypeError) as error:  # astropy's errors of units are of these
        raise InputError(f"{where}: {text!r} in column {column!r} is no position: correct it") from error


def _in_degrees(value: float, unit: str, key: str, where: str, column: str) -> float:
    words = re.sub(r"[(\[].*?[)\]]|decimal", "", unit.lower()).strip()  # deg (J2000), decimal degrees
    for pattern, degrees in _ANGLES.items():
        if re.fullmatch(pattern, words):
            if pattern == _HOURS and key != "ra":
                raise InputError(f"{where}: column {column!r} has the unit {unit}, in which only ra is: give degrees")
            return value * degrees
    try:
        return float((value * Unit(unit)).to_value("deg"))
    except (ValueError, TypeError) as error:
        raise InputError(f"{where}: column {column!r} has the unit {unit}, which is no angle: give degrees") from error


def _text(value: Any) -> str:
    """A cell as text, whole numbers without a point; nothing where it is empty."""
    if value is None:
        return ""
    text = str(int(value)) if isinstance(value, float) and value.is_integer() else str(value)
    return re.sub(r"^(-?\d+)\.0+$", r"\1", text)


def identifier(value: Any) -> str:
    """An id as text; a number that stands as 1.0, as pandas has integers beside missing values, is 1."""
    return "" if value is None else _text(value) if isinstance(value, float) else str(value)


def refuse_rounded(ids: Sequence[object], table: object, column: str) -> None:
    """
    Refuse ids that pandas made floats, as it does beside a missing one: beyond 2^53 they may be those of neighbours.

    Raises:
        [`InputError`]: one of them is such a float.
    """
    if any(isinstance(one, float) and abs(one) >= 2**53 for one in ids):
        raise InputError(
            f"{table}, column {column!r}: ids are stored as floats and have lost digits: save them as integers or text"
        )


def _number(text: str | None, where: str, column: str | None) -> float | None:
    try:
        number = float(text) if text else None
    except ValueError:
        number = math.inf
    if number is not None and not math.isfinite(number):
        raise InputError(f"{where}: {text!r} in column {column!r} is not a number: correct it")
    return number
