"""The cutouts of a source as rows, before any pixel is read."""

import csv
import io
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ...errors import InputError
from ...files import write_text
from ...quoting import in_spreadsheet
from ..files.stacks import Stack
from .labels import NAME_OF_LABEL


@dataclass
class Row:
    """
    One cutout that a source names.

    Args:
        id (`str`): its name in the dataset.
        paths (`tuple[Path, ...]`): one file, or one per band.
        label (`int`): 1 lens, 0 nonlens, -1 unlabelled.
        split (`str`, *optional*): as the source gives it; `None` until it is assigned.
        group, subclass (`str`): what splits must not divide, by default the id; kind of object.
        ra, dec (`float`, *optional*): degrees.
        digest (`str`): hash of the content.
        position (`int`, *optional*): number of the cutout in a stack, from 0.
        columns (`dict`): further columns of a table.
    """

    id: str
    paths: tuple[Path, ...]
    label: int
    split: str | None = None
    group: str = ""
    subclass: str = ""
    ra: float | None = None
    dec: float | None = None
    digest: str = ""
    position: int | None = None
    columns: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self):
        self.group = self.group or self.id

    @property
    def name(self) -> str:
        """How errors call it; a position off every tile has no file."""
        name = str(self.paths[0] if self.paths else self.id)
        return name if self.position is None else f"{name}, cutout {self.position + 1}"

    @property
    def names(self) -> list[str]:
        """All that errors may call it, or a file of it."""
        return [self.name, *map(str, self.paths)]


@dataclass
class BadFiles:
    """What happens to a bad file: with `policy="error"` its error is raised, with `"skip"` it is noted."""

    policy: str = "error"
    problems: dict[str, str] = field(default_factory=dict)

    def add(self, name: str, error: InputError) -> None:
        """Raise `error` or note it as the problem of `name`."""
        if self.policy == "error":
            raise error
        self.problems.setdefault(name, str(error))

    def __str__(self) -> str:
        """What to add to an error that the files left out may explain; nothing where there are none."""
        if not self.problems:
            return ""
        return f" (bad files left out: {len(self.problems)}, the first: {next(iter(self.problems.values()))})"

    def write(self, path: Path) -> None:
        """Write the notes as CSV with the columns file and problem."""
        text = io.StringIO()
        writer = csv.writer(text, lineterminator="\n")
        writer.writerow(["file", "problem"])
        writer.writerows(map(in_spreadsheet, row) for row in self.problems.items())
        write_text(path, text.getvalue())


def bad_files(count: int) -> list[str]:
    """Their number as one of the things that are left out, for people; nothing where there are none."""
    return [f"{count} bad file{'s' * (count > 1)}"] if count else []


@dataclass
class Listing:
    """
    What a source holds.

    Args:
        rows (`list[Row]`): its cutouts.
        left_out (`list[str]`): what of it is no part of the dataset, for people; without its bad files.
        notes (`list[str]`): further sentences on how it was understood.
        columns (`dict[str, str]`): types of the further columns of a table.
        stack ([`Stack`], *optional*): the array that holds the pixels of all rows.
    """

    rows: list[Row]
    left_out: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    columns: dict[str, str] = field(default_factory=dict)
    stack: Stack | None = None

    def __str__(self) -> str:
        """One line: how many cutouts of each label were taken, and what was left out."""
        labels = Counter(row.label for row in self.rows)
        taken = ", ".join(f"{labels[label]} {name}" for label, name in NAME_OF_LABEL.items() if labels[label])
        if set(labels) == {-1}:
            taken += ", none with a label: for pretraining and predictions only"
        parts = [f"{len(self.rows)} cutouts taken ({taken})", f"left out: {', '.join(self.left_out) or 'nothing'}"]
        return "; ".join([*parts, *self.notes])
