"""The plane against Newton's method written out, and against scikit-learn's logistic regression."""

import numpy as np
import pytest
import torch
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import roc_auc_score

from appssl.ops.linear_separation import separate


def clouds(seed=0, size=300, share=0.25, distance=1.0, flipped=0.2, dims=6):
    """Features (N, D), the true group, and a guess that is wrong here and there."""
    rng = np.random.default_rng(seed)
    group = rng.random(size) < share
    features = rng.normal(1.0, 1.0, (size, dims)) + distance * np.outer(group, np.linspace(-1, 1, dims))
    return features * np.geomspace(0.5, 3, dims), group, group ^ (rng.random(size) < flipped)


def standardized(features):
    unit = features / np.linalg.norm(features, axis=1, keepdims=True)
    return (unit - unit.mean(0)) / unit.std(0)


def newton(features, guess, num_steps=30):
    """Values of the plane by Newton's method on the equation."""
    x = np.column_stack([standardized(features), np.ones(len(features))])
    z = guess.astype(float)
    weight = np.where(guess, 0.5 / guess.sum(), 0.5 / (~guess).sum())
    v = np.zeros(x.shape[1])
    for _ in range(num_steps):
        p = 1 / (1 + np.exp(-x @ v))
        gradient = x.T @ (weight * (p - z))
        hessian = (x * (weight * p * (1 - p))[:, None]).T @ x
        v -= np.linalg.solve(hessian, gradient)
    return x @ v


@pytest.mark.parametrize("seed", range(3))
def test_equals_newton_s_method_written_out(seed):
    features, _, guess = clouds(seed)
    # The gradient ends below 1e-7, which leaves values off by about that over the smallest curvature.
    np.testing.assert_allclose(separate(features, guess), newton(features, guess), atol=1e-5)


def test_agrees_with_a_balanced_unpenalized_logistic_regression():
    features, _, guess = clouds(5)
    theirs = LogisticRegression(C=np.inf, class_weight="balanced", max_iter=10_000, tol=1e-10)
    theirs.fit(standardized(features), guess)
    np.testing.assert_allclose(separate(features, guess), theirs.decision_function(standardized(features)), atol=1e-4)


def test_one_dimension_by_hand():
    """Rows (1, 0) and (0, 1), three of four of each as guessed: the odds of the groups there are 3 and 1/3."""
    features = np.repeat(np.eye(2), 4, axis=0)
    guess = np.array([False, False, False, True, True, True, True, False])
    found = separate(features, guess)
    np.testing.assert_allclose(found, np.repeat([-np.log(3), np.log(3)], 4), atol=1e-6)


def test_both_groups_weigh_the_same():
    """One odd sample in ten is outweighed without balance; with it the plane lies between the means."""
    rng = np.random.default_rng(0)
    features = np.column_stack([np.ones(1100), rng.normal(0, 1, 1100)])
    guess = np.arange(1100) < 100
    features[guess, 1] += 0.5
    positive = separate(features, guess) > 0
    assert positive[guess].mean() > 0.5
    assert positive[~guess].mean() < 0.5


def test_scale_of_rows_and_of_dimensions_does_not_matter():
    features, _, guess = clouds(1)
    expected = separate(features, guess)
    lengths = np.random.default_rng(2).uniform(0.1, 50, (len(features), 1))
    np.testing.assert_allclose(separate(features * lengths, guess), expected, atol=1e-5)
    torch_like = features.astype(np.float32)
    np.testing.assert_allclose(separate(torch_like, guess), expected, atol=1e-3)  # the input itself was rounded


def test_the_order_of_rows_does_not_matter_and_groups_can_be_swapped():
    features, _, guess = clouds(2)
    expected, order = separate(features, guess), np.random.default_rng(0).permutation(len(guess))
    np.testing.assert_allclose(separate(features[order], guess[order]), expected[order], atol=1e-5)
    np.testing.assert_allclose(separate(features, ~guess), -expected, atol=1e-5)


def test_it_corrects_a_guess_that_is_wrong_here_and_there():
    features, group, guess = clouds(3, size=2000, distance=3.0, flipped=0.2)
    found = separate(features, guess)
    assert roc_auc_score(group, guess) < 0.85
    assert roc_auc_score(group, found) > 0.98
    assert (found[group] > 0).mean() > 0.95 > 0.85 > guess[group].mean()


def test_a_guess_without_error_is_followed_and_stays_finite():
    features, group, _ = clouds(4, distance=30.0)
    found = separate(features, group)
    assert np.isfinite(found).all()
    assert ((found > 0) == group).all()


def test_more_dimensions_than_rows_and_equal_dimensions_are_finite():
    rng = np.random.default_rng(0)
    features = rng.normal(size=(20, 50))
    doubled = np.column_stack([features, features, np.zeros(20)])
    for values in (features, doubled):
        found = separate(values, np.arange(20) < 8)
        assert ((found > 0) == (np.arange(20) < 8)).all()


def test_works_where_gradients_are_switched_off_and_under_autocast():
    features, _, guess = clouds(6)
    expected = separate(features, guess)
    with torch.no_grad(), torch.autocast("cpu", dtype=torch.bfloat16):
        assert np.array_equal(separate(features, guess), expected)


@pytest.mark.parametrize(
    ("features", "guess"),
    [
        (np.random.default_rng(0).normal(size=(5, 3)), np.zeros(5, bool)),
        (np.random.default_rng(0).normal(size=(5, 3)), np.ones(5, bool)),
        (np.ones((5, 3)), np.arange(5) < 2),  # collapsed
        (np.zeros((5, 3)), np.arange(5) < 2),
        (np.full((5, 3), np.nan), np.arange(5) < 2),
        (np.zeros((5, 0)), np.arange(5) < 2),
    ],
)
def test_nothing_to_separate_is_none(features, guess):
    assert separate(features, guess) is None
