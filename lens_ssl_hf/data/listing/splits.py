"""Rows -> train, validation, test and unlabelled: as the source gives them, else drawn."""

from collections import defaultdict
from dataclasses import replace
from typing import Any

import numpy as np

from ...errors import InputError
from .labels import LABELS
from .rows import Row

LABELLED_SPLITS = ("train", "validation", "test")
SPLIT_NAMES = {"train": "train", "training": "train", "test": "test", "testing": "test"}
SPLIT_NAMES |= dict.fromkeys(["val", "valid", "validation", "dev"], "validation")


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
        split_of |= draw_splits([row for row in labelled if row.split in (None, "train")], fractions, seed)
    return split_of


def _check_classes(rows: list[Row], source: str) -> None:
    for label, name in enumerate(LABELS):
        if not any(row.label == label for row in rows):
            rest = f"only {LABELS[1 - label]} cutouts" if rows else "no labelled cutouts"
            raise InputError(f"{source} holds {rest}: add some with the label {name}")


def draw_splits(rows: list[Row], fractions: dict[str, float], seed: int) -> dict[str, str]:
    """
    Split of every group: in random order, large groups first, each to the split that lacks most of its kind.

    Args:
        rows (`list[Row]`): with `label`, `subclass` and `group`.
        fractions (`dict[str, float]`): of the rows in each split; what remains is `train`.
        seed (`int`): of the order.
    """
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
