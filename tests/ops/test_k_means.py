import numpy as np
import pytest
from threadpoolctl import threadpool_limits

from appssl.errors import DataError
from appssl.ops.k_means import k_means


def blobs(num=300):
    rng = np.random.default_rng(0)
    own = np.arange(num) % 3
    return (10 * np.eye(3, 5))[own] + rng.normal(size=(num, 5)), own


def test_the_result_is_a_fixed_point_of_both_steps():
    features = np.random.default_rng(0).normal(size=(200, 4)).astype(np.float32)
    found = k_means(features, 6)
    distances = ((features[:, None] - found.centers[None]) ** 2).sum(axis=2)
    assert (distances.argmin(axis=1) == found.labels).all()
    for k in range(6):
        assert found.centers[k] == pytest.approx(
            features[found.labels == k].mean(axis=0), abs=0.05
        )  # scikit's tolerance


def test_blobs_are_told_apart():
    features, own = blobs()
    labels = k_means(features, 3).labels
    assert len({(a, b) for a, b in zip(own.tolist(), labels.tolist(), strict=True)}) == 3


def test_threads_do_not_change_it_and_the_seed_may():
    features = np.random.default_rng(0).normal(size=(3000, 8))
    with threadpool_limits(2):
        one, again = k_means(features, 20, max_steps=5), k_means(features, 20, max_steps=5)
    assert (one.labels == again.labels).all()
    assert (one.labels != k_means(features, 20, seed=1, max_steps=5).labels).any()


def test_every_row_can_be_a_cluster_of_its_own():
    features, _ = blobs(9)
    assert sorted(k_means(features, 9).labels.tolist()) == list(range(9))


def test_what_cannot_be_clustered_is_refused():
    with pytest.raises(DataError, match="4 clusters of 3 rows"):
        k_means(np.zeros((3, 2)), 4)
    with pytest.raises(DataError, match="not finite"):
        k_means(np.full((5, 2), np.nan), 2)
