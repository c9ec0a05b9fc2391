"""The linear classifier on embeddings."""

import numpy as np
import polars as pl
import pytest
from sklearn.linear_model import LogisticRegression

from appssl.errors import DataError
from appssl.ops.linear import embedding_matrix, fit_linear, standardization


def clouds(num=300, dimensions=5, classes=3, seed=0, spread=1.5):
    rng = np.random.default_rng(seed)
    centers = rng.normal(0, 2, (classes, dimensions))
    target = np.arange(num) % classes
    return (centers[target] + rng.normal(0, spread, (num, dimensions))).astype(np.float32), target


def test_equals_scikit_learn_at_the_same_penalty():
    features, target = clouds()
    mean, scale = standardization(features)
    peer = LogisticRegression(C=1 / (len(target) * 0.05), tol=1e-8, max_iter=5000)
    peer.fit((features - mean).astype(np.float64) * scale, target)
    own = fit_linear(features, target, 3, l2=0.05)
    # Ours stops at a gradient of 1e-5 in float32.
    np.testing.assert_allclose(own.weight, peer.coef_.T, atol=2e-3)
    expected = peer.predict_proba((features - mean).astype(np.float64) * scale)
    np.testing.assert_allclose(own.probabilities(features), expected, atol=2e-3)


def test_a_weight_of_two_equals_the_row_twice():
    features, target = clouds(60)
    mean_weight = np.ones(60)
    twice = np.concatenate([features, features[:20]]), np.concatenate([target, target[:20]])
    mean_weight[:20] = 2
    one = fit_linear(features, target, 3, weight=mean_weight)
    other = fit_linear(*twice, 3)
    # Standardization counts rows, so the two see slightly different features; the decision is the same.
    assert (one.probabilities(features).argmax(1) == other.probabilities(features).argmax(1)).mean() > 0.95


def test_rows_of_weight_zero_do_not_matter():
    features, target = clouds(60)
    weight = np.ones(60)
    weight[:20] = 0
    changed = target.copy()
    changed[:20] = (changed[:20] + 1) % 3
    one, other = (fit_linear(features, t, 3, weight=weight) for t in (target, changed))
    assert one.digest == other.digest


def test_probabilities_sum_to_one_and_scale_does_not_matter():
    features, target = clouds()
    one = fit_linear(features, target, 3)
    other = fit_linear(features * 1000 + 5, target, 3)
    np.testing.assert_allclose(one.probabilities(features).sum(axis=1), 1)
    np.testing.assert_allclose(one.probabilities(features), other.probabilities(features * 1000 + 5), atol=5e-3)


def test_same_rows_give_the_same_digest_and_other_rows_another():
    features, target = clouds()
    assert fit_linear(features, target, 3).digest == fit_linear(features, target, 3).digest
    assert fit_linear(features, target, 3).digest != fit_linear(features[:-1], target[:-1], 3).digest


def test_a_feature_that_does_not_vary_has_no_say():
    features, target = clouds()
    features[:, 2] = 7
    assert standardization(features)[1][2] == 0
    moved = features.copy()
    moved[:, 2] = 1e6
    model = fit_linear(features, target, 3)
    assert (model.probabilities(features) == model.probabilities(moved)).all()


def test_a_class_without_rows_gets_small_probabilities():
    features, target = clouds()
    assert fit_linear(features, target, 4).probabilities(features)[:, 3].max() < 0.05


def test_no_rows_are_refused():
    with pytest.raises(DataError, match="at least one labelled row"):
        fit_linear(np.zeros((0, 3), np.float32), np.zeros(0, np.int64), 2)


def test_embeddings_are_read_from_arrays_and_lists():
    values = np.arange(6, dtype=np.float32).reshape(2, 3)
    for kind in (pl.Array(pl.Float32, 3), pl.List(pl.Float32)):
        assert (embedding_matrix(pl.Series(values.tolist(), dtype=kind)) == values).all()


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ([[1.0, 2.0], [3.0]], "different lengths"),
        ([[1.0, 2.0], [float("nan"), 1.0]], "not finite, the first in row 1"),
        ([[1.0, 2.0], [1.0, 2.0], [1.0, 2.0]], "collapsed"),
    ],
)
def test_unusable_embeddings_are_refused(rows, message):
    with pytest.raises(DataError, match=message):
        embedding_matrix(pl.Series(rows, dtype=pl.List(pl.Float32)))


def test_the_number_of_threads_does_not_change_the_result():
    import torch

    features, target = clouds(2000, 40)
    before, digests = torch.get_num_threads(), set()
    for threads in (1, 2):
        torch.set_num_threads(threads)
        digests.add(fit_linear(features, target, 3).digest)
        assert torch.get_num_threads() == threads
    torch.set_num_threads(before)
    assert len(digests) == 1
