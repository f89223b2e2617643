"""
What is measured on a labelled test set, and how sure one can be of it.

Every measure is an `evaluate.Metric` over scikit-learn that works offline, with a second formula in plain numpy over
weighted cutouts, from which the bootstrap gets its speed. [`measures`] is the one list of them; [`measure`] computes
all with their intervals.
"""

import re
from collections.abc import Collection, Sequence
from typing import Any

import datasets
import evaluate
import numpy as np
from sklearn.metrics import accuracy_score, average_precision_score, brier_score_loss, roc_auc_score, roc_curve

from ..errors import InputError
from .intervals import Ranked, Spread, bootstrap, percentiles

NUM_CALIBRATION_BINS = 15
MIN_SUBCLASS = 5  # cutouts, fewer give no AUC worth a number
# TPR0 and TPR10 of small sets say nothing about rare objects: the allowed false positives must be at most one in 100.
MAX_FPR_OF_COUNTS = 1e-2
MIN_FALSE_POSITIVES = 2  # allowed ones, for an interval of completeness that covers 95 %


class LensMetric(evaluate.Metric):
    """
    A measure of P(lens) against labels: `metric.compute(prediction_scores=scores, references=labels)`.

    Subclasses give `key`, `title`, `definition`, `value` (scikit-learn, one set) and `weighted` (numpy, all draws of
    the bootstrap).
    """

    key: str
    title: str
    definition: str

    def __init__(self, **kwargs: Any):
        super().__init__(keep_in_memory=True, **kwargs)

    def _info(self) -> evaluate.MetricInfo:
        return evaluate.MetricInfo(
            description=self.definition,
            citation="",
            inputs_description="prediction_scores: P(lens), 0 to 1; references: 1 lens, 0 non-lens",
            features=datasets.Features(
                {"prediction_scores": datasets.Value("float64"), "references": datasets.Value("int64")}
            ),
        )

    def _compute(self, prediction_scores: Sequence[float], references: Sequence[int]) -> dict[str, float | None]:
        labels, scores = np.asarray(references), np.asarray(prediction_scores)
        return {self.key: None if self.refusal(labels, scores) else float(self.value(labels, scores))}

    def refusal(self, labels: np.ndarray, scores: np.ndarray) -> str | None:
        """Why this set cannot measure it; `None` where it can."""
        return None

    def value(self, labels: np.ndarray, scores: np.ndarray) -> float:
        raise NotImplementedError

    def weighted(self, ranked: Ranked) -> np.ndarray:
        raise NotImplementedError

    def interval(self, draws: np.ndarray, spread: Spread) -> tuple[float, float]:
        """95 % interval from [`weighted`] of the bootstrap's draws."""
        return spread.interval(draws)

    def note(self, labels: np.ndarray) -> str | None:
        """What a reader of the value and its interval must know; `None` where they are what they seem."""
        return None


class Accuracy(LensMetric):
    """Share of right answers at P(lens) >= 0.5. It depends on the share of lenses in the set."""

    key, title, definition = "accuracy", "Accuracy", "share of right answers at P(lens) >= 0.5"

    def value(self, labels: np.ndarray, scores: np.ndarray) -> float:
        return accuracy_score(labels, scores >= 0.5)

    def weighted(self, ranked: Ranked) -> np.ndarray:
        return ranked.mean((ranked.scores >= 0.5) == ranked.labels)


class ROCAUC(LensMetric):
    """Probability that a lens scores higher than a non-lens, ties counted half."""

    key, title, definition = "roc_auc", "ROC AUC", "probability that a lens scores higher than a non-lens"

    def value(self, labels: np.ndarray, scores: np.ndarray) -> float:
        return roc_auc_score(labels, scores)

    def weighted(self, ranked: Ranked) -> np.ndarray:
        higher = np.pad(ranked.true_positives, ((0, 0), (1, 0)))
        width = np.diff(ranked.false_positives, prepend=0)
        return (width * (higher[:, 1:] + higher[:, :-1])).sum(axis=1) / (2 * ranked.positives * ranked.negatives)


class AveragePrecision(LensMetric):
    """Mean precision over the recalls of the ranked list. It depends on the share of lenses in the set."""

    key, title, definition = "average_precision", "Average precision", "mean precision over the ranks of the lenses"

    def value(self, labels: np.ndarray, scores: np.ndarray) -> float:
        return average_precision_score(labels, scores)

    def weighted(self, ranked: Ranked) -> np.ndarray:
        found = np.diff(ranked.true_positives, prepend=0)
        precision = ranked.true_positives / np.maximum(ranked.true_positives + ranked.false_positives, 1e-12)
        return (found * precision).sum(axis=1) / ranked.positives


class Completeness(LensMetric):
    """Highest true-positive rate at a false-positive rate of at most `fpr`."""

    def __init__(self, fpr: float = 1e-2):
        self.fpr, name = fpr, _power(fpr)
        self.key, self.title = f"completeness_at_fpr_{name}", f"Completeness at FPR {name}"
        self.definition = f"highest true-positive rate at a false-positive rate of at most {name}"
        super().__init__()

    def refusal(self, labels: np.ndarray, scores: np.ndarray) -> str | None:
        return _too_few(labels, round(1 / self.fpr))

    def value(self, labels: np.ndarray, scores: np.ndarray) -> float:
        fpr, tpr, _ = roc_curve(labels, scores, drop_intermediate=False)
        return tpr[fpr <= self.fpr + 1e-12].max()

    def weighted(self, ranked: Ranked) -> np.ndarray:
        return ranked.completeness(self.fpr * ranked.negatives)

    def note(self, labels: np.ndarray) -> str | None:
        negatives = int((labels == 0).sum())
        if self.fpr * negatives >= MIN_FALSE_POSITIVES:
            return None
        return (
            f"{negatives} non-lenses place the threshold badly, and nothing in the draws shows it: the interval lies "
            f"too high and covers 80 to 90 %, not 95 %; at least {round(MIN_FALSE_POSITIVES / self.fpr)} are needed"
        )


class CompletenessBefore(LensMetric):
    """
    TPR0 and TPR10 of the Bologna lens-finding challenge (Metcalf et al. 2019, arXiv:1802.03609): highest
    true-positive rate before the first (`TPR0`) or the tenth (`TPR10`) false positive. They are extreme values of this
    set: they fall as it grows, and their bootstrap intervals lie too high.
    """

    def __init__(self, false_positive: int = 1):
        self.false_positive = false_positive
        self.title = "TPR0" if false_positive == 1 else f"TPR{false_positive}"
        self.key = self.title.lower()
        self.definition = f"highest true-positive rate before false positive {false_positive}"
        super().__init__()

    def refusal(self, labels: np.ndarray, scores: np.ndarray) -> str | None:
        return _too_few(labels, round(self.false_positive / MAX_FPR_OF_COUNTS))

    def value(self, labels: np.ndarray, scores: np.ndarray) -> float:
        fpr, tpr, _ = roc_curve(labels, scores, drop_intermediate=False)
        return tpr[fpr * (labels == 0).sum() < self.false_positive - 0.5].max()

    def weighted(self, ranked: Ranked) -> np.ndarray:
        return ranked.completeness(np.full(len(ranked.weights), self.false_positive - 1.0))

    def note(self, labels: np.ndarray) -> str | None:
        return "an extreme value of this set: it falls as the set grows, and its interval lies too high"


class Purity(LensMetric):
    """
    Expected share of lenses among the candidates of a search where a share `prevalence` of all objects are lenses:
    `prevalence * TPR / (prevalence * TPR + (1 - prevalence) * FPR)`.

    Args:
        prevalence (`float`): share of lenses on the sky that is searched.
        fpr (`float`, *optional*): at the threshold of this false-positive rate; by default at P(lens) >= 0.5.
    """

    def __init__(self, prevalence: float, fpr: float | None = None):
        self.prevalence, self.completeness = prevalence, None if fpr is None else Completeness(fpr)
        where = "P(lens) >= 0.5" if fpr is None else f"FPR {_power(fpr)}"
        self.key = "purity_at_threshold_0.5" if fpr is None else f"purity_at_fpr_{_power(fpr)}"
        self.title = f"Purity at {where}, prevalence {_power(prevalence)}"
        self.definition = f"expected share of lenses among the candidates at {where}, 1 lens in {1 / prevalence:.0f}"
        super().__init__()

    def refusal(self, labels: np.ndarray, scores: np.ndarray) -> str | None:
        if self.completeness is not None:
            return self.completeness.refusal(labels, scores)
        accepted = scores >= 0.5
        if not (accepted & (labels == 1)).any():
            return "no lens scores 0.5 or more"
        if not (accepted & (labels == 0)).any():
            negatives = int((labels == 0).sum())
            fpr = 1 - 0.05 ** (1 / negatives)  # 95 % upper limit when none of n was seen
            bound = self._purity(accepted[labels == 1].mean(), fpr)
            return f"none of {negatives} non-lenses scores 0.5 or more: above {bound:.2g} at 95 % confidence"
        return None

    def _purity(self, tpr: Any, fpr: Any) -> Any:
        lenses, others = self.prevalence * tpr, (1 - self.prevalence) * fpr
        return lenses / np.maximum(lenses + others, 1e-300)

    def value(self, labels: np.ndarray, scores: np.ndarray) -> float:
        if self.completeness is not None:
            return self._purity(self.completeness.value(labels, scores), self.completeness.fpr)
        accepted = scores >= 0.5
        return self._purity(accepted[labels == 1].mean(), accepted[labels == 0].mean())

    def weighted(self, ranked: Ranked) -> np.ndarray:
        if self.completeness is not None:
            return self._purity(self.completeness.weighted(ranked), self.completeness.fpr)
        accepted = ranked.scores >= 0.5
        tpr = ranked.weights @ (accepted & (ranked.labels == 1)) / ranked.positives
        return self._purity(tpr, ranked.weights @ (accepted & (ranked.labels == 0)) / ranked.negatives)

    def interval(self, draws: np.ndarray, spread: Spread) -> tuple[float, float]:
        if self.completeness is None:
            return percentiles(draws)  # no share of anything: draws without a false positive have purity 1
        others = (1 - self.prevalence) * self.completeness.fpr
        tpr = others * draws / (self.prevalence * (1 - draws))
        low, high = self.completeness.interval(tpr, spread)
        return self._purity(low, self.completeness.fpr), self._purity(high, self.completeness.fpr)

    def note(self, labels: np.ndarray) -> str | None:
        return None if self.completeness is None else self.completeness.note(labels)


class CalibrationError(LensMetric):
    """Expected calibration error (Guo et al. 2017, arXiv:1706.04599) of P(lens), over 15 bins of equal width."""

    key, title = "expected_calibration_error", "Expected calibration error"
    definition = f"mean |share of lenses - P(lens)| over {NUM_CALIBRATION_BINS} bins of equal width"

    @staticmethod
    def bins(scores: np.ndarray) -> np.ndarray:
        """The bin `(n,)` of each score."""
        return np.minimum((scores * NUM_CALIBRATION_BINS).astype(int), NUM_CALIBRATION_BINS - 1)

    def value(self, labels: np.ndarray, scores: np.ndarray) -> float:
        gaps = np.bincount(self.bins(scores), weights=labels - scores, minlength=NUM_CALIBRATION_BINS)
        return np.abs(gaps).sum() / len(labels)

    def weighted(self, ranked: Ranked) -> np.ndarray:
        members = np.eye(NUM_CALIBRATION_BINS)[self.bins(ranked.scores)]
        gaps = ranked.weights @ (members * (ranked.labels - ranked.scores)[:, None])
        return np.abs(gaps).sum(axis=1) / ranked.weights.sum(axis=1)

    def note(self, labels: np.ndarray) -> str | None:
        return "chance alone gives a gap, which shrinks as the set grows; its interval lies too high"


class BrierScore(LensMetric):
    """Mean squared error of P(lens); 0 is best, 0.25 is what P = 0.5 gets."""

    key, title, definition = "brier_score", "Brier score", "mean squared error of P(lens)"

    def value(self, labels: np.ndarray, scores: np.ndarray) -> float:
        return brier_score_loss(labels, scores)

    def weighted(self, ranked: Ranked) -> np.ndarray:
        return ranked.mean((ranked.scores - ranked.labels) ** 2)


def measures(prevalence: float = 1e-3) -> list[LensMetric]:
    """All that is measured, in the order of tables and cards."""
    found = [Accuracy(), ROCAUC(), AveragePrecision(), Completeness(1e-2), Completeness(1e-3)]
    found += [CompletenessBefore(1), CompletenessBefore(10), Purity(prevalence, fpr=1e-2), Purity(prevalence)]
    return [*found, CalibrationError(), BrierScore()]


def measure(
    labels: Sequence[int],
    scores: Sequence[float],
    groups: Sequence[Any] | None = None,
    subclasses: Sequence[str] | None = None,
    prevalence: float = 1e-3,
    num_bootstrap: int = 1000,
    seed: int = 0,
) -> dict[str, dict[str, Any]]:
    """
    All measures of [`measures`], and the ROC AUC of the lenses against each subclass of non-lenses alone
    (`auc_vs_<subclass>`, see [`auc_keys`]), with 95 % intervals.

    Args:
        labels (`Sequence[int]` of length `n`): 1 lens, 0 non-lens.
        scores (`Sequence[float]` of length `n`): P(lens), 0 to 1.
        groups (`Sequence`, *optional*): what the bootstrap draws as a whole; by default each cutout by itself.
        subclasses (`Sequence[str]`, *optional*): kind of each cutout; empty where unknown.
        prevalence (`float`, *optional*, defaults to `1e-3`): share of lenses for the expected purity.
        num_bootstrap (`int`, *optional*, defaults to `1000`): draws; 0 gives no intervals.
        seed (`int`, *optional*, defaults to `0`): seed of the draws.

    Returns:
        `dict[str, dict]`: per measure `title`, `value`, `low` and `high` (95 %); `value` is `None` and `reason` says
        why where the set is too small for it; `note` says what is wrong with an interval that does not cover 95 %.

    Raises:
        [`InputError`]: a class is missing, a score is no probability, or the prevalence does not lie between 0 and 1.
    """
    labels, scores = np.asarray(labels), np.asarray(scores, dtype=np.float64)
    groups = np.arange(len(labels)) if groups is None else np.unique(np.asarray(groups), return_inverse=True)[1]
    _check(labels, scores, prevalence)
    found = _measure_all(measures(prevalence), labels, scores, groups, num_bootstrap, seed)
    kinds = np.asarray([""] * len(labels) if subclasses is None else subclasses)
    for kind, key in auc_keys(set(kinds[labels == 0]) - {""}).items():
        keep, title = (labels == 1) | (kinds == kind), f"ROC AUC, lenses against {kind} alone"
        count = int((kinds[labels == 0] == kind).sum())
        if count < MIN_SUBCLASS:
            found[key] = _entry(title, reason=f"needs {MIN_SUBCLASS} cutouts of this kind, the set has {count}")
            continue
        alone = _measure_all([ROCAUC()], labels[keep], scores[keep], groups[keep], num_bootstrap, seed)
        found[key] = {**alone["roc_auc"], "title": title}
    return found


def reliability(labels: np.ndarray, scores: np.ndarray) -> list[dict[str, Any]]:
    """
    The counts behind [`CalibrationError`] and a reliability diagram: for each bin its edges `low` and `high` in
    P(lens), the `count` of cutouts that score in it, and how many of them are `lenses`.

    Args:
        labels (`np.ndarray` of shape `(n,)`): 1 lens, 0 non-lens.
        scores (`np.ndarray` of shape `(n,)`): P(lens), 0 to 1.
    """
    edges = np.linspace(0, 1, NUM_CALIBRATION_BINS + 1)
    bins = CalibrationError.bins(scores)
    counts, lenses = (np.bincount(bins[keep], minlength=NUM_CALIBRATION_BINS) for keep in (labels >= 0, labels == 1))
    return [
        {"low": float(edges[i]), "high": float(edges[i + 1]), "count": int(counts[i]), "lenses": int(lenses[i])}
        for i in range(NUM_CALIBRATION_BINS)
    ]


def auc_key(kind: str) -> str:
    """`"auc_vs_face_on_ring"` for the subclass `"Face-on ring"`."""
    return f"auc_vs_{re.sub(r'[^0-9a-z]+', '_', kind.lower())}"


def auc_keys(kinds: Collection[str]) -> dict[str, str]:
    """
    The key of each subclass, in the order of their names. Where several have one [`auc_key`], as `"E+A"` and `"E-A"`,
    all but the first end in `_2`, `_3`, ...; a name that is spelled as its key is the first, and so found there.
    """
    keys: dict[str, str] = {}
    for kind in sorted(kinds, key=lambda one: (auc_key(one) != f"auc_vs_{one}", one)):
        endings = ("", *(f"_{number}" for number in range(2, len(kinds) + 1)))
        keys[kind] = next(key for end in endings if (key := auc_key(kind) + end) not in keys.values())
    return {kind: keys[kind] for kind in sorted(keys)}


def _check(labels: np.ndarray, scores: np.ndarray, prevalence: float) -> None:
    if not 0 < prevalence < 1:
        raise InputError(f"prevalence is {prevalence}: give the share of lenses, between 0 and 1")
    if not set(np.unique(labels)) <= {0, 1}:
        raise InputError("labels must be 1 (lens) or 0 (non-lens): leave unlabelled cutouts out")
    for value, name in ((1, "lens"), (0, "non-lens")):
        if not (labels == value).any():
            raise InputError(f"there is no {name} among the {len(labels)} labelled cutouts: both classes are needed")
    if not ((scores >= 0) & (scores <= 1)).all():
        raise InputError("scores must be probabilities between 0 and 1, and not NaN: check the predictions")


def _measure_all(
    metrics: list[LensMetric], labels: np.ndarray, scores: np.ndarray, groups: np.ndarray, *settings: int
) -> dict[str, dict[str, Any]]:
    reasons = {metric.key: metric.refusal(labels, scores) for metric in metrics}
    possible = [metric for metric in metrics if not reasons[metric.key]]
    intervals = bootstrap(possible, labels, scores, groups, *settings)
    found = {}
    for metric in metrics:
        value = metric.compute(prediction_scores=scores, references=labels)[metric.key]
        ends = intervals.get(metric.key, (None, None))
        found[metric.key] = _entry(metric.title, value, *ends, reasons[metric.key])
        if metric.key in intervals and (note := metric.note(labels)):
            found[metric.key]["note"] = note
    return found


def _entry(title: str, value: Any = None, low: Any = None, high: Any = None, reason: Any = None) -> dict[str, Any]:
    entry = {"title": title, "value": value, "low": low, "high": high}
    return entry if reason is None else {**entry, "reason": reason}


def threshold_at_fpr(labels: np.ndarray, scores: np.ndarray, fpr: float) -> float | None:
    """Lowest score that is a threshold of at most this false-positive rate; `None` where the set cannot tell."""
    if _too_few(labels, round(1 / fpr)):
        return None
    rates, _, thresholds = roc_curve(labels, scores, drop_intermediate=False)
    permitted = np.isfinite(thresholds) & (rates <= fpr + 1e-12)
    return float(thresholds[permitted].min()) if permitted.any() else None


def _too_few(labels: np.ndarray, needed: int) -> str | None:
    negatives = int((labels == 0).sum())
    return None if negatives >= needed else f"needs {needed} non-lenses, the set has {negatives}"


def _power(value: float) -> str:
    """`0.01` -> `1e-2`; numbers that are no powers of ten in plain form."""
    exponent = round(np.log10(value))
    return f"1e{exponent}" if np.isclose(value, 10.0**exponent, rtol=1e-9) else f"{value:g}"
