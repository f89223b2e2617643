"""The cutouts of a source as rows, before any pixel is read: labels, safe names, copies, groups and splits."""

import csv
import hashlib
import logging
import os
import re
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import unquote, urlparse

import numpy as np

from ..errors import InputError
from ..quoting import in_spreadsheet
from .pool import map_chunks
from .readers import check_file

if TYPE_CHECKING:
    from .stacks import Stack

logger = logging.getLogger(__name__)

LABELS = ("nonlens", "lens")
LABELLED_SPLITS = ("train", "validation", "test")
SPLIT_NAMES = {"train": "train", "training": "train", "test": "test", "testing": "test"}
SPLIT_NAMES |= dict.fromkeys(["val", "valid", "validation", "dev"], "validation")
_LABEL_NAMES = {"lens": 1, "1": 1, "true": 1, "nonlens": 0, "0": 0, "false": 0}
_LABEL_NAMES |= dict.fromkeys(["", "-1", "unlabelled", "unlabeled"], -1)
_PRIVATE = re.compile(
    r"^\s*[\"']?(?:/\S|\\\\|[A-Z]:[\\/])|(?:^|[\s,;=:\"'(])(?:file:/|~[\w.-]*[\\/]|/(?:home|users|root)/)", re.I
)
_PIECE = 1 << 20  # bytes of a file that are hashed at once


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
        """How errors call it."""
        return str(self.paths[0]) if self.position is None else f"{self.paths[0]}, cutout {self.position + 1}"


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
        return f" ({len(self.problems)} bad files are left out, the first: {next(iter(self.problems.values()))})"

    def write(self, path: str | Path) -> None:
        """Write the notes as CSV with the columns file and problem."""
        path = Path(path)
        temporary = path.with_name(f".{path.name}.{os.getpid()}")
        try:
            with open(temporary, "w", newline="", encoding="utf-8") as stream:
                writer = csv.writer(stream)
                writer.writerow(["file", "problem"])
                writer.writerows(map(in_spreadsheet, row) for row in self.problems.items())
            os.replace(temporary, path)
        except OSError as error:
            raise InputError(
                f"cannot write {path} ({error.strerror or error}): choose another bad_file_report"
            ) from error


@dataclass
class Listing:
    """
    What a source holds.

    Args:
        rows (`list[Row]`): its cutouts.
        left_out (`list[str]`): what of it is no part of the dataset, for people.
        notes (`list[str]`): further sentences on how it was understood.
        columns (`dict[str, str]`): types of the further columns of a table.
        stack ([`~stacks.Stack`], *optional*): the array that holds the pixels of all rows.
    """

    rows: list[Row]
    left_out: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    columns: dict[str, str] = field(default_factory=dict)
    stack: "Stack | None" = None

    def __str__(self) -> str:
        """One line: how many cutouts of each label were taken, and what was left out."""
        labels = Counter(row.label for row in self.rows)
        names = {1: "lens", 0: "nonlens", -1: "unlabelled"}
        taken = ", ".join(f"{labels[label]} {name}" for label, name in names.items() if labels[label])
        if set(labels) == {-1}:
            taken += " alone, for pretraining and predictions"
        parts = [f"{len(self.rows)} cutouts taken ({taken})", f"left out: {', '.join(self.left_out) or 'nothing'}"]
        return "; ".join([*parts, *self.notes])


def parse_label_map(entries: Sequence[str] | None) -> dict[str, int]:
    """`["Galaxy=nonlens"]` -> `{"Galaxy": 0}`."""
    labels = {"lens": 1, "nonlens": 0, "unlabelled": -1}
    found: dict[str, int] = {}
    for entry in entries or ():
        name, equals, label = entry.rpartition("=")
        name, label = name.strip(), label.strip()
        if not equals or not name or label not in labels:
            raise InputError(f"label_map {entry!r} must be NAME=lens, NAME=nonlens or NAME=unlabelled")
        if found.setdefault(name, labels[label]) != labels[label]:
            raise InputError(f"label_map gives {name!r} two labels: give it one")
    return found


def label_of(text: str, label_map: Mapping[str, int]) -> int | None:
    """The label that a cell stands for, `None` where that is not known."""
    if text in label_map:
        return label_map[text]
    return _LABEL_NAMES.get(re.sub(r"[ _-]", "", text.lower()) if text != "-1" else "-1")


def check_label_map(label_map: Mapping[str, int], found: set[str], where: str) -> None:
    """
    Raises:
        [`InputError`]: a name of the map does not occur: it is misspelt.
    """
    for name in label_map:
        if name not in found:
            have = ", ".join(sorted(found)[:20]) or "none"
            raise InputError(f"label_map names {name!r}, which {where} does not hold (it has {have}): correct it")


def local_path(text: str, folder: Path) -> Path:
    """The file that a cell of a table in `folder` names: relative to it, absolute, `~/...` or `file:///...`."""
    if re.match(r"file:", text, re.I):
        text = unquote(urlparse(text).path)
    try:
        return folder / Path(text).expanduser()
    except RuntimeError:  # ~name of nobody
        return folder / text


def harmless_names(texts: Sequence[str], folder: Path) -> list[str]:
    """
    The same texts, with those that are paths of this machine (absolute, `~/...`, `file:///...`, `../...`) relative to
    `folder` or, outside of it, by their last part alone: datasets are published. Equal texts stay equal and others
    stay different.
    """
    texts = list(texts)
    if not any(map(_is_private, texts)):
        return texts
    taken = {text for text in texts if not _is_private(text)}
    names: dict[str, str] = {text: text for text in taken}
    inside = {text: _inside(text, folder) for text in sorted(set(texts) - taken)}
    shorts = {text: name or _last_part(text) for text, name in inside.items()}
    count = Counter(shorts.values())
    for text, short in shorts.items():
        if short in taken or count[short] > 1:
            digest = hashlib.blake2b(text.encode("utf-8", "surrogateescape"), digest_size=4).hexdigest()
            stem, dot, suffix = short.partition(".")
            short = f"{stem}-{digest}{dot}{suffix}"
        names[text] = short
    return [names[text] for text in texts]


def _is_private(text: str) -> bool:
    """Whether a text is a path that tells of a machine: absolute, of a home, a URL of a file, above its folder."""
    return bool(_PRIVATE.search(text)) or ".." in re.split(r"[\\/]", text)


def _inside(text: str, folder: Path) -> str | None:
    """The path relative to `folder`, where it lies inside."""
    for absolute in (os.path.abspath, os.path.realpath):
        relative = os.path.relpath(absolute(local_path(text.strip(), folder)), absolute(folder))
        if not _is_private(relative) and relative != ".":
            return relative
    return None


def _last_part(text: str) -> str:
    parts = [part for part in re.split(r"[\\/]", unquote(text)) if part.strip("~. ")]
    return parts[-1].lstrip("~. ") if len(parts) > 1 or re.search(r"[\\/]", text) else "path"


def digest_rows(
    rows: list[Row], bad: BadFiles, num_proc: int | None = None, stack: "Stack | None" = None
) -> tuple[list[Row], int]:
    """
    Hash the content of every file, or of every cutout of a stack, into `row.digest`.

    Returns:
        `tuple[list[Row], int]`: the rows without bad files (missing ones, labelled copies) and without copies of
        others that are unlabelled, and the number of these copies.
    """
    by_digest = defaultdict(list)
    for row, (digest, problem) in zip(rows, map_chunks(_digest_chunk, rows, num_proc, (stack,))):
        if problem:
            bad.add(_printable(row.name), InputError(problem))
        else:
            row.digest = digest
            by_digest[digest].append(row)
    readable = [row for same in by_digest.values() for row in same]
    kept = {row.id for same in by_digest.values() for row in _without_copies(same, bad)}
    copies = sum(row.label < 0 and row.id not in kept for row in readable)
    return [row for row in rows if row.id in kept], copies


def _digest_chunk(rows: list[Row], stack: "Stack | None") -> list[tuple[str, str]]:
    """Digest and problem of each row, one of them empty."""
    if stack is not None:
        from .stacks import digest_stack_rows

        return [(digest, "") for digest in digest_stack_rows(stack, [row.position for row in rows])]
    return [_digest_row(row) for row in rows]


def _digest_row(row: Row) -> tuple[str, str]:
    digest = hashlib.blake2b(digest_size=16)
    for path in row.paths:
        try:
            str(path).encode()
            path.stat()
            check_file(path)
            with open(path, "rb") as stream:
                while piece := stream.read(_PIECE):
                    digest.update(piece)
        except UnicodeEncodeError:
            return "", f"{_printable(path)} has a name that is not UTF-8: rename the file"
        except InputError as error:
            return "", str(error)
        except FileNotFoundError:
            return "", f"{path} does not exist: restore the file, or leave it out"
        except (OSError, ValueError) as error:  # ValueError: a NUL character in the name
            return "", f"{path} cannot be read ({getattr(error, 'strerror', None) or error}): restore the file"
    return digest.hexdigest(), ""


def _printable(path: object) -> str:
    return str(path).encode("utf-8", "backslashreplace").decode()


def _without_copies(copies: list[Row], bad: BadFiles) -> list[Row]:
    """One of the rows with the same content, the first labelled one; further labelled ones are bad."""
    labelled = [row for row in copies if row.label >= 0]
    if not labelled:
        return copies[:1]
    # Copies that disagree on the label are all wrong; of others the first one stays.
    disagree = len({row.label for row in labelled}) > 1
    for row in labelled if disagree else labelled[1:]:
        other = labelled[0] if row is not labelled[0] else labelled[1]
        problem = f"{row.name} has the same content as {other.name}{' with another label' if disagree else ''}"
        bad.add(row.name, InputError(f"{problem}: remove one of them"))
    return [] if disagree else labelled[:1]


def assign_splits(
    rows: list[Row], source: str, validation_fraction: float, test_fraction: float, seed: int
) -> dict[str, list[Row]]:
    """
    Rows by split, as copies. Splits that the source does not give are drawn from train, stratified by label and
    subclass; no group is ever divided. Unlabelled rows become the split `unlabelled`, except those of groups in the
    test split. A source without any labelled row has that split alone.

    Raises:
        [`InputError`]: a class, a split or enough groups are missing; or the given splits contradict themselves.
    """
    rows = [replace(row) for row in rows]
    labelled = [row for row in rows if row.label >= 0]
    splits, split_of = {}, {}
    if labelled:
        given = {row.split for row in labelled}
        split_of = _splits_of_groups(labelled, source, validation_fraction, test_fraction, seed)
        for row in labelled:
            row.split = split_of[row.group]
        splits = {split: [row for row in labelled if row.split == split] for split in LABELLED_SPLITS}
        for split, members in splits.items():
            drawn = "" if split in given else " (too few groups to divide: add cutouts, or give the splits)"
            _check_classes(members, f"split {split!r} of {source}{drawn}")
    unlabelled = [row for row in rows if row.label < 0]
    kept = [row for row in unlabelled if "test" not in (row.split, split_of.get(row.group))]
    if not splits and not kept:
        rest = "only unlabelled cutouts of the test split" if rows else "no cutout"
        raise InputError(f"{source} holds {rest}: add others")
    return splits | ({"unlabelled": kept} if kept else {})


def _splits_of_groups(
    labelled: list[Row], source: str, validation_fraction: float, test_fraction: float, seed: int
) -> dict[str, str]:
    """The split of every group that has labelled rows."""
    _check_classes(labelled, source)
    given = {row.split for row in labelled}
    if None in given and len(given) > 1:
        row = next(row for row in labelled if row.split is None)
        raise InputError(f"{row.name} has no split where others in {source} have one: give it one")
    split_of: dict[str, Any] = {}
    for row in labelled:
        if split_of.setdefault(row.group, row.split) != row.split:
            raise InputError(
                f"group {row.group!r} in {source} is in the splits {split_of[row.group]} and {row.split}: "
                "keep a group in one split"
            )
    if given != {None} and "train" not in given:
        raise InputError(f"{source} has no train split (only {', '.join(sorted(given))}): add one")
    fractions = {"validation": validation_fraction, "test": test_fraction}
    fractions = {split: fraction for split, fraction in fractions.items() if split not in given}
    if not all(0 < f < 1 for f in fractions.values()) or sum(fractions.values()) >= 1:
        raise InputError("validation_fraction and test_fraction must be above 0 and together below 1")
    if fractions:
        split_of |= _draw_splits([row for row in labelled if row.split in (None, "train")], fractions, seed)
    return split_of


def _check_classes(rows: list[Row], source: str) -> None:
    for label, name in enumerate(LABELS):
        if not any(row.label == label for row in rows):
            rest = f"only {LABELS[1 - label]} cutouts" if rows else "no labelled cutouts"
            raise InputError(f"{source} holds {rest}: add some with the label {name}")


def _draw_splits(rows: list[Row], fractions: dict[str, float], seed: int) -> dict[str, str]:
    """Split of every group: in random order, large groups first, each to the split that lacks most of its kind."""
    strata = {stratum: i for i, stratum in enumerate(sorted({(row.label, row.subclass) for row in rows}))}
    counts = defaultdict(lambda: np.zeros(len(strata)))
    for row in rows:
        counts[row.group][strata[row.label, row.subclass]] += 1
    names = ["train", *fractions]
    total = sum(counts.values())
    lacking = np.outer([1 - sum(fractions.values()), *fractions.values()], total)
    groups = sorted(counts)
    order = np.random.default_rng(seed).permutation(len(groups))
    order = sorted(order, key=lambda i: -counts[groups[i]].sum())
    split_of = {}
    for i in order:
        best = int(np.argmax(lacking @ (counts[groups[i]] / total)))
        lacking[best] -= counts[groups[i]]
        split_of[groups[i]] = names[best]
    return split_of
