"""Statistics of a study: means over its cells, their intervals, and p-values against a baseline."""

import itertools
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from ..errors import InputError
from ..evaluation.intervals import Ranked, Spread, draw_groups
from ..evaluation.metrics import MIN_SUBCLASS, ROCAUC, Accuracy, Completeness, auc_key
from ..evaluation.predictions import Predictions
from .crossed import over_all, over_test_groups
from .methods import BASELINES, METHODS, PRETRAINED

_LARGE_DRAWS = 400  # of the large test split: 2e4 cutouts a draw
_MAX_DRAWN = 4_000_000  # cutouts in all draws of a test split
MIN_SEEDS, MIN_SUBSETS = 3, 3  # for an interval over others, and a p-value: fewer do not tell how much they differ
_SMALL, _LARGE = "predictions.parquet", "predictions_large.parquet"
_HARD_AUC, _COMPLETENESS = auc_key("hard_nonlens"), "completeness_at_fpr_1e-3"
COMPARED = ("roc_auc", _HARD_AUC)  # whose differences tables show


def compare(cells: Sequence[Mapping[str, Any]], num_bootstrap: int = 2000, seed: int = 0) -> list[dict[str, Any]]:
    """
    Means per (method, backbone, labels) with 95 % intervals, and their differences to the baselines of equal labels.

    The intervals are those of crossed random effects of seeds, label subsets and test groups ([`over_all`]) where
    there are three seeds and, of a number of labels, three subsets, on both sides of a difference. Elsewhere they are
    over the test groups alone, and say nothing of other seeds or subsets: `test_set_alone`. Both sides of a difference
    have the same subsets and test groups; seeds are those of each side.

    Two-sided p-values are given where intervals are over all; those of the self-supervised methods against
    `supervised` are corrected after Holm (1979) over the comparisons of a measure.

    Args:
        cells (`Sequence[Mapping]`): with `method`, `backbone`, `labels`, `num_labels`, `seed`, `subset`, `fold` and
            `directory`, which holds predictions.parquet and, where there is one, predictions_large.parquet.
        num_bootstrap (`int`, *optional*, defaults to `2000`): draws of test groups, fewer of test splits above 2,000
            cutouts.
        seed (`int`, *optional*, defaults to `0`): seed of the draws.

    Returns:
        `list[dict]`: `method`, `backbone`, `labels`, `num_labels`, `seeds`, `subsets`; per measure (`roc_auc`,
        `accuracy`, `auc_vs_<subclass>`, `completeness_at_fpr_1e-3`) a dictionary with `value`, `low`, `high`,
        `test_set_alone` and, under `minus`, per baseline (of what is not self-supervised `supervised` alone) the same,
        over the subsets that both have, `p` (`None` over the test set alone) and for those that are corrected
        `p_holm`. `low` and `high` are `None` where a test set has one group, or too few non-lenses for completeness.
        What folds measure is averaged. Only cells of [`rectangles`] are taken; `left_out` counts the rest. Where
        predictions_large.parquet is gone, completeness is the mean of what the cells' `metrics_large` say, without
        an interval.

    Raises:
        [`InputError`]: cells of one fold were evaluated on different test sets.
    """
    one_per_fold = {cell["fold"]: cell for cell in cells}.values()
    largest = max((len(Predictions.load(Path(cell["directory"]) / _SMALL)) for cell in one_per_fold), default=1)
    tests = _TestSets(min(num_bootstrap, max(_LARGE_DRAWS, _MAX_DRAWN // largest)), seed)
    there = Counter(map(_column, cells))
    grids = {key: _Grid(column, there[key], tests) for key, column in rectangles(cells).items()}
    rows = [_row(key, grids) for key in sorted(grids, key=lambda one: _order(one, grids[one]))]
    _correct(rows)
    return rows


def _row(key: tuple[str, str, str], grids: Mapping[tuple[str, str, str], "_Grid"]) -> dict[str, Any]:
    """A row of [`compare`], without the corrections."""
    (labels, backbone, method), grid = key, grids[key]
    row = {"method": method, "backbone": backbone, "labels": labels, "num_labels": grid.num_labels}
    row |= {"seeds": len(grid.seeds), "subsets": len(grid.subsets), "left_out": grid.left_out}
    for name in grid.values:
        row[name] = _mean(grid, name)
        for baseline in BASELINES if method in PRETRAINED else ("supervised",):
            other = grids.get((labels, backbone, baseline)) or grids.get((labels, "", baseline))
            if method != baseline and other is not None and name in other.values:
                if minus := _difference(grid, other, name):
                    row[name].setdefault("minus", {})[baseline] = minus
    if grid.completeness is not None:
        row.setdefault(_COMPLETENESS, {"value": grid.completeness, "low": None, "high": None})
    return row


def _mean(grid: "_Grid", name: str) -> dict[str, Any]:
    alone, tests = not grid.tells_of_others(grid.subsets), grid.tests
    estimate = (over_test_groups if alone else over_all)([grid.of(name, grid.subsets)], tests.degrees(name))
    low, high = estimate.score_interval(tests.smallest(name)) if tests.have_interval(name) else (None, None)
    return {"value": estimate.value, "low": low, "high": high, "test_set_alone": alone}


def _difference(grid: "_Grid", other: "_Grid", name: str) -> dict[str, Any] | None:
    """How much better `grid` is by a measure than `other`, over the subsets that both have, if there are any."""
    subsets = [subset for subset in grid.subsets if subset in other.subsets]
    if not subsets:
        return None
    alone, tests = not all(one.tells_of_others(subsets) for one in (grid, other)), grid.tests
    sides = [grid.of(name, subsets), -other.of(name, subsets)]
    estimate = (over_test_groups if alone else over_all)(sides, tests.degrees(name))
    low, high = estimate.interval() if tests.have_interval(name) else (None, None)
    p = None if alone or low is None else estimate.p()
    return {"value": estimate.value, "low": low, "high": high, "test_set_alone": alone, "p": p}


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


class _TestSets:
    """The test sets that all cells share, by fold and kind (`test`, `hard`, `large`), and their draws of groups."""

    def __init__(self, number: int, seed: int):
        self.number, self.seed = number, seed
        self.metrics = {"test": [ROCAUC(), Accuracy()], "hard": [ROCAUC()], "large": [Completeness(1e-3)]}
        self.known: dict[tuple[int | None, str], tuple[Predictions, np.ndarray, Spread]] = {}

    def measure(self, cell: Mapping[str, Any]) -> dict[str, np.ndarray]:
        """Every measure of one cell, `(1 + draws,)`: on the test set, and on each draw of its groups."""
        table = Predictions.load(Path(cell["directory"]) / _SMALL).labelled()
        found = self._draws(cell, table, "test")
        is_hard = np.array(table.subclass) == "hard_nonlens"
        if (is_hard & (table.label == 0)).sum() >= MIN_SUBCLASS:
            keep = np.flatnonzero((table.label == 1) | is_hard)
            found[_HARD_AUC] = self._draws(cell, table.select(keep), "hard")["roc_auc"]
        if (large := Path(cell["directory"]) / _LARGE).is_file():
            table = Predictions.load(large).labelled()
            if self.metrics["large"][0].refusal(table.label, table.score) is None:
                found |= self._draws(cell, table, "large")
        return found

    def _draws(self, cell: Mapping[str, Any], table: Predictions, kind: str) -> dict[str, np.ndarray]:
        first, weights, spread = self._known(cell, table, kind)
        if first.id != table.id:
            raise InputError(f"{cell['directory']} was evaluated on another test set than the rest: evaluate it anew")
        ranked = Ranked(table.label, table.score, weights)
        found = {metric.key: metric.weighted(ranked) for metric in self.metrics[kind]}
        for draws in found.values():  # resampling n groups misses 1 / n of their variance (Davison & Hinkley 1997)
            middle = draws[1:].mean()
            draws[1:] = middle + (draws[1:] - middle) * np.sqrt(spread.num_groups / max(1, spread.num_groups - 1))
        return found

    def _known(self, cell: Mapping[str, Any], table: Predictions, kind: str) -> tuple[Predictions, np.ndarray, Spread]:
        key = cell["fold"], kind
        if key not in self.known:
            groups = np.array(table.group)
            number = min(self.number, _LARGE_DRAWS) if kind == "large" else self.number
            rng = np.random.default_rng([self.seed, 0 if cell["fold"] is None else 1 + cell["fold"]])
            weights = np.concatenate([np.ones((1, len(table))), draw_groups(rng, table.label, groups, number)])
            self.known[key] = table, weights, Spread(table.label, groups)
        return self.known[key]

    def _of(self, name: str) -> list[tuple[Predictions, Spread]]:
        """The test sets of a measure, one per fold."""
        kind = {_HARD_AUC: "hard", _COMPLETENESS: "large"}.get(name, "test")
        return [(table, spread) for (_, one), (table, _, spread) in self.known.items() if one == kind]

    def degrees(self, name: str) -> float:
        return sum(spread.degrees for _, spread in self._of(name))

    def smallest(self, name: str) -> int:
        return sum(spread.smallest for _, spread in self._of(name))

    def have_interval(self, name: str) -> bool:
        """Not with one group, and not of completeness with few non-lenses, whose intervals cover too little."""
        few = name == _COMPLETENESS and any(self.metrics["large"][0].note(table.label) for table, _ in self._of(name))
        return not few and all(spread.num_groups > 1 for _, spread in self._of(name))


class _Grid:
    """The cells of one (method, backbone, labels) that are compared, of `there`."""

    def __init__(self, cells: dict[tuple[int, int], dict], there: int, tests: _TestSets):
        self.seeds, self.subsets = (sorted(set(one)) for one in zip(*cells))
        self.tests = tests
        found = {key: [tests.measure(one) for one in cell.values()] for key, cell in cells.items()}
        every = [one for by_fold in found.values() for one in by_fold]
        # Of each measure that all cells have `(seeds, subsets, 1 + draws)`, a mean over folds.
        self.values = {
            name: np.array(
                [[np.mean([one[name] for one in found[k, s]], axis=0) for s in self.subsets] for k in self.seeds]
            )
            for name in every[0]
            if all(name in one for one in every)
        }
        own = [one for cell in cells.values() for one in cell.values()]
        self.left_out = there - len(own)
        self.num_labels = round(np.mean([one["num_labels"] for one in own]))
        large = [one.get("metrics_large", {}).get(_COMPLETENESS) for one in own]
        self.completeness = None if None in large else float(np.mean(large))
        method = own[0]["method"]
        self.side = METHODS.index(method) if method in METHODS else len(METHODS)
        # Nothing in a regression on profiles depends on a seed, and nothing in all labels on a subset.
        self.min_seeds = 1 if method == "profiles" else MIN_SEEDS
        self.min_subsets = 1 if own[0]["labels"] == "all" else MIN_SUBSETS

    def of(self, name: str, subsets: list[int]) -> np.ndarray:
        """`(seeds, subsets, 1 + draws)`: the measure of each cell on each draw."""
        return self.values[name][:, [self.subsets.index(one) for one in subsets]]

    def tells_of_others(self, subsets: list[int]) -> bool:
        """Whether these subsets and the seeds are enough to tell how much others differ."""
        return len(self.seeds) >= self.min_seeds and len(subsets) >= self.min_subsets


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
