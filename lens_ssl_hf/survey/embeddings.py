"""The embeddings of a scored survey: a random sample of them, and the space in which they are compared."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow

from ..errors import InputError
from .crops import spread
from .rank import Shards, open_shards

SAMPLE = 10_000  # rows that stand for the survey
SAMPLE_SHARDS = 16  # shards that they come from, at equal distances
SHRINKAGE = 0.03  # of the variances towards none, in units of their mean


def open_embeddings(folder: Path, manifest: dict[str, Any]) -> Shards:
    """
    The shards of a folder with the column `embedding`.

    Raises:
        [`InputError`]: there is none; or a shard is missing, damaged or of something else.
    """
    if not manifest["options"]["embeddings"]:
        raise InputError(f"{folder} holds no embeddings: score again with --embeddings into another folder")
    return open_shards(folder, manifest, "embedding")


def embeddings_of(table: pyarrow.Table) -> np.ndarray:
    """The column `embedding`, `(n, width)` in float32."""
    column = table["embedding"].combine_chunks()
    return column.flatten().to_numpy().astype(np.float32).reshape(len(table), column.type.list_size)


def sample(shards: Shards, number: int, seed: int = 0) -> pyarrow.Table:
    """
    Up to `number` random rows of up to `SAMPLE_SHARDS` shards, in their order.

    Raises:
        [`InputError`]: these shards hold flagged rows only.
    """
    parts, lots = [], []
    for i in spread(len(shards.paths), SAMPLE_SHARDS):
        table = shards.read(i)
        lot = np.random.default_rng([seed, i]).random(len(table))
        picked = np.sort(np.argsort(lot)[:number])
        parts.append(table.take(picked))
        lots.append(lot[picked])
    if not sum(map(len, parts)):
        raise InputError(f"{shards.paths[0].parent} holds no scored cutout, only flagged ones: see the column flag")
    return pyarrow.concat_tables(parts).take(np.sort(np.argsort(np.concatenate(lots))[:number]))


@dataclass(frozen=True)
class Whitening:
    """
    Centred, scaled to equal variances along the principal axes, and of length 1. Most of the variance of [CLS] lies in
    few directions, such as brightness and colour: without this, cosines speak of nothing else.
    """

    mean: np.ndarray
    matrix: np.ndarray

    @classmethod
    def fit(cls, embeddings: np.ndarray) -> "Whitening":
        """
        Raises:
            [`InputError`]: fewer than two different embeddings.
        """
        mean = embeddings.mean(axis=0, dtype=np.float64)
        deviations = embeddings - mean
        variance, axes = np.linalg.eigh(deviations.T @ deviations / max(1, len(deviations)))
        if not variance.sum() > 1e-12:
            raise InputError("the survey holds no two different embeddings: there is nothing to compare")
        # The shrinkage keeps directions that are noise from counting as much as the others.
        scale = np.sqrt(variance.clip(0) + SHRINKAGE * variance.mean())
        return cls(mean.astype(np.float32), (axes / scale).astype(np.float32))

    def __call__(self, embeddings: np.ndarray) -> np.ndarray:
        found = (embeddings - self.mean) @ self.matrix
        return found / np.linalg.norm(found, axis=1, keepdims=True).clip(1e-12)
