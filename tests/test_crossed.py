"""Intervals over seeds, subsets and test groups: against formulas written out, and on simulated studies."""

import itertools

import numpy as np
import pytest
from scipy.stats import norm as normal
from scipy.stats import ttest_1samp, ttest_rel

from lens_ssl_hf.evaluation.intervals import Ranked, Spread, draw_groups
from lens_ssl_hf.evaluation.metrics import ROCAUC, Accuracy, Completeness
from lens_ssl_hf.study.crossed import over_all, over_test_groups

# Standard deviations of what a seed, a subset and a cell add to a method's signal, and of what a group of cutouts adds
# to the scores of all cells, of a method's and of one; a cutout adds 1. In AUC they are a twelfth of that.
NOISE = {
    "seeds": (0.15, 0.0, 0.0, (0.0, 0.1, 0.1)),
    "subsets": (0.0, 0.15, 0.0, (0.0, 0.1, 0.1)),
    "seeds and subsets": (0.12, 0.12, 0.0, (0.0, 0.1, 0.1)),
    "cells": (0.08, 0.08, 0.2, (0.0, 0.1, 0.1)),
    "groups": (0.05, 0.05, 0.1, (0.7, 0.3, 0.2)),
}
SIGNAL, NUM_GROUPS, SIZE, DRAWS = 2.2, 100, 2, 150
GAIN = 0.026  # in AUC, whose power is measured


def simulate(rng, noise, shape, metric):
    """
    `(seeds, subsets, 1 + draws)` of a measure of two methods that are equally good, on the same subsets and test set,
    the second with the opposite sign. Half of the cutouts are lenses.
    """
    of_seed, of_subset, of_cell, of_group = noise
    groups, labels = np.repeat(np.arange(NUM_GROUPS), SIZE), np.arange(NUM_GROUPS * SIZE) // SIZE % 2
    weights = np.concatenate([np.ones((1, len(labels))), draw_groups(rng, labels, groups, DRAWS)])
    by_group = (rng.normal(size=NUM_GROUPS)[groups] for _ in itertools.count())
    common = rng.normal(size=len(labels)) + of_group[0] * next(by_group)
    sides = []
    for sign in (1, -1):
        signal = SIGNAL + of_seed * rng.normal(size=(shape[0], 1)) + of_subset * rng.normal(size=shape[1])
        signal = signal + of_cell * rng.normal(size=shape)
        own = common + of_group[1] * next(by_group)
        scores = [one * labels + own + of_group[2] * next(by_group) for one in signal.ravel()]
        found = [metric.weighted(Ranked(labels, score, weights)) for score in scores]
        sides.append(sign * np.reshape(found, (*shape, -1)))
    return sides, Spread(labels, groups)


def truth(noise):
    """The mean AUC over all seeds, subsets and test sets."""
    of_seed, of_subset, of_cell, of_group = noise
    variance = 2 * (1 + np.square(of_group).sum()) + of_seed**2 + of_subset**2 + of_cell**2
    return normal.cdf(SIGNAL / np.sqrt(variance))


def written_out(sides):
    """Variance and degrees of freedom of [`over_all`] with ten degrees of the test groups, by loops over cells."""
    parts, left = [], 0.0
    for side in sides:
        cells = side[..., 0]
        seeds, subsets = cells.shape
        means = [cells[k].mean() for k in range(seeds)]
        if seeds > 1:
            parts.append((sum((one - cells.mean()) ** 2 for one in means) / (seeds - 1) / seeds, seeds - 1))
        if seeds > 1 and subsets > 1:
            alone = [(cells[k, s] - cells[k].mean() - cells[:, s].mean() + cells.mean()) ** 2
                     for k in range(seeds) for s in range(subsets)]  # fmt: skip
            left += sum(alone) / ((seeds - 1) * (subsets - 1)) / (seeds * subsets)
    columns = [sum(side[:, s, 0].mean() for side in sides) for s in range(subsets)]
    if subsets > 1:
        parts.append((np.var(columns, ddof=1) / subsets, subsets - 1))
    both = sum(part for part, _ in parts)
    units = max(both - left, both / 2)
    factor = 1 if both - left > both / 2 else 0.5
    few = units**2 / sum((factor * part) ** 2 / (f + 2) for part, f in parts) - 2
    few = max(few, min(f for _, f in parts))
    groups = 0.0
    for a, b in itertools.product(sides, repeat=2):
        pairs = [
            np.cov(a[k, s, 1:], b[m, t, 1:], ddof=0)[0, 1]
            for (k, s), (m, t) in itertools.product(np.ndindex(a.shape[:2]), np.ndindex(b.shape[:2]))
            if (a is not b or len(a) == 1 or k != m) and (subsets == 1 or s != t)
        ]
        groups += np.mean(pairs)
    groups = max(groups, 0.0)
    share = units / (units + groups)
    return units + groups, 1 / (share**1.5 / few + (1 - share) ** 1.5 / 10)


@pytest.mark.parametrize("shapes", [[(3, 4), (5, 4)], [(3, 3), (1, 3)], [(4, 1), (3, 1)], [(1, 5), (1, 5)], [(3, 4)]])
@pytest.mark.parametrize("scatter", [0.0, 0.1, 3.0])
def test_variance_and_degrees_are_those_of_the_formulas(shapes, scatter):
    rng = np.random.default_rng(len(shapes))
    common = rng.normal(size=20)
    sides = [
        scatter * (rng.normal(size=(shape[0], 1, 1)) + rng.normal(size=(1, shape[1], 1)))
        + rng.normal(size=(*shape, 1)) + 0.5 * rng.normal(size=(*shape, 20)) + sign * common
        for sign, shape in zip((1, 0.2), shapes)
    ]  # fmt: skip
    estimate = over_all(sides, 10)
    assert (estimate.variance, estimate.degrees) == pytest.approx(written_out(sides), rel=1e-9)
    assert estimate.value == pytest.approx(sum(side[..., 0].mean() for side in sides))
    alone = over_test_groups(sides, 10)
    assert alone.variance == pytest.approx(np.var(sum(side.mean(axis=(0, 1)) for side in sides)[1:]))
    assert alone.value == estimate.value and alone.degrees == 10


def test_where_one_thing_differs_it_is_the_t_test_of_that():
    rng = np.random.default_rng(0)
    ours, theirs = 0.9 + 0.02 * rng.normal(size=(2, 1, 5))
    sides = [np.repeat(side[..., None], 4, axis=-1) for side in (ours, -theirs)]  # no scatter of the test groups
    expected = ttest_rel(ours[0], theirs[0])
    difference = over_all(sides, 10)
    assert difference.p() == pytest.approx(expected.pvalue)
    assert difference.interval() == pytest.approx(expected.confidence_interval(0.95))
    assert over_all([sides[0].transpose(1, 0, 2)], 10).p() == pytest.approx(ttest_1samp(ours[0], 0).pvalue)
    low, high = over_all(sides[:1], 10).score_interval(9)
    assert 0 < low < ours.mean() < high < 1
    same = [np.full((3, 3, 4), 0.9), np.full((3, 3, 4), -0.9)]
    assert over_all(same, 10).p() == 1 and over_all(same, 10).interval() == (0, 0)


def test_the_order_of_cells_and_methods_does_not_matter():
    rng = np.random.default_rng(1)
    sides, spread = simulate(rng, NOISE["cells"], (3, 4), ROCAUC())
    difference, order = over_all(sides, spread.degrees), rng.permutation(4)
    again = over_all([side[rng.permutation(3)][:, order] for side in sides], spread.degrees)
    assert (again.value, again.p()) == pytest.approx((difference.value, difference.p()))
    swapped = over_all([-side for side in sides[::-1]], spread.degrees)
    assert (swapped.value, swapped.p()) == pytest.approx((-difference.value, difference.p()))
    assert swapped.interval() == pytest.approx([-end for end in difference.interval()[::-1]])


@pytest.mark.slow
@pytest.mark.parametrize(
    ("shape", "repetitions", "power"),
    [
        ((3, 3), 600, 0.33),
        ((3, 4), 400, 0.37),
        ((5, 10), 300, 0.5),
        ((3, 1), 600, 0.22),
        ((1, 3), 600, 0.16),
        ((1, 2), 1500, 0.4),
        ((1, 1), 1500, 0.4),
    ],
)
def test_simulated_studies_are_judged_at_the_nominal_rate(shape, repetitions, power):
    """
    About 5 % of the differences between equal methods are called one, and 95 % of the intervals hold the truth: on
    average over the kinds of noise. Where three subsets are all that differs, it is 8 %. With fewer than three the
    test set alone is judged, and cells do not differ; the bootstrap's variance is then a little too large.
    """
    rejected, covered, found = {}, {}, {}
    is_enough = max(shape) >= 3
    judge, metric = over_all if is_enough else over_test_groups, ROCAUC()
    for name, noise in NOISE.items() if is_enough else [("groups", NOISE["groups"])]:
        of_seed, of_subset, of_cell, of_group = noise
        noise = (of_seed * (shape[0] >= 3), of_subset * (shape[1] >= 3), of_cell * is_enough, of_group)
        rng, p, hits, found[name] = np.random.default_rng(3), [], [], []
        for _ in range(repetitions):
            sides, spread = simulate(rng, noise, shape, metric)
            difference, mean = judge(sides, spread.degrees), judge(sides[:1], spread.degrees)
            p.append(difference.p())
            low, high = mean.score_interval(spread.smallest)
            hits.append(low <= truth(noise) <= high)
            difference.value += GAIN
            found[name].append(difference.interval()[0] > 0)
        rejected[name], covered[name] = np.mean(np.array(p) < 0.05), np.mean(hits)
    assert (0.035 if is_enough else 0.025) <= np.mean(list(rejected.values())) <= 0.06, rejected
    assert 0.935 <= np.mean(list(covered.values())) <= 0.97, covered
    assert all(0.02 <= one <= 0.09 for one in rejected.values()), rejected
    assert all(0.92 <= one <= 0.985 for one in covered.values()), covered
    assert min(np.mean(one) for one in found.values()) > power, found


@pytest.mark.slow
@pytest.mark.parametrize("metric", [Accuracy(), Completeness(0.1)], ids=["accuracy", "completeness"])
def test_other_measures_are_judged_as_the_auc_is(metric):
    """They change in steps, which makes the bootstrap a little too careful."""
    rejected, covered = [], []
    for noise in NOISE.values():
        rng, values, ends = np.random.default_rng(5), [], []
        for _ in range(250):
            sides, spread = simulate(rng, noise, (3, 3), metric)
            rejected.append(over_all(sides, spread.degrees).p() < 0.05)
            mean = over_all(sides[:1], spread.degrees)
            values.append(mean.value)
            ends.append(mean.score_interval(spread.smallest))
        low, high = np.transpose(ends)
        covered.append(np.mean((low <= np.mean(values)) & (np.mean(values) <= high)))
    assert 0.02 <= np.mean(rejected) <= 0.06 and min(covered) >= 0.93 and np.mean(covered) <= 0.975, covered
