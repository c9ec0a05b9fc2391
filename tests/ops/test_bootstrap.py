"""Every vectorised statistic against the same thing written as loops over drawn groups."""

import numpy as np
import pytest
from sklearn.metrics import roc_auc_score

from appssl.errors import DataError
from appssl.ops import bootstrap as boot
from appssl.ops import metrics


def drawn_rows(codes: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """Row numbers of a resample: the rows of each group, as often as the group was drawn."""
    rows = [np.flatnonzero(codes == g) for g in range(len(weights)) for _ in range(int(weights[g]))]
    return np.concatenate(rows)


def literal(function, codes: np.ndarray, num_groups: int, *, num: int, seed: int) -> tuple[float, float, float]:
    """Bootstrap as a loop: `function(rows)` on all rows, and quantiles over the resamples."""
    drawn = boot.resamples(num_groups, num=num, seed=seed, block=1)
    values = [function(drawn_rows(codes, weights[0])) for weights in drawn]
    return function(np.arange(len(codes))), np.quantile(values, 0.025), np.quantile(values, 0.975)


@pytest.fixture
def problem():
    rng = np.random.default_rng(0)
    groups = np.array([f"p{g}" for g in rng.integers(0, 12, 90)])
    target = rng.integers(0, 3, 90)
    scores = np.round(rng.random((90, 3)) + np.eye(3)[target], 1) + 0.05  # rounded, so that there are ties
    return groups, target, scores / scores.sum(1, keepdims=True)


def test_mean_equals_loop_over_drawn_groups(problem):
    groups, _, scores = problem
    codes, num_groups = boot.group_codes(groups)
    expected = literal(lambda rows: scores[rows, 0].mean(), codes, num_groups, num=150, seed=3)
    assert boot.bootstrap_mean(scores[:, 0], groups, num=150, seed=3) == pytest.approx(expected, abs=1e-12)


def test_mean_worked_number():
    value, low, high = boot.bootstrap_mean(np.array([1.0, 1, 1, 0]), np.array(["a", "a", "a", "b"]), num=400, seed=0)
    assert value == 0.75  # ratio of sums: the rows count, not the means of groups
    assert (low, high) == (0.0, 1.0)  # drawing (a, a) or (b, b) has probability 1/2


def test_several_means_equal_single_means_and_undefined_rows_are_left_out():
    rng = np.random.default_rng(1)
    groups, recall, tail = rng.integers(0, 9, 40), rng.random(40), rng.random(40)
    tail[::3] = np.nan
    both = boot.bootstrap_means({"recall": recall, "tail": tail}, groups, num=200, seed=5)
    assert both["recall"] == boot.bootstrap_mean(recall, groups, num=200, seed=5)
    assert both["tail"].value == pytest.approx(np.nanmean(tail))


def test_confusion_metrics_equal_loop(problem):
    groups, target, scores = problem
    codes, num_groups = boot.group_codes(groups)
    prediction = scores.argmax(1)
    statistic = metrics.confusion_statistic(target, prediction, codes, num_groups, 3)
    found = boot.bootstrap(statistic, num_groups, num=100, seed=2)
    accuracy = literal(lambda rows: (target[rows] == prediction[rows]).mean(), codes, num_groups, num=100, seed=2)
    balanced = literal(lambda rows: balanced_loop(target[rows], prediction[rows]), codes, num_groups, num=100, seed=2)
    f1 = literal(lambda rows: f1_loop(target[rows], prediction[rows]), codes, num_groups, num=100, seed=2)
    assert found["accuracy"] == pytest.approx(accuracy)
    assert found["balanced_accuracy"] == pytest.approx(balanced)
    assert found["macro_f1"] == pytest.approx(f1)


def balanced_loop(target, prediction):
    return np.mean([(prediction[target == k] == k).mean() for k in range(3) if (target == k).any()])


def f1_loop(target, prediction):
    values = []
    for k in range(3):
        tp = ((target == k) & (prediction == k)).sum()
        wrong = ((target == k) != (prediction == k)).sum()
        if tp + wrong:
            values.append(2 * tp / (2 * tp + wrong))
    return np.mean(values)


def test_dense_and_sparse_sums_agree(problem):
    groups, target, scores = problem
    codes, num_groups = boot.group_codes(groups)
    sparse = metrics.confusion_per_group(target, scores.argmax(1), codes, num_groups, 3)
    dense = sparse.toarray().reshape(num_groups, 3, 3)
    one = boot.bootstrap_statistic(dense, metrics.confusion_metrics, num=50, seed=0)
    other = boot.bootstrap_statistic(
        sparse, lambda sums: metrics.confusion_metrics(sums.reshape(-1, 3, 3)), num=50, seed=0
    )
    assert one == other


def test_auroc_equals_count_of_pairs_with_ties(problem):
    groups, target, scores = problem
    codes, num_groups = boot.group_codes(groups)

    def pairs(rows: np.ndarray) -> float:
        up, down = scores[rows][target[rows] == 1, 1], scores[rows][target[rows] != 1, 1]
        return np.mean([(a > b) + 0.5 * (a == b) for a in up for b in down])

    statistic = metrics.auroc_statistic(scores[:, 1], target == 1, codes, num_groups)
    found = boot.bootstrap(statistic, num_groups, num=30, seed=1)["auroc"]
    assert found == pytest.approx(literal(pairs, codes, num_groups, num=30, seed=1))


def test_macro_auroc_equals_scikit_learn_in_every_resample(problem):
    groups, target, scores = problem
    codes, num_groups = boot.group_codes(groups)

    def macro(rows: np.ndarray) -> float:
        return float(roc_auc_score(target[rows], scores[rows], multi_class="ovr", average="macro"))

    statistic = metrics.macro_auroc_statistic(scores, target, codes, num_groups)
    found = boot.bootstrap(statistic, num_groups, num=60, seed=1)["auroc"]
    assert found == pytest.approx(literal(macro, codes, num_groups, num=60, seed=1))


def test_absent_class_is_left_out_of_macro_auroc():
    target, codes = np.array([0, 0, 1, 1]), np.arange(4)
    scores = np.array([[0.6, 0.3, 0.1], [0.2, 0.5, 0.3], [0.3, 0.4, 0.3], [0.1, 0.8, 0.1]])
    value = metrics.macro_auroc_statistic(scores, target, codes, 4)(np.ones((1, 4)))["auroc"][0]
    # class 0: of 4 pairs 3 in order; class 1: 0.4 > 0.3, 0.4 < 0.5, 0.8 > both, so 3 of 4; class 2 is absent
    assert value == pytest.approx(0.75)


def test_auroc_is_undefined_with_one_class():
    statistic = metrics.auroc_statistic(np.array([0.1, 0.2]), np.array([True, True]), np.array([0, 1]), 2)
    assert np.isnan(boot.bootstrap(statistic, 2, num=10, seed=0)["auroc"].value)


def test_calibration_error_equals_loop_over_bins(problem):
    groups, target, scores = problem
    codes, num_groups = boot.group_codes(groups)
    confidence, correct = scores.max(1), (scores.argmax(1) == target).astype(float)

    def error(rows: np.ndarray) -> float:
        total = 0.0
        for b in range(15):
            inside = rows[(confidence[rows] > b / 15) & (confidence[rows] <= (b + 1) / 15)]
            if len(inside):
                total += len(inside) / len(rows) * abs(correct[inside].mean() - confidence[inside].mean())
        return total

    statistic = metrics.calibration_statistic(confidence, correct, codes, num_groups)
    found = boot.bootstrap(statistic, num_groups, num=80, seed=4)["calibration_error"]
    assert found == pytest.approx(literal(error, codes, num_groups, num=80, seed=4))


def test_paired_difference_uses_the_same_resamples(problem):
    groups, target, scores = problem
    codes, num_groups = boot.group_codes(groups)
    first = (scores.argmax(1) == target).astype(float)
    second = (np.arange(90) % 3 == target).astype(float)
    expected = literal(lambda rows: first[rows].mean() - second[rows].mean(), codes, num_groups, num=100, seed=7)
    assert boot.paired_mean(first, second, groups, num=100, seed=7) == pytest.approx(expected)
    one = metrics.confusion_statistic(target, scores.argmax(1), codes, num_groups, 3)
    two = metrics.confusion_statistic(target, np.arange(90) % 3, codes, num_groups, 3)
    found = boot.bootstrap(boot.difference(one, two), num_groups, num=100, seed=7)
    assert found["accuracy"] == pytest.approx(expected)


def test_a_system_does_not_differ_from_itself():
    values = np.random.default_rng(0).random(30)
    assert boot.paired_mean(values, values, np.arange(30), num=50, seed=0) == (0.0, 0.0, 0.0)


def test_interval_depends_on_seed_only_not_on_block_size(monkeypatch):
    values, groups = np.random.default_rng(0).random(50), np.arange(50) % 11
    whole = boot.bootstrap_mean(values, groups, num=300, seed=1)
    assert boot.bootstrap_mean(values, groups, num=300, seed=2) != whole
    monkeypatch.setattr(boot, "BLOCK_ELEMENTS", 70)
    assert boot.bootstrap_mean(values, groups, num=300, seed=1) == pytest.approx(whole, abs=1e-12)


def test_interval_covers_the_truth_as_often_as_normal_theory_with_the_true_variance():
    """40 groups of 5 that share an effect; the percentile interval is known to be slightly short at 40 groups."""
    rng = np.random.default_rng(0)
    groups, num_trials = np.arange(200) // 5, 1000
    held = theory = 0
    for trial in range(num_trials):
        values = rng.standard_normal(40).repeat(5) + rng.standard_normal(200)
        mean, low, high = boot.bootstrap_mean(values, groups, num=300, seed=trial)
        held += low <= 0 <= high
        theory += abs(mean) <= 1.96 * np.sqrt((1 + 1 / 5) / 40)
    assert theory - 0.03 * num_trials < held < theory + 0.03 * num_trials


def test_one_group_has_no_interval():
    assert boot.bootstrap_mean(np.array([1.0, 3.0]), np.array(["a", "a"]), num=10, seed=0) == (2.0, None, None)


def test_no_rows_is_an_error():
    with pytest.raises(DataError, match="no rows"):
        boot.bootstrap_mean(np.zeros(0), np.zeros(0), num=10, seed=0)


def test_paired_mean_of_different_lengths_is_an_error():
    with pytest.raises(DataError, match="2 and 3"):
        boot.paired_mean(np.zeros(2), np.zeros(3), np.zeros(2), num=10, seed=0)
