"""What a classifier says of one split, as a table: in memory, or as a Parquet file."""

import os
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow
from pyarrow import parquet
from scipy.special import expit, logit

from ..errors import InputError
from ..files import writing

if TYPE_CHECKING:
    from ..data.tensors import CutoutTensors

COLUMNS = ("id", "label", "group", "subclass", "score")
_NOT_COPIED = {*COLUMNS, "pixels", "image"}


@dataclass
class Predictions:
    """
    What a classifier says of one split.

    Args:
        id, group, subclass (`list[str]`): per cutout.
        label (`np.ndarray` of shape `(n,)`): 1 lens, 0 non-lens, -1 unlabelled.
        score (`np.ndarray` of shape `(n,)`): P(lens), float64.
        columns (`dict[str, list]`): what else the dataset knows of each cutout, such as `ra` and `dec` in degrees.
    """

    id: list[str]
    label: np.ndarray
    group: list[str]
    subclass: list[str]
    score: np.ndarray
    columns: dict[str, list] = field(default_factory=dict)

    @classmethod
    def of(cls, tensors: "CutoutTensors", score: np.ndarray, columns: dict[str, list] | None = None) -> "Predictions":
        """Of the cutouts that were scored."""
        label = tensors.labels.cpu().numpy()
        return cls(tensors.ids, label, tensors.groups, tensors.subclasses, score, columns or {})

    def __len__(self) -> int:
        return len(self.id)

    def labelled(self) -> "Predictions":
        """Without the unlabelled cutouts."""
        return self.select(np.flatnonzero(self.label >= 0))

    def select(self, keep: np.ndarray) -> "Predictions":
        """Of the cutouts with these indices."""
        ids, groups, kinds = ([column[i] for i in keep] for column in (self.id, self.group, self.subclass))
        columns = {name: [column[i] for i in keep] for name, column in self.columns.items()}
        return Predictions(ids, self.label[keep], groups, kinds, self.score[keep], columns)

    def save(self, path: str | os.PathLike) -> Path:
        """
        Write a .parquet file; `columns` follow the others.

        Raises:
            [`InputError`]: another suffix, or the file cannot be written.
        """
        path = Path(path)
        if path.suffix != ".parquet":
            raise InputError(f"predictions are written as .parquet, not {path.name}: choose a name that ends so")
        table = pyarrow.table({name: getattr(self, name) for name in COLUMNS} | self.columns)
        with writing(path) as new:
            parquet.write_table(table, new)
        return path

    @classmethod
    def load(cls, path: str | os.PathLike) -> "Predictions":
        """
        Read what [`~Predictions.save`] wrote, or a table of your own with these columns; a cutout without a group is a
        group of its own.

        Raises:
            [`InputError`]: the file is missing or damaged, lacks a column or an id, or has labels besides 1, 0, -1.
        """
        try:
            table = parquet.read_table(path, partitioning=None).to_pydict()
            if missing := [name for name in COLUMNS if name not in table]:
                raise InputError(
                    f"{path} has no column {missing[0]!r}: write it with lens-ssl evaluate or Predictions.save"
                )
            label, score = (np.array(table[name], dtype=np.float64) for name in ("label", "score"))
        except (OSError, ValueError, TypeError) as error:
            if isinstance(error, InputError):
                raise
            raise InputError(f"cannot read predictions from {path} ({error}): write them again") from error
        for first in np.flatnonzero(~np.isin(label, (1, 0, -1)))[:1]:
            known = "write 1 for a lens, 0 for a non-lens, -1 for what is unlabelled"
            raise InputError(f"{path} has the label {table['label'][first]!r}: {known}")
        if any(map(_is_null, table["id"])):
            raise InputError(f"{path} has a row without an id: give each one its own")
        ids = [str(one) for one in table["id"]]  # pandas writes numbers as they are, and None or NaN for what is empty
        groups = [one if _is_null(group) else str(group) for group, one in zip(table["group"], ids)]
        subclasses = ["" if _is_null(kind) else str(kind) for kind in table["subclass"]]
        columns = {name: column for name, column in table.items() if name not in COLUMNS}
        return cls(ids, label.astype(np.int64), groups, subclasses, score, columns)


def ensemble(members: Sequence[Predictions]) -> Predictions:
    """Of several classifiers on the same cutouts: P(lens) of the mean logit."""
    scores = np.clip([one.score for one in members], 1e-15, 1 - 1e-15)
    return replace(members[0], score=expit(logit(scores).mean(axis=0)))


def other_columns(split: Any) -> dict[str, list]:
    """
    The columns of a `datasets.Dataset` beside those of [`Predictions`], such as `ra`, `dec` and what else stood in the
    table that it was made from; lists and columns without any value are left out.
    """
    if not hasattr(split, "column_names"):
        return {}
    names = [
        name
        for name in split.column_names
        if name not in _NOT_COPIED and type(split.features[name]).__name__ in ("Value", "ClassLabel")
    ]
    if not names:
        return {}
    found = split.select_columns(names).with_format(None)[:]
    return {name: values for name, values in found.items() if any(_is_known(value) for value in values)}


def _is_null(value: Any) -> bool:
    return value is None or value != value  # NaN differs from itself


def _is_known(value: Any) -> bool:
    return not _is_null(value) and value != ""
