"""Which objects to grade next: those of which a model is least sure, and those that are unlike each other."""

from collections.abc import Mapping
from typing import Any

import numpy as np
import pyarrow
from sklearn.cluster import kmeans_plusplus


def doubt(table: pyarrow.Table, calibration: Mapping[str, Any] | None) -> np.ndarray:
    """
    How near each row `(n,)` is to P(lens) = 0.5, calibrated where there is a calibration: minus the distance of its
    logit from 0; of an ensemble in units of the spread, which is high where the models disagree.
    """
    scale, offset = (1.0, 0.0) if calibration is None else (calibration["a"], calibration["b"])
    distance = np.abs(scale * table["logit"].to_numpy() + offset)
    if "spread" in table.column_names:
        distance = distance / np.maximum(scale * table["spread"].to_numpy(), 1e-6)
    return -distance


def unlike(embeddings: np.ndarray, number: int, seed: int) -> np.ndarray:
    """
    Indices of objects that lie far from each other: each is drawn with a chance that grows with the square of its
    distance to those before, k-means++ (Arthur & Vassilvitskii 2007), so that it is rarely a lone outlier. Dimensions
    are scaled to equal variances.

    Args:
        embeddings (`np.ndarray` of shape `(n, width)`)
        number, seed (`int`): how many; of the draw.
    """
    if len(embeddings) <= number:
        return np.arange(len(embeddings))
    scaled = (embeddings - embeddings.mean(axis=0)) / np.maximum(embeddings.std(axis=0), 1e-6)
    return kmeans_plusplus(scaled, number, random_state=seed % 2**32)[1]
