"""Statistics of a study: means over its cells, hierarchical-bootstrap intervals, and p-values against a baseline."""

import itertools
import math
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from scipy.stats import norm as normal
from scipy.stats import t as student

from ..errors import InputError
from ..evaluation.intervals import Ranked, draw_groups
from ..evaluation.metrics import Completeness, auc_key
from ..evaluation.predictions import Predictions
from .methods import BASELINES, METHODS, PRETRAINED

_LARGE_DRAWS = 200  # of the large test split: 2e4 cutouts a draw
_MAX_DRAWN = 20_000_000  # cutouts in all draws of a test split
_MAX_PAIRS = 20_000_000  # pairs of a lens and a non-lens that are compared at once
MIN_SEEDS, MIN_SUBSETS = 3, 3  # for a p-value: fewer do not tell how much they differ


def compare(cells: Sequence[Mapping[str, Any]], num_bootstrap: int = 10_000, seed: int = 0) -> list[dict[str, Any]]:
    """
    Means per (method, backbone, labels) with 95 % intervals, and their differences to the baselines of equal labels.

    The intervals are percentiles of a hierarchical bootstrap: each draw takes test groups, label subsets and seeds
    with replacement. Groups and subsets are the same for both sides of a difference, since both sides saw the same
    ones; seeds are drawn for each side. What resampling n seeds or subsets misses of their variance, a factor
    (n - 1) / n, is put back by stretching the draws about their mean (Davison & Hinkley 1997, section 3.8). Few seeds
    and subsets tell their variance badly: the draws are stretched once more, by the ratio of the quantiles of
    Student's t, of Satterthwaite's (1946) degrees of freedom, and of the normal distribution.

    Two-sided p-values are those of Student's t with the draws' standard deviation: Welch's test where only seeds
    differ. They take no more degrees of freedom than seeds and subsets have together: two or three subsets that agree
    by chance would make them many. They are given where both sides have three seeds and, of a number of labels,
    three subsets in common; those of the self-supervised methods against `supervised` are corrected after Holm (1979)
    over the comparisons of a measure.

    Args:
        cells (`Sequence[Mapping]`): with `method`, `backbone`, `labels`, `num_labels`, `seed`, `subset`, `fold` and
            `directory`, which holds predictions.parquet and, where there is one, predictions_large.parquet.
        num_bootstrap (`int`, *optional*, defaults to `10_000`): draws, fewer of test splits above 2,000 cutouts.
        seed (`int`, *optional*, defaults to `0`): seed of the draws.

    Returns:
        `list[dict]`: `method`, `backbone`, `labels`, `num_labels`, `seeds`, `subsets`; per measure (`roc_auc`,
        `accuracy`, `auc_vs_<subclass>`, `completeness_at_fpr_1e-3`) a dictionary with `value`, `low`, `high` and,
        under `minus`, per baseline (of what is not self-supervised `supervised` alone) `value`, `low`, `high`, over
        the subsets that both have, `p` (`None` with fewer seeds or subsets) and for those that are corrected `p_holm`.
        What folds measure is averaged. Only cells of [`rectangles`] are taken; `left_out` counts the rest. Where
        predictions_large.parquet is gone, completeness is the mean of what the cells' `metrics_large` say, without
        an interval.

    Raises:
        [`InputError`]: cells of one fold were evaluated on different test sets.
    """
    one_per_fold = {cell["fold"]: cell for cell in cells}.values()
    largest = max((len(Predictions.load(Path(cell["directory"]) / _SMALL)) for cell in one_per_fold), default=1)
    draws = _Draws(min(num_bootstrap, max(_LARGE_DRAWS, _MAX_DRAWN // largest)), seed)
    there = Counter(map(_column, cells))
    grids = {key: _Grid(column, there[key], draws) for key, column in rectangles(cells).items()}
    rows = [_row(key, grids) for key in sorted(grids, key=lambda one: _order(one, grids[one]))]
    _correct(rows)
    return rows


def _row(key: tuple[str, str, str], grids: Mapping[tuple[str, str, str], "_Grid"]) -> dict[str, Any]:
    """A row of [`compare`], without the corrections."""
    (labels, backbone, method), grid = key, grids[key]
    row = {"method": method, "backbone": backbone, "labels": labels, "num_labels": grid.num_labels}
    row |= {"seeds": len(grid.seeds), "subsets": len(grid.subsets), "left_out": grid.left_out}
    for name in grid.measures:
        values = grid.of(name, grid.subsets)
        freedom = _Freedom([values.mean(axis=1), values.mean(axis=0)])
        row[name] = freedom.interval(grid.draw(name, grid.subsets), bounds=(0, 1))
        for baseline in BASELINES if method in PRETRAINED else ("supervised",):
            other = grids.get((labels, backbone, baseline)) or grids.get((labels, "", baseline))
            if method != baseline and other is not None and name in other.measures:
                min_subsets = 1 if labels == "all" else MIN_SUBSETS
                if minus := _difference(grid, other, name, min_subsets):
                    row[name].setdefault("minus", {})[baseline] = minus
    if grid.completeness is not None:
        row.setdefault(Completeness(1e-3).key, {"value": grid.completeness, "low": None, "high": None})
    return row


def _difference(grid: "_Grid", other: "_Grid", name: str, min_subsets: int) -> dict[str, Any] | None:
    """How much better `grid` is by a measure than `other`, over the subsets that both have, if there are any."""
    subsets = [subset for subset in grid.subsets if subset in other.subsets]
    if not subsets:
        return None
    ours, theirs = (one.of(name, subsets) for one in (grid, other))
    difference = ours.mean(axis=0) - theirs.mean(axis=0)
    freedom = _Freedom([ours.mean(axis=1), theirs.mean(axis=1), difference])
    draws = grid.draw(name, subsets) - other.draw(name, subsets)
    is_enough = len(subsets) >= min_subsets and min(grid.independent_seeds, other.independent_seeds) >= MIN_SEEDS
    return {**freedom.interval(draws), "p": freedom.p(draws) if is_enough else None}


def _column(cell: Mapping[str, Any]) -> tuple[str, str, str]:
    return cell["labels"], cell["backbone"], cell["method"]


def rectangles(cells: Sequence[Mapping[str, Any]]) -> dict[tuple[str, str, str], dict[tuple[int, int], dict]]:
    """
    By (labels, backbone, method) the cells that are compared, by (seed, subset) and then by fold: those of the largest
    rectangle of seeds and subsets that are there for all folds of `cells`; rather of one that a p-value can be given
    for. A column without any is left out.
    """
    columns: dict[tuple[str, str, str], dict[tuple[int, int], dict]] = defaultdict(dict)
    for cell in cells:
        columns[_column(cell)].setdefault((cell["seed"], cell["subset"]), {})[cell["fold"]] = cell
    folds = {cell["fold"] for cell in cells}
    chosen = {}
    for key, column in columns.items():
        whole = {one: by_fold for one, by_fold in column.items() if set(by_fold) == folds}
        seeds, subsets = _largest_rectangle(set(whole), 1 if key[0] == "all" else MIN_SUBSETS)
        if seeds:
            chosen[key] = {(k, s): whole[k, s] for k in seeds for s in subsets}
    return chosen


def _order(key: tuple[str, str, str], grid: "_Grid") -> tuple:
    _, backbone, _ = key
    return grid.num_labels, backbone == "", backbone, grid.side


class _Draws:
    """The draws that all cells share: of test groups per fold, and of label subsets. Draw 0 is the set itself."""

    def __init__(self, number: int, seed: int):
        self.number, self.seed = number, seed
        self.tests: dict[tuple[int | None, str], tuple[Predictions, np.ndarray]] = {}

    def weights(self, cell: Mapping[str, Any], table: Predictions, file: str) -> np.ndarray:
        """`(1 + draws, n)`: how often each cutout is in each draw."""
        key = cell["fold"], file
        if key not in self.tests:
            number = min(self.number, _LARGE_DRAWS) if file == _LARGE else self.number
            rng = np.random.default_rng([self.seed, 0 if cell["fold"] is None else 1 + cell["fold"]])
            weights = draw_groups(rng, table.label, np.array(table.group), number).astype(np.float32)
            self.tests[key] = table, np.concatenate([np.ones((1, len(table)), np.float32), weights])
        first, weights = self.tests[key]
        if first.id != table.id:
            raise InputError(f"{cell['directory']} was evaluated on another test set than the rest: evaluate it anew")
        return weights

    def counts(self, number: int, draws: int, *key: int) -> np.ndarray:
        """`(1 + draws, number)` shares of each of `number` things in each draw of them; draw 0 has each once."""
        rng = np.random.default_rng([self.seed, *key])
        chosen = rng.integers(number, size=(draws, number))
        shares = (chosen[:, :, None] == np.arange(number)).mean(axis=1)
        shares = 1 / number + (shares - 1 / number) * np.sqrt(number / max(1, number - 1))
        return np.concatenate([np.full((1, number), 1 / number), shares])


_SMALL, _LARGE = "predictions.parquet", "predictions_large.parquet"


class _Grid:
    """The cells of one (method, backbone, labels) that are compared, of `there`."""

    def __init__(self, cells: dict[tuple[int, int], dict], there: int, draws: _Draws):
        self.seeds, self.subsets = (sorted(set(one)) for one in zip(*cells))
        self.cells, self.draws = cells, draws
        self.values: dict[str, dict[tuple[int, int], np.ndarray]] = defaultdict(dict)
        for key, cell in self.cells.items():
            found = [_measure(one, draws) for one in cell.values()]
            for name in set.intersection(*map(set, found)):  # what every fold has cutouts for
                self.values[name][key] = np.mean([one[name] for one in found], axis=0)
        own = [one for cell in self.cells.values() for one in cell.values()]
        self.left_out = there - len(own)
        self.num_labels = round(np.mean([one["num_labels"] for one in own]))
        found = [one.get("metrics_large", {}).get(Completeness(1e-3).key) for one in own]
        self.completeness = None if None in found else float(np.mean(found))
        method = own[0]["method"]
        self.side = METHODS.index(method) if method in METHODS else len(METHODS)
        # Nothing in a regression on profiles depends on a seed, so that one is as good as many.
        self.independent_seeds = MIN_SEEDS if method == "profiles" else len(self.seeds)

    @property
    def measures(self) -> list[str]:
        """What every cell measured."""
        return [name for name, values in self.values.items() if len(values) == len(self.cells)]

    def of(self, name: str, subsets: list[int]) -> np.ndarray:
        """`(seeds, subsets)`: the measure of each cell."""
        return np.array([[self.values[name][k, s][0] for s in subsets] for k in self.seeds])

    def draw(self, name: str, subsets: list[int]) -> np.ndarray:
        """The mean over cells `(1 + draws,)`: draw 0 as it is, then with seeds and subsets drawn anew."""
        values = np.stack([np.stack([self.values[name][k, s] for s in subsets]) for k in self.seeds])
        draws = values.shape[-1] - 1
        seed_shares = self.draws.counts(len(self.seeds), draws, 1, self.side)
        subset_shares = self.draws.counts(len(subsets), draws, 2)
        return np.einsum("bk,bj,kjb->b", seed_shares, subset_shares, values, optimize=True)


def _measure(cell: Mapping[str, Any], draws: _Draws) -> dict[str, np.ndarray]:
    """Every measure of one cell on every draw of test groups, `(1 + draws,)`."""
    directory = Path(cell["directory"])
    table = Predictions.load(directory / _SMALL).labelled()
    weights = draws.weights(cell, table, _SMALL)
    found = {"roc_auc": weighted_auc(table.label, table.score, weights)}
    right = (table.score >= 0.5) == table.label
    found["accuracy"] = weights @ right.astype(np.float32) / weights.sum(axis=1)
    kinds = np.array(table.subclass)
    if "hard_nonlens" in kinds:
        keep = (table.label == 1) | (kinds == "hard_nonlens")
        name = auc_key("hard_nonlens")
        found[name] = weighted_auc(table.label[keep], table.score[keep], weights[:, keep])
    if (directory / _LARGE).is_file():
        large = Predictions.load(directory / _LARGE).labelled()
        metric = Completeness(1e-3)
        if metric.refusal(large.label, large.score) is None:
            ranked = Ranked(large.label, large.score, draws.weights(cell, large, _LARGE))
            found[metric.key] = metric.weighted(ranked)
    return found


def weighted_auc(labels: np.ndarray, scores: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """
    ROC AUC `(draws,)` under weights `(draws, n)` as one product of matrices: P(lens scores higher), ties counted half;
    nan where a draw lacks a class.
    """
    lens = labels == 1
    others, of_others = scores[None, ~lens], weights[:, ~lens]
    won = np.zeros(len(weights))
    for chunk in np.array_split(lens.nonzero()[0], 1 + int(lens.sum()) * others.size // _MAX_PAIRS):
        higher = ((scores[chunk, None] > others) + 0.5 * (scores[chunk, None] == others)).astype(np.float32)
        won += ((weights[:, chunk] @ higher).astype(np.float64) * of_others).sum(axis=1)
    pairs = weights[:, lens].sum(axis=1, dtype=np.float64) * weights[:, ~lens].sum(axis=1, dtype=np.float64)
    with np.errstate(invalid="ignore"):
        return won / pairs


class _Freedom:
    """
    Statistics of draws whose spread comes in part from few units: seeds, label subsets.

    Args:
        units (`list[np.ndarray]`): of each kind, `(n,)` means over all else; their mean has the variance s^2 / n with
            n - 1 degrees of freedom. The rest of the draws' variance is that of test groups, which are many.
    """

    def __init__(self, units: list[np.ndarray]):
        self.units = [one for one in units if len(one) > 1]

    def degrees(self, draws: np.ndarray) -> float:
        """Satterthwaite's: the square of the variance over the sum of each part's square over its own degrees."""
        uncertain = sum((one.var(ddof=1) / len(one)) ** 2 / (len(one) - 1) for one in self.units)
        return max(1.0, float(np.nanvar(draws[1:]) ** 2 / uncertain)) if uncertain else math.inf

    def interval(self, draws: np.ndarray, bounds: tuple[float, float] = (-1, 1)) -> dict[str, Any]:
        stretch = student.ppf(0.975, self.degrees(draws)) / normal.ppf(0.975)
        middle = np.nanmean(draws[1:])
        low, high = np.nanpercentile(middle + stretch * (draws[1:] - middle), [2.5, 97.5]).clip(*bounds).tolist()
        return {"value": float(draws[0]), "low": low, "high": high}

    def p(self, draws: np.ndarray) -> float:
        spread = np.nanstd(draws[1:])
        if spread == 0:
            return 1.0 if draws[0] == 0 else 0.0
        together = sum(len(one) - 1 for one in self.units) or math.inf
        return float(2 * student.sf(abs(draws[0]) / spread, min(self.degrees(draws), together)))


def _largest_rectangle(keys: set[tuple[int, int]], min_subsets: int = 1) -> tuple[list[int], list[int]]:
    """
    The seeds and subsets with the most cells among those that are all there; those of at least `MIN_SEEDS` and
    `min_subsets` come first, of equal ones the most seeds. What is looked at are the subsets that one seed has, and
    that two or three have in common.
    """
    subsets_of = {seed: frozenset(s for k, s in keys if k == seed) for seed, _ in keys}
    some = itertools.combinations_with_replacement(subsets_of.values(), 3)
    found = []
    for common in {frozenset.intersection(*sets) for sets in some}:
        seeds = sorted(seed for seed, subsets in subsets_of.items() if common <= subsets)
        found.append((seeds, sorted(common)))

    def worth(one: tuple[list[int], list[int]]) -> tuple:
        seeds, subsets = one
        is_enough = len(seeds) >= MIN_SEEDS and len(subsets) >= min_subsets
        return is_enough, len(seeds) * len(subsets), len(seeds), one

    return max(found, key=worth, default=([], []))


def _correct(rows: list[dict[str, Any]]) -> None:
    """Holm's step-down correction per measure, over all self-supervised cells of the table, as `p_holm`."""
    for name in {name for row in rows for name in row if isinstance(row[name], dict)}:
        family = [row[name]["minus"]["supervised"] for row in rows if row["method"] in PRETRAINED
                  and row.get(name, {}).get("minus", {}).get("supervised", {}).get("p") is not None]  # fmt: skip
        largest = 0.0
        for rank, entry in enumerate(sorted(family, key=lambda entry: entry["p"])):
            largest = max(largest, min(1.0, (len(family) - rank) * entry["p"]))
            entry["p_holm"] = largest
