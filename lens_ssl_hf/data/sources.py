"""Which cutouts a folder or a table names, with labels, groups and splits, before any pixel is read."""

import contextlib
import csv
import hashlib
import logging
import math
import os
import re
import warnings
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NoReturn

import numpy as np

from ..errors import InputError
from .readers import SUFFIXES, is_cutout_file, open_fits

logger = logging.getLogger(__name__)

LABELS = ("nonlens", "lens")
LABELLED_SPLITS = ("train", "validation", "test")
_SPLIT_NAMES = {"train": "train", "training": "train", "test": "test", "testing": "test"}
_SPLIT_NAMES |= dict.fromkeys(["val", "valid", "validation", "dev"], "validation")
_LABEL_NAMES = {"lens": 1, "1": 1, "true": 1, "nonlens": 0, "0": 0, "false": 0}
_LABEL_NAMES |= dict.fromkeys(["", "-1", "unlabelled", "unlabeled"], -1)
_CLASS_FOLDER = re.compile(
    r"(?:(?P<split>train|val|valid|validation|test)[_-]?)??(?P<kind>lens(es)?|non[_-]?lens(es)?|unlabell?ed)", re.I
)


@dataclass
class Row:
    """One cutout that a source names: `paths` is one file, or one per band; `split` is None until it is assigned."""

    id: str
    paths: tuple[Path, ...]
    label: int
    split: str | None = None
    group: str = ""
    subclass: str = ""
    ra: float | None = None
    dec: float | None = None
    digest: str = ""

    def __post_init__(self):
        self.group = self.group or self.id

    @property
    def name(self) -> str:
        """How errors call it."""
        return str(self.paths[0])


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
                writer.writerows(self.problems.items())
            os.replace(temporary, path)
        except OSError as error:
            raise InputError(
                f"cannot write {path} ({error.strerror or error}): choose another bad_file_report"
            ) from error


def list_folder(folder: Path, file_pattern: str | None, bands: Sequence[str] | None, bad: BadFiles) -> list[Row]:
    """
    Cutouts below `lenses/` and `nonlenses/`, `train_lenses/` and so on, or `train/lenses/` and so on, and
    `unlabelled/`. A folder inside these is the subclass of its cutouts.
    """
    rows, ignored = [], 0
    for directory, split, label in _class_folders(folder):
        files = _files(directory)
        if file_pattern:
            objects = _match_pattern(directory, files, file_pattern, bands, bad)
        else:
            objects = [(str(p.relative_to(folder)), (p,)) for p in files if is_cutout_file(p)]
            ignored += len(files) - len(objects)
        for name, paths in objects:
            inner = paths[0].relative_to(directory).parts[:-1]
            name = name if not file_pattern else str((directory / name).relative_to(folder))
            rows.append(Row(Path(name).as_posix(), paths, label, split, subclass=inner[0] if inner else ""))
    if ignored:
        logger.warning(f"{ignored} files in {folder} are ignored: their names do not end in {', '.join(SUFFIXES)}")
    if not rows and file_pattern:
        raise InputError(f"no file in the class folders of {folder} fits file_pattern {file_pattern!r}: correct it")
    if not rows:
        raise InputError(
            f"no cutouts in {folder}: put .npy, .fits, .png, ... files into its subfolders lenses/ and nonlenses/ "
            "(or train_lenses/, train_nonlenses/, test_lenses/, ...; or train/lenses/, ...)"
        )
    return rows


def _class_folders(folder: Path) -> Iterator[tuple[Path, str | None, int]]:
    for child in sorted(p for p in folder.iterdir() if p.is_dir()):
        split = _SPLIT_NAMES.get(child.name.lower())
        for directory in sorted(p for p in child.iterdir() if p.is_dir()) if split else [child]:
            match = _CLASS_FOLDER.fullmatch(directory.name)
            if match:
                kind = match["kind"].lower()
                label = -1 if kind.startswith("un") else 0 if kind.startswith("non") else 1
                yield directory, split or _SPLIT_NAMES.get((match["split"] or "").lower()), label


def _files(directory: Path) -> list[Path]:
    """All files below `directory`, links that lead nowhere included: they are bad files, not absent ones."""

    def refuse(error: OSError) -> NoReturn:
        raise error  # which os.walk would pass over

    found = [Path(root, name) for root, _, names in os.walk(directory, onerror=refuse) for name in names]
    return sorted(path for path in found if not path.name.startswith("."))


def _match_pattern(
    directory: Path, files: list[Path], pattern: str, bands: Sequence[str] | None, bad: BadFiles
) -> list[tuple[str, tuple[Path, ...]]]:
    """Objects whose files below `directory` match `pattern`, with their files in the order of `bands`."""
    _check_pattern(pattern, bands)
    regex = re.escape(pattern).replace(r"\{id\}", "(?P<id>.+)", 1).replace(r"\{id\}", "(?P=id)")
    regex = regex.replace(r"\{band\}", f"(?P<band>{'|'.join(map(re.escape, bands))})", 1)
    found = defaultdict(dict)
    for path in files:
        if match := re.fullmatch(regex, path.relative_to(directory).as_posix()):
            found[match["id"]][match["band"]] = path
    objects = []
    for name, paths in sorted(found.items()):
        missing = [pattern.format(id=name, band=band) for band in bands if band not in paths]
        if missing:
            first = str(next(iter(paths.values())))
            bad.add(first, InputError(f"{directory / missing[0]} is missing beside {first}: add it"))
        else:
            objects.append((name, tuple(paths[band] for band in bands)))
    return objects


def _check_pattern(pattern: str, bands: Sequence[str] | None) -> None:
    try:
        pattern.format(id="", band="")
        known = "{id}" in pattern and "{band}" in pattern
    except (ValueError, LookupError):  # a lone brace or another field
        known = False
    if not known or not bands:
        raise InputError(
            f"file_pattern {pattern!r} must hold {{id}} and {{band}} and no other braces, and bands list the bands"
        )


def list_catalogue(table: Path, options: Any, bad: BadFiles) -> list[Row]:
    """Cutouts that a CSV, Parquet or FITS table names; `options` is a [`DataArguments`]."""
    columns = _read_columns(table, options)
    if options.file_pattern:
        _check_pattern(options.file_pattern, options.bands)
    if options.validation_fold is not None and options.test_fold is None:
        raise InputError("validation_fold is given without test_fold: give both, or only test_fold")
    rows, seen = [], {}
    for i, name in enumerate(columns["file"]):
        cell = {key: values[i] for key, values in columns.items()}
        where = f"{table}, row {i + 1}"
        if not name:
            raise InputError(f"{where}: column {options.file_column!r} is empty: name the file or remove the row")
        label = _LABEL_NAMES.get(re.sub(r"[ _-]", "", cell["label"].lower()) if cell["label"] != "-1" else "-1")
        if label is None:
            raise InputError(
                f"{where}: unknown label {cell['label']!r} in column {options.label_column!r}: use lens/nonlens, 1/0 "
                "or true/false, and nothing or -1 for no label"
            )
        names = (
            [options.file_pattern.format(id=name, band=b) for b in options.bands] if options.file_pattern else [name]
        )
        paths = tuple(table.parent / n for n in names)
        if paths[0] in seen:
            error = InputError(f"{table} names {name} twice, in rows {seen[paths[0]]} and {i + 1}: remove one of them")
            bad.add(f"{name} (row {i + 1})", error)
            continue
        seen[paths[0]] = i + 1
        ra, dec = (_number(cell.get(key), where, getattr(options, f"{key}_column")) for key in ("ra", "dec"))
        split = _split(cell, label, where, options)
        rows.append(Row(name, paths, label, split, cell.get("group", ""), cell.get("subclass", ""), ra, dec))
    if not rows:
        raise InputError(f"{table} names no cutouts: add rows")
    for option, split in (("test_fold", "test"), ("validation_fold", "validation")):
        fold = getattr(options, option)
        if fold is not None and not any(row.split == split for row in rows):
            folds = ", ".join(sorted(set(columns["fold"]) - {""}))
            raise InputError(f"{table} has no cutouts of {option} {fold} alone: choose among the folds {folds}")
    return rows


def _read_columns(table: Path, options: Any) -> dict[str, list[str]]:
    """The columns that matter as text, under their default names; those that are missing and may be are left out."""
    from .arguments import DataArguments

    names = {
        key: getattr(options, f"{key}_column") for key in ("file", "label", "split", "fold", "group", "ra", "dec")
    }
    names["subclass"] = options.subclass_column
    frame, available = _open_table(table)
    required = {"file", "label"} | ({"fold"} if options.test_fold is not None else set())
    for key, name in names.items():
        if name not in available and (key in required or name != getattr(DataArguments, f"{key}_column")):
            raise InputError(
                f"{table} has no column {name!r} (it has {', '.join(available)}): name yours with {key}_column"
            )
    with _readable(table):
        return {key: [_text(v) for v in frame[name].tolist()] for key, name in names.items() if name in available}


def _open_table(table: Path) -> tuple[Any, list[str]]:
    name = table.name.lower()
    with _readable(table):
        if name.endswith((".fits", ".fit", ".fits.gz")):
            from astropy.table import Table

            with open_fits(table) as hdus:
                frame = Table.read(hdus, format="fits")
            return frame, list(frame.colnames)
        import pandas

        if name.endswith((".parquet", ".pq")):
            frame = pandas.read_parquet(table)
        else:
            frame = pandas.read_csv(table, dtype=str, keep_default_na=False, skipinitialspace=True)
        return frame, [str(column) for column in frame.columns]


@contextlib.contextmanager
def _readable(table: Path) -> Iterator[None]:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of what the parsers warn, only what ends in an error matters
            yield
    except InputError:
        raise
    except Exception as error:  # a damaged file makes the parsers raise nearly anything
        problem = getattr(error, "strerror", None) or "truncated?"
        raise InputError(f"{table} cannot be read as a table ({problem}): save or copy it again") from error


def _text(value: Any) -> str:
    if isinstance(value, bytes):
        value = value.decode("utf-8", "replace")
    if value is None or (isinstance(value, float) and np.isnan(value)):
        return ""
    text = str(int(value)) if isinstance(value, float) and value.is_integer() else str(value).strip()
    if text.lower() in ("nan", "none", "null", "<na>", "--"):
        return ""
    return re.sub(r"^(-?\d+)\.0+$", r"\1", text)


def _number(text: str | None, where: str, column: str) -> float | None:
    try:
        number = float(text) if text else None
    except ValueError:
        number = math.inf
    if number is not None and not math.isfinite(number):
        raise InputError(f"{where}: {text!r} in column {column!r} is not a number: correct it")
    return number


def _split(cell: dict[str, str], label: int, where: str, options: Any) -> str | None:
    if options.test_fold is not None:
        fold = _number(cell["fold"], where, options.fold_column)
        if fold is None and label >= 0:
            raise InputError(f"{where}: column {options.fold_column!r} is empty: give a fold")
        if fold == options.test_fold:
            return "test"
        return "validation" if fold is not None and fold == options.validation_fold else "train"
    text = cell.get("split", "").lower()
    if text and text not in _SPLIT_NAMES and not (label < 0 and text in ("unlabelled", "unlabeled")):
        raise InputError(
            f"{where}: unknown split {text!r} in column {options.split_column!r}: use train, validation or test"
        )
    return _SPLIT_NAMES.get(text)


def digest_rows(rows: list[Row], bad: BadFiles) -> list[Row]:
    """Hash the content of every file into `row.digest`; missing files and labelled copies are bad, others left out."""
    by_digest = defaultdict(list)
    for row in rows:
        digest = hashlib.blake2b(digest_size=16)
        for path in row.paths:
            try:
                digest.update(path.read_bytes())
            except (OSError, ValueError) as error:  # ValueError: a NUL character in the name
                reason = getattr(error, "strerror", None) or error
                problem = "does not exist" if isinstance(error, FileNotFoundError) else f"cannot be read ({reason})"
                bad.add(row.name, InputError(f"{path} {problem}: restore the file, or leave it out"))
                break
        else:
            row.digest = digest.hexdigest()
            by_digest[row.digest].append(row)
    kept = {row.id for copies in by_digest.values() for row in _without_copies(copies, bad)}
    return [row for row in rows if row.id in kept]


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
    Rows by split. Splits that the source does not give are drawn from train, stratified by label and subclass; no
    group is ever divided. Unlabelled rows become the split `unlabelled`, except those of groups in the test split.
    """
    labelled = [row for row in rows if row.label >= 0]
    _check_classes(labelled, source)
    given = {row.split for row in labelled}
    if None in given and len(given) > 1:
        row = next(row for row in labelled if row.split is None)
        raise InputError(f"{row.name} has no split where others in {source} have one: give it one")
    split_of = {}
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
    for row in labelled:
        row.split = split_of[row.group]
    splits = {split: [row for row in labelled if row.split == split] for split in LABELLED_SPLITS}
    for split, members in splits.items():
        drawn = " (too few groups to divide: add cutouts, or give the splits)" if split in fractions else ""
        _check_classes(members, f"split {split!r} of {source}{drawn}")
    unlabelled = [row for row in rows if row.label < 0]
    kept = [row for row in unlabelled if "test" not in (row.split, split_of.get(row.group))]
    if len(kept) < len(unlabelled):
        count = len(unlabelled) - len(kept)
        logger.warning(f"{count} unlabelled cutouts of {source} belong to the test split: they are left out")
    return splits | ({"unlabelled": kept} if kept else {})


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
