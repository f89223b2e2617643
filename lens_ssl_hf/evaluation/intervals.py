"""The bootstrap over groups, and the intervals that come from its draws."""

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
        self.degrees = float(np.clip(welch, 1, self.num_groups - 1))

    def interval(self, draws: np.ndarray) -> tuple[float, float]:
        """
        95 % interval of a measure between 0 and 1 from its bootstrap draws: Wilson's (1927) score interval of the
        binomial share that would vary as much (Korn & Graubard 1998). It is the percentile interval where groups are
        many. Where they are few, percentiles cover 0.8 to 0.9: the draws lack a factor (n - 1) / n of the variance,
        which is itself known badly (Student's t), and near 0 and 1 they pile up at the end.

        Args:
            draws (`np.ndarray` of shape `(draws,)`): the measure of each draw.
        """
        middle, variance = draws.mean(), draws.var() * self.num_groups / (self.num_groups - 1)
        quantile = student.ppf(0.975, self.degrees)
        number = float(self.smallest)  # where the set separates the classes, its draws tell nothing
        if variance > 1e-12:
            number = middle * (1 - middle) / variance
        elif 1e-9 < middle < 1 - 1e-9:
            return float(middle), float(middle)  # the same for any draw, as of equal scores
        centre = number * middle + quantile**2 / 2
        half = quantile * np.sqrt(number * middle * (1 - middle) + quantile**2 / 4)
        ends = np.array([centre - half, centre + half]) / (number + quantile**2)
        low, high = ends.clip(0, 1).tolist()
        return low, high


def percentiles(draws: np.ndarray) -> tuple[float, float]:
    """2.5 and 97.5 percentile of bootstrap draws."""
    low, high = np.percentile(draws, [2.5, 97.5]).tolist()
    return low, high
