"""Tables of grades: which objects people call lenses, and how far they agree."""

import logging
import os
from collections.abc import Collection, Iterator, Mapping, Sequence
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np
import pandas
from sklearn.metrics import cohen_kappa_score

from ..data.listing.table_files import read_table
from ..data.listing.tables import identifier, refuse_rounded
from ..errors import InputError
from ..quoting import in_spreadsheet

logger = logging.getLogger(__name__)

POSITIVE = ("A", "B")
_COLUMNS = ("id", "grade", "grader", "time")
_OTHER_GRADES = {"lens": True, "1": True, "1.0": True, "true": True}
_OTHER_GRADES |= {"nonlens": False, "0": False, "0.0": False, "false": False}


def read_grades(
    tables: str | os.PathLike | Sequence[str | os.PathLike], positive: Sequence[str] = POSITIVE
) -> pandas.DataFrame:
    """
    The votes in tables with the columns `id`, `grade` and perhaps `grader`; rows without a grade are left out.

    Args:
        tables (`str`, `os.PathLike`, or list of them):
            Files of the grading page, or others. One without graders is of a grader of its own.
        positive (`Sequence[str]`): which of the grades A, B and C make a lens; X never does.

    Returns:
        `pandas.DataFrame`: `file`, `id`, `grader`, `grade` (all `str`), `time` (`str`, or `None` where the table has
        none) and `vote` (1.0 lens, 0.0 no lens), one row for each object and grader: where a grader repeats, the last
        one by `time`, or in the order of the tables where that is not known.

    Raises:
        [`InputError`]: a table cannot be read, lacks a column or has it twice, or has ids that lost digits, an unknown
            grade or a time that is no ISO 8601; or there is no grade at all.
    """
    tables = [tables] if isinstance(tables, str | os.PathLike) else tables
    lenses = {str(one).upper() for one in positive}
    if not lenses or not lenses <= {"A", "B", "C"}:
        raise InputError(f"positive is {' '.join(map(str, positive)) or 'empty'}: choose from A, B and C")
    votes = {grade.lower(): grade in lenses for grade in "ABCX"} | _OTHER_GRADES
    rows = [row for table in tables for row in _rows(Path(table), votes)]
    if not rows:
        raise InputError(f"{', '.join(map(str, tables)) or 'labels'} holds no grade: grade some objects first")
    found = pandas.DataFrame(rows, columns=["file", "id", "grader", "grade", "time", "vote"])
    by_grader = found.groupby(["id", "grader"], sort=False)
    if changed := int((by_grader["vote"].nunique() > 1).sum()):
        logger.warning(f"{changed} objects were graded twice, and otherwise, by one grader: the last grade counts")
    return _last(found)


def _last(grades: pandas.DataFrame) -> pandas.DataFrame:
    """One grade for each object and grader: see [`read_grades`]."""
    grades = grades.reset_index(drop=True)
    groups = grades.groupby(["id", "grader"]).ngroup()
    timed = pandas.DataFrame({"group": groups, "time": _times(grades["time"])}).dropna()
    # Those of a group change places among each other; a row without a time keeps its own.
    order = grades.index.to_numpy(copy=True)
    in_time = timed.sort_values("time", kind="stable").sort_values("group", kind="stable")
    order[timed.sort_values("group", kind="stable").index] = in_time.index
    return grades.iloc[order].drop_duplicates(["id", "grader"], keep="last").reset_index(drop=True)


def _times(texts: Sequence[str | None]) -> pandas.Series:
    """NaT where a text is none, or no time."""
    return pandas.to_datetime(pandas.Series(texts, dtype=object), utc=True, errors="coerce", format="ISO8601")


def _rows(table: Path, votes: Mapping[str, bool]) -> Iterator[tuple[Any, ...]]:
    columns = _columns(table)
    nothing = [None] * len(columns["id"])
    times = [None if time is None else str(time) for time in columns.get("time", nothing)]
    cells = zip(columns["id"], columns["grade"], columns.get("grader", nothing), times, _times(times).isna())
    for number, (name, grade, grader, time, is_no_time) in enumerate(cells, start=1):
        if grade is None:
            continue
        if name is None:
            raise InputError(f"{table}, row {number} has a grade but no id: fill it")
        vote = votes.get(str(grade).lower())
        if vote is None:
            raise InputError(f"{table}, row {number} has the grade {grade!r}: give A, B, C or X, or lens or nonlens")
        if time is not None and is_no_time:
            raise InputError(
                f"{table}, row {number} has the time {time!r}: give ISO 8601, such as 2026-01-31T10:00:00Z, or none"
            )
        text = str(grade).upper() if len(str(grade)) == 1 else str(grade)
        yield str(table), identifier(name), _unquoted(identifier(grader)) or str(table), text, time, float(vote)


def _columns(table: Path) -> dict[str, list]:
    """The columns that matter, by their usual names."""
    values = read_table(table).values
    names = {key: [name for name in values if name.strip().lower() == key] for key in _COLUMNS}
    for key, found in names.items():
        if len(found) > 1:
            raise InputError(f"{table} has the columns {' and '.join(found)}: keep one of them")
        if not found and key in ("id", "grade"):
            raise InputError(f"{table} has no column {key!r} (it has {', '.join(values)}): add it")
    refuse_rounded(values[names["id"][0]], table, names["id"][0])
    return {key: values[found[0]] for key, found in names.items() if found}


def _unquoted(text: str) -> str:
    """A text without the `'` that a table for spreadsheets put in front of it."""
    return text[1:] if text.startswith("'") and in_spreadsheet(text[1:]) == text else text


def spellings(ids: Sequence[str]) -> set[str]:
    """The ids, and what they are where a table for spreadsheets put a `'` in front of them."""
    return {*ids, *map(_unquoted, ids)}


def grades_of(grades: pandas.DataFrame, known: Collection[str]) -> pandas.DataFrame:
    """Those that [`read_grades`] returned of the objects in `known`, with their ids as they are there."""
    found = grades.assign(id=[_spelling(one, known) for one in grades["id"]]).dropna(subset="id")
    return _last(found)


def votes_by_object(grades: pandas.DataFrame, known: Collection[str], place: str) -> pandas.DataFrame:
    """
    What [`read_grades`] returned as a table of objects and graders.

    Args:
        known (`Collection[str]`): the ids that there are.
        place (`str`): where, for errors.

    Returns:
        `pandas.DataFrame`: index `id`, a column for each grader; 1.0, 0.0, or NaN where a grader gave no grade.

    Raises:
        [`InputError`]: an id is unknown; names the first and its file.
    """
    unknown = [number for number, one in enumerate(grades["id"]) if _spelling(one, known) is None]
    if unknown:
        first = grades.iloc[unknown[0]]
        raise InputError(
            f"{first['file']} has a grade of {first['id']!r}, which {place} does not hold ({len(unknown)} such): "
            "give grades of the objects in it"
        )
    return grades_of(grades, known).pivot(index="id", columns="grader", values="vote")


def _spelling(name: str, known: Collection[str]) -> str | None:
    """An id as `known` has it, where it does."""
    return next((one for one in (name, _unquoted(name)) if one in known), None)


def agreement(votes: pandas.DataFrame) -> dict[str, Any]:
    """
    How far graders agree on what is a lens.

    Args:
        votes (`pandas.DataFrame`): what [`votes_by_object`] returns.

    Returns:
        `dict`: `pairs`, each with the number of `shared` objects, the share of equal verdicts (`raw`) and Cohen's
        (1960) `kappa`; and of three graders or more `fleiss`. A value that cannot be computed is null, with a reason.
    """
    pairs = [_pair(*two, votes[list(two)].dropna()) for two in combinations(votes.columns, 2)]
    found: dict[str, Any] = {"graders": {name: int(column.count()) for name, column in votes.items()}, "pairs": pairs}
    if len(votes.columns) > 2:
        found["fleiss"] = _fleiss(votes.dropna().to_numpy())
    return found


def _pair(one: str, other: str, both: pandas.DataFrame) -> dict[str, Any]:
    facts = {"graders": [one, other], "shared": len(both), "raw": None, "kappa": None}
    if both.empty:
        return facts | {"reason": "they share no object"}
    facts["raw"] = float((both[one] == both[other]).mean())
    if len(np.unique(both)) < 2:
        return facts | {"reason": "both gave one verdict only"}
    return facts | {"kappa": float(cohen_kappa_score(both[one], both[other]))}


def _fleiss(votes: np.ndarray) -> dict[str, Any]:
    """Kappa of Fleiss (1971) of `(objects, graders)` votes: of the objects that all have graded."""
    facts: dict[str, Any] = {"shared": len(votes), "kappa": None}
    if not len(votes):
        return facts | {"reason": "no object was graded by all"}
    graders, lenses = votes.shape[1], votes.sum(axis=1)
    share = votes.mean()
    if share in (0, 1):
        return facts | {"reason": "all gave one verdict only"}
    equal = (lenses * (lenses - 1) + (graders - lenses) * (graders - lenses - 1)) / (graders * (graders - 1))
    chance = share**2 + (1 - share) ** 2
    return facts | {"kappa": float((equal.mean() - chance) / (1 - chance))}
