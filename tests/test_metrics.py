"""Measures against scikit-learn and by hand; what the bootstrap's intervals must do."""

import time

import numpy as np
import pytest
from sklearn.metrics import average_precision_score, brier_score_loss, roc_auc_score, roc_curve

from lens_ssl_hf import InputError
from lens_ssl_hf.evaluation.metrics import (
    ROCAUC,
    Accuracy,
    AveragePrecision,
    BrierScore,
    Completeness,
    Ranked,
    bootstrap,
    measure,
    measures,
    threshold_at_fpr,
)


def toy_set(size, seed=0, separation=1.5, decimals=None):
    """Labels and P(lens); rounding makes ties."""
    rng = np.random.default_rng(seed)
    labels = (rng.random(size) < 0.4).astype(int)
    scores = 1 / (1 + np.exp(-(separation * (2 * labels - 1) + 1.5 * rng.standard_normal(size))))
    return labels, scores if decimals is None else scores.round(decimals)


@pytest.mark.parametrize("decimals", [None, 1])
def test_weighted_formulas_equal_scikit_learn_on_the_resampled_set(decimals):
    labels, scores = toy_set(1500, decimals=decimals)
    weights = np.random.default_rng(1).multinomial(1500, np.full(1500, 1 / 1500), size=3).astype(float)
    ranked = Ranked(labels, scores, weights)
    for metric in measures(prevalence=0.01):
        for draw, found in enumerate(metric.weighted(ranked)):
            rows = np.repeat(np.arange(1500), weights[draw].astype(int))
            assert found == pytest.approx(metric.value(labels[rows], scores[rows]), abs=1e-12), metric.key


def test_values_by_hand():
    labels = np.array([1, 1, 0, 1, 0, 0])
    scores = np.array([0.9, 0.8, 0.7, 0.6, 0.6, 0.1])
    found = {metric.key: float(metric.value(labels, scores)) for metric in measures(prevalence=0.1)}
    assert found["accuracy"] == pytest.approx(4 / 6)
    assert found["roc_auc"] == pytest.approx((3 + 3 + 1.5) / 9)  # wins of each lens, the tie counts half
    assert found["average_precision"] == pytest.approx((1 + 1 + 3 / 5) / 3)
    assert found["tpr0"] == found["completeness_at_fpr_1e-2"] == pytest.approx(2 / 3)
    assert found["tpr10"] == 1
    assert found["purity_at_fpr_1e-2"] == pytest.approx(0.1 * 2 / 3 / (0.1 * 2 / 3 + 0.9 * 0.01))
    assert found["purity_at_threshold_0.5"] == pytest.approx(0.1 / (0.1 + 0.9 * 2 / 3))
    assert found["brier_score"] == pytest.approx((0.01 + 0.04 + 0.49 + 0.16 + 0.36 + 0.01) / 6)
    # the bins of 1/15: 0.9 | 0.8 | 0.7 | 0.6 twice, one of them a lens | 0.1
    assert found["expected_calibration_error"] == pytest.approx((0.1 + 0.2 + 0.7 + 2 * 0.1 + 0.1) / 6)


def test_the_metrics_stand_alone_offline():
    labels, scores = toy_set(200)
    for metric in measures():
        computed = metric.compute(prediction_scores=scores.tolist(), references=labels.tolist())
        assert list(computed) == [metric.key]
    by_key = {metric.key: metric for metric in measures()}
    expected = {
        "average_precision": average_precision_score,
        "brier_score": brier_score_loss,
        "roc_auc": roc_auc_score,
    }
    for key, function in expected.items():
        value = by_key[key].compute(prediction_scores=scores, references=labels)[key]
        assert value == pytest.approx(function(labels, scores), abs=1e-12)


def test_what_a_set_is_too_small_for_is_refused_with_the_reason():
    labels, scores = np.repeat([1, 0], [40, 400]), np.concatenate([np.linspace(0.3, 1, 40), np.linspace(0, 0.8, 400)])
    found = measure(labels, scores, num_bootstrap=50)
    for key in ("completeness_at_fpr_1e-3", "tpr10"):
        assert found[key]["value"] is found[key]["low"] is None
        assert found[key]["reason"] == "needs 1000 non-lenses, the set has 400"
    assert found["completeness_at_fpr_1e-2"]["value"] is not None and found["tpr0"]["value"] is not None
    assert "reason" not in found["tpr0"]
    perfect = measure(labels, labels * 0.9, num_bootstrap=0)["purity_at_threshold_0.5"]
    bound = 1e-3 / (1e-3 + 0.999 * (1 - 0.05 ** (1 / 400)))  # no false positive among 400
    assert perfect["value"] is None and f"above {bound:.2g} at 95 % confidence" in perfect["reason"]
    assert threshold_at_fpr(labels[:100], scores[:100], 1e-2) is None
    threshold = threshold_at_fpr(labels, scores, 1e-2)
    assert (scores[labels == 0] >= threshold).sum() == 4 and threshold in scores


def test_auc_of_subclasses():
    labels, scores = toy_set(300)
    kinds = np.where(labels == 1, "lens", np.where(np.arange(300) % 3 == 0, "hard nonlens", "field"))
    kinds[np.flatnonzero(labels == 0)[:3]] = "comet"
    found = measure(labels, scores, subclasses=kinds, num_bootstrap=50)
    keep = (labels == 1) | (kinds == "hard nonlens")
    assert found["auc_vs_hard_nonlens"]["value"] == pytest.approx(roc_auc_score(labels[keep], scores[keep]))
    assert found["auc_vs_comet"]["value"] is None and "has 3" in found["auc_vs_comet"]["reason"]
    assert "auc_vs_lens" not in found


def test_subclasses_that_differ_in_punctuation_or_script_have_keys_of_their_own():
    names = ["E-A", "E+A", "環", "渦", "e_a_2", "Hard nonlens", "hard_nonlens"]
    labels, scores = np.repeat([1, 0], 70), np.random.default_rng(0).random(140)
    kinds = np.array(["lens"] * 70 + names * 10)
    found = measure(labels, scores, subclasses=kinds, num_bootstrap=0)
    values = {
        name: roc_auc_score(labels[keep], scores[keep]) for name in names for keep in [(labels == 1) | (kinds == name)]
    }
    keys = {"auc_vs_hard_nonlens_2": "Hard nonlens", "auc_vs_hard_nonlens": "hard_nonlens", "auc_vs_e_a": "E+A"}
    keys |= {"auc_vs_e_a_3": "E-A", "auc_vs_e_a_2": "e_a_2", "auc_vs__": "渦", "auc_vs___2": "環"}
    assert {key: one["value"] for key, one in found.items() if key.startswith("auc_vs")} == pytest.approx(
        {key: values[name] for key, name in keys.items()}
    )
    assert all(name in found[key]["title"] for key, name in keys.items())


def test_intervals_contain_the_value_and_repeat():
    labels, scores = toy_set(2500)
    found = measure(labels, scores, num_bootstrap=200)
    for key, entry in found.items():
        if key != "tpr0":  # an extreme value
            assert entry["low"] <= entry["value"] <= entry["high"], key
    assert found == measure(labels, scores, num_bootstrap=200)
    assert found != measure(labels, scores, num_bootstrap=200, seed=1)


def test_interval_of_the_auc_has_the_width_of_theory():
    labels, scores = toy_set(1000)
    low, high = bootstrap([ROCAUC()], labels, scores, np.arange(1000))["roc_auc"]
    # DeLong et al. 1988: variance from the placement values of each class
    higher = scores[labels == 1][:, None] > scores[labels == 0][None]
    variance = higher.mean(axis=1).var(ddof=1) / higher.shape[0] + higher.mean(axis=0).var(ddof=1) / higher.shape[1]
    assert high - low == pytest.approx(2 * 1.96 * np.sqrt(variance), rel=0.1)


def grouped_set(rng, num_groups, size, share):
    """Groups of `size` cutouts that share a quarter of the scatter of their scores."""
    labels, groups = (rng.random(num_groups * size) < share).astype(int), np.repeat(np.arange(num_groups), size)
    scatter = 0.5 * rng.standard_normal(num_groups)[groups] + np.sqrt(0.75) * rng.standard_normal(len(labels))
    return labels, 1 / (1 + np.exp(1.5 - 3 * labels - 2 * scatter)), groups


@pytest.mark.slow
@pytest.mark.parametrize(
    ("num_groups", "size", "share", "metrics"),
    [
        (15, 6, 0.4, [Accuracy(), ROCAUC(), AveragePrecision(), BrierScore()]),
        (30, 1, 0.4, [Accuracy(), ROCAUC(), AveragePrecision(), BrierScore()]),
        (50, 6, 0.4, [Accuracy(), ROCAUC(), AveragePrecision(), BrierScore()]),
        (300, 1, 0.33, [ROCAUC(), Completeness(1e-2)]),
    ],
)
def test_intervals_cover_the_truth_in_95_of_100_sets(num_groups, size, share, metrics):
    """Percentiles cover 79 to 92 % with 15 and 30 groups. 600 sets tell the coverage to 1 %."""
    rng = np.random.default_rng(2)
    many = grouped_set(rng, 400_000, 1, share)[:2]
    truth = {metric.key: metric.value(*many) for metric in metrics}
    hits = {key: [] for key in truth}
    for seed in range(600):
        labels, scores, groups = grouped_set(rng, num_groups, size, share)
        if metrics[-1].refusal(labels, scores) is None:
            for key, (low, high) in bootstrap(metrics, labels, scores, groups, 300, seed).items():
                hits[key].append(low <= truth[key] <= high)
    for key, found in hits.items():
        assert 0.92 <= np.mean(found) <= 0.975, (key, np.mean(found))


def test_perfect_separation_of_few_cutouts_is_no_certainty():
    labels = np.repeat([1, 0], [10, 20])
    found = measure(labels, 0.1 + 0.8 * labels)
    assert found["roc_auc"]["value"] == 1 and found["roc_auc"]["high"] == 1
    assert 0.6 < found["roc_auc"]["low"] < 0.75  # Wilson's with 10 of 10: 0.70 and for Student's t less
    assert found["accuracy"]["low"] == found["roc_auc"]["low"]


def test_an_interval_that_covers_too_little_says_so():
    labels, scores = np.repeat([1, 0], [150, 150]), np.random.default_rng(0).random(300)
    found = measure(labels, scores, num_bootstrap=50)
    for key in ("completeness_at_fpr_1e-2", "purity_at_fpr_1e-2"):
        assert found[key]["note"].startswith("150 non-lenses place") and found[key]["note"].endswith(
            "at least 200 are needed"
        )
    assert "lies too high" in found["tpr0"]["note"] and "lies too high" in found["expected_calibration_error"]["note"]
    assert "note" not in found["roc_auc"] and "note" not in found["completeness_at_fpr_1e-3"]
    more = measure(np.append(labels, [0] * 50), np.append(scores, scores[:50]), num_bootstrap=50)
    assert "note" not in more["completeness_at_fpr_1e-2"]


def test_duplicated_cutouts_of_one_group_do_not_narrow_the_interval():
    labels, scores = toy_set(150)
    once = measure(labels, scores)["roc_auc"]
    groups = np.tile(np.arange(150), 4)
    grouped = measure(np.tile(labels, 4), np.tile(scores, 4), groups)["roc_auc"]
    naive = measure(np.tile(labels, 4), np.tile(scores, 4))["roc_auc"]
    width = {name: entry["high"] - entry["low"] for name, entry in (("once", once), ("g", grouped), ("n", naive))}
    assert grouped["value"] == pytest.approx(once["value"])
    assert width["g"] == pytest.approx(width["once"], rel=1e-6) and width["n"] < 0.6 * width["once"]


def test_ranking_measures_are_invariant_under_monotone_transforms():
    labels, scores = toy_set(400)
    before, after = (measure(labels, s, num_bootstrap=100) for s in (scores, scores**3))
    for key in ("roc_auc", "average_precision", "completeness_at_fpr_1e-2", "tpr0", "purity_at_fpr_1e-2"):
        assert before[key] == after[key]
    assert before["brier_score"] != after["brier_score"]


def test_draws_without_one_class_are_drawn_again():
    labels, scores = np.array([1, *[0] * 9]), np.linspace(0.9, 0.1, 10)
    low, high = bootstrap([ROCAUC()], labels, scores, np.arange(10))["roc_auc"]
    assert low < 0.1 and high == 1  # a draw without the only lens would be 0/0; and one lens tells next to nothing
    assert bootstrap([ROCAUC()], labels, scores, np.zeros(10, dtype=int)) == {}  # one group has no interval


def test_completeness_of_a_flat_roc_and_ties():
    labels, scores = np.repeat([1, 0], 200), np.full(400, 0.5)
    fpr, tpr, _ = roc_curve(labels, scores)
    assert tpr.tolist() == [0, 1] and fpr.tolist() == [0, 1]
    found = measure(labels, scores, num_bootstrap=0)
    assert found["completeness_at_fpr_1e-2"]["value"] == found["tpr0"]["value"] == 0
    assert found["roc_auc"]["value"] == 0.5 and found["roc_auc"]["low"] is None


@pytest.mark.parametrize(
    ("labels", "scores", "options", "sentence"),
    [
        ([1, 1], [0.5, 0.6], {}, "no non-lens among"),
        ([0, 0], [0.5, 0.6], {}, "no lens among"),
        ([1, -1], [0.5, 0.6], {}, "leave unlabelled cutouts out"),
        ([1, 0], [1.5, 0.6], {}, "probabilities between 0 and 1"),
        ([1, 0], [np.nan, 0.6], {}, "probabilities between 0 and 1"),
        ([1, 0], [0.5, 0.6], {"prevalence": 0}, "prevalence is 0"),
    ],
)
def test_bad_input(labels, scores, options, sentence):
    with pytest.raises(InputError, match=sentence):
        measure(labels, scores, **options)


def test_a_thousand_cutouts_take_less_than_five_seconds():
    labels, scores = toy_set(1000)
    start = time.perf_counter()
    measure(labels, scores, groups=np.arange(1000) // 2)
    assert time.perf_counter() - start < 5
