"""The bootstrap over groups, and the intervals that come from its draws."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from scipy.stats import t as student


def draw_groups(rng: np.random.Generator, labels: np.ndarray, groups: np.ndarray, draws: int) -> np.ndarray:
    """How often each cutout is in each draw of whole groups, `(draws, n)` float64; every draw holds both classes."""
    groups = np.unique(groups, return_inverse=True)[1]
    num_groups = int(groups.max()) + 1
    counts = np.empty((draws, num_groups))
    lenses = np.bincount(groups, weights=labels == 1, minlength=num_groups)
    others = np.bincount(groups, weights=labels == 0, minlength=num_groups)
    missing = np.ones(draws, dtype=bool)
    while missing.any():
        again = int(missing.sum())
        drawn = rng.integers(num_groups, size=(again, num_groups)) + num_groups * np.arange(again)[:, None]
        counts[missing] = np.bincount(drawn.ravel(), minlength=again * num_groups).reshape(again, num_groups)
        missing = (counts @ lenses == 0) | (counts @ others == 0)
    return counts[:, groups]


class Ranked:
    """
    A labelled set, ranked once, under many weightings: the bootstrap's draws.

    Args:
        labels (`np.ndarray` of shape `(n,)`): 1 lens, 0 non-lens.
        scores (`np.ndarray` of shape `(n,)`): P(lens).
        weights (`np.ndarray` of shape `(draws, n)`): how often each cutout is in each draw.

    Attributes:
        true_positives, false_positives (`np.ndarray` of shape `(draws, thresholds)`):
            Weight of the lenses and non-lenses that score at least the threshold; thresholds fall, ties share one.
    """

    def __init__(self, labels: np.ndarray, scores: np.ndarray, weights: np.ndarray):
        order = np.argsort(-scores, kind="stable")
        self.labels, self.scores, self.weights = labels[order], scores[order], weights[:, order]
        ends = np.flatnonzero(np.append(np.diff(self.scores) != 0, True))
        self.true_positives = np.cumsum(self.weights * (self.labels == 1), axis=1)[:, ends]
        self.false_positives = np.cumsum(self.weights * (self.labels == 0), axis=1)[:, ends]
        self.positives, self.negatives = self.true_positives[:, -1], self.false_positives[:, -1]

    def mean(self, values: np.ndarray) -> np.ndarray:
        """Weighted mean `(draws,)` of `values` `(n,)`, given in the ranked order."""
        return self.weights @ values / self.weights.sum(axis=1)

    def completeness(self, allowed: np.ndarray) -> np.ndarray:
        """Highest true-positive rate `(draws,)` with at most `allowed` `(draws,)` false positives."""
        permitted = self.false_positives <= allowed[:, None] + 1e-9
        return (self.true_positives * permitted).max(axis=1) / self.positives


class Spread:
    """
    How well a set of groups tells the variance of its measures.

    Args:
        labels, groups (`np.ndarray` of shape `(n,)`): the set.

    Attributes:
        num_groups (`int`): groups in all.
        smallest (`int`): groups that hold a lens, or those that hold a non-lens, whichever are fewer.
        degrees (`float`): degrees of freedom, as Welch (1947) has them for two classes of equal scatter.
    """

    def __init__(self, labels: np.ndarray, groups: np.ndarray):
        self.num_groups = len(np.unique(groups))
        numbers = np.array([len(np.unique(groups[labels == label])) for label in (0, 1)])
        self.smallest = int(numbers.min())
        welch = (1 / numbers).sum() ** 2 / (1 / (numbers**2 * np.maximum(numbers - 1, 0.5))).sum()
        self.degrees = float(np.clip(welch, 1, max(1, self.num_groups - 1)))  # of one group, no interval is made

    def interval(self, draws: np.ndarray) -> tuple[float, float]:
        """
        95 % interval of a measure between 0 and 1 from its bootstrap draws: Wilson's (1927) score interval of the
        binomial share that would vary as much (Korn & Graubard 1998). It is the percentile interval where groups are
        many. Where they are few, percentiles cover 0.8 to 0.9: the draws lack a factor (n - 1) / n of the variance,
        which is itself known badly (Student's t), and near 0 and 1 they pile up at the end.

        Args:
            draws (`np.ndarray` of shape `(draws,)`): the measure of each draw.
        """
        variance = draws.var() * self.num_groups / (self.num_groups - 1)
        return score_interval(float(draws.mean()), variance, self.degrees, self.smallest)


def score_interval(share: float, variance: float, degrees: float, smallest: int) -> tuple[float, float]:
    """
    95 % score interval, within 0 and 1, of the binomial share with this variance.

    Args:
        share, variance, degrees (`float`): estimated, with the variance's degrees of freedom.
        smallest (`int`): the number of trials where all or nothing, and so no variance, was seen.
    """
    quantile, number = student.ppf(0.975, degrees), float(smallest)
    if variance > 1e-12:
        number = share * (1 - share) / variance
    elif 1e-9 < share < 1 - 1e-9:
        return share, share  # the same for any draw, as of equal scores
    centre = number * share + quantile**2 / 2
    half = quantile * np.sqrt(number * share * (1 - share) + quantile**2 / 4)
    low, high = (np.array([centre - half, centre + half]) / (number + quantile**2)).clip(0, 1).tolist()
    return low, high


def percentiles(draws: np.ndarray) -> tuple[float, float]:
    """2.5 and 97.5 percentile of bootstrap draws."""
    low, high = np.percentile(draws, [2.5, 97.5]).tolist()
    return low, high


def bootstrap(
    metrics: Sequence[Any],
    labels: np.ndarray,
    scores: np.ndarray,
    groups: np.ndarray,
    num_bootstrap: int = 1000,
    seed: int = 0,
) -> dict[str, tuple[float, float]]:
    """
    95 % intervals of the cluster bootstrap: whole groups are drawn with replacement (Davison & Hinkley 1997), so that
    cutouts of the same sky do not count as independent. Draws without both classes are drawn again. From the draws to
    the interval, see [`Spread`].

    Args:
        metrics (`list[LensMetric]`): of [`~lens_ssl_hf.evaluation.metrics`], what is computed on each draw.
        labels, scores, groups (`np.ndarray` of shape `(n,)`): the set.

    Returns:
        `dict[str, tuple[float, float]]`: lower and upper end per measure; empty where there is one group only.
    """
    if num_bootstrap < 1 or len(np.unique(groups)) < 2:
        return {}
    rng = np.random.default_rng(seed)
    share = max(1, 4_000_000 // len(labels))  # draws at a time, for the memory's sake
    values: dict[str, list[np.ndarray]] = {metric.key: [] for metric in metrics}
    for start in range(0, num_bootstrap, share):
        draws = min(share, num_bootstrap - start)
        ranked = Ranked(labels, scores, draw_groups(rng, labels, groups, draws))
        for metric in metrics:
            values[metric.key].append(metric.weighted(ranked))
    spread = Spread(labels, groups)
    return {metric.key: metric.interval(np.concatenate(values[metric.key]), spread) for metric in metrics}
