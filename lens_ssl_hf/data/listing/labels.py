"""The labels of cutouts, and the words of tables and folders that stand for them."""

import re
from collections.abc import Mapping, Sequence

from ...errors import InputError
from ..files.cells import EMPTY

LABELS = ("nonlens", "lens")  # of the classes 0 and 1
NAME_OF_LABEL = {1: "lens", 0: "nonlens", -1: "unlabelled"}
_LABEL_NAMES = {"lens": 1, "1": 1, "true": 1, "nonlens": 0, "0": 0, "false": 0}
_LABEL_NAMES |= dict.fromkeys(["", "-1", "unlabelled", "unlabeled"], -1)


def parse_label_map(entries: Sequence[str] | Mapping[str, str] | None) -> dict[str, int]:
    """`["Galaxy=nonlens"]`, or in Python `{"Galaxy": "nonlens"}` -> `{"Galaxy": 0}`."""
    if isinstance(entries, Mapping):
        entries = [f"{name}={label}" for name, label in entries.items()]
    labels = {name: label for label, name in NAME_OF_LABEL.items()}
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
    if text.lower() in EMPTY:
        return -1
    return _LABEL_NAMES.get(re.sub(r"[ _-]", "", text.lower()) if text != "-1" else "-1")


def check_label_map(label_map: Mapping[str, int], found: set[str], where: str) -> None:
    """
    Raises:
        [`InputError`]: a name of the map does not occur: it is misspelt.
    """
    for name in label_map:
        if name not in found:
            have = ", ".join(sorted(one or "empty cells" for one in found)[:20]) or "nothing"
            raise InputError(f"label_map names {name!r}, which {where} does not hold (it has {have}): correct it")
