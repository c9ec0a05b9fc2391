import sys

import numpy as np
import pytest

from appssl.errors import SettingsError
from appssl.ops.interactions import vector_index
from appssl.ops.interactions.vector_index import K, build_index

faiss = pytest.importorskip("faiss", reason="NOT TESTED: the extra recsys is not installed")


def vectors(num_items=900, num_users=70, width=12, clusters=30, seed=0):
    """Items around cluster centers, as those of a trained model are, and users near them; unit vectors."""
    rng = np.random.default_rng(seed)
    centers = rng.standard_normal((clusters, width))
    found = [
        centers[rng.integers(0, clusters, n)] + 0.3 * rng.standard_normal((n, width)) for n in (num_items, num_users)
    ]
    return [(v / np.linalg.norm(v, axis=1, keepdims=True)).astype(np.float32) for v in found]


def opened(index):
    return faiss.deserialize_index(np.frombuffer(index.content, dtype=np.uint8))


def exact(items, users, k):
    return np.argsort(-(users.astype(np.float64) @ items.astype(np.float64).T), axis=1, kind="stable")[:, :k]


def test_a_flat_index_returns_what_exact_scoring_does():
    items, users = vectors()
    built = build_index(items, users)
    scores, found = opened(built).search(users, 7)
    assert found.tolist() == exact(items, users, 7).tolist()
    np.testing.assert_allclose(scores, np.take_along_axis(users @ items.T, found, axis=1), rtol=1e-5)
    assert built.facts["kind"] == "flat"
    assert built.facts["exact"]
    assert (built.facts["num_vectors"], built.facts["width"]) == (900, 12)


@pytest.fixture
def approximate(monkeypatch):
    monkeypatch.setattr(vector_index, "EXACT_UP_TO", 500)


def test_a_larger_catalogue_gets_lists_and_the_recall_that_is_stated(approximate):
    items, users = vectors(num_items=6000)
    built = build_index(items, users)
    index = opened(built)
    found = index.search(users, K)[1]
    recall = np.mean([len(set(f) & set(e)) / K for f, e in zip(found, exact(items, users, K), strict=True)])
    assert built.facts["kind"] == "ivf_flat"
    assert built.facts["recall@20"] == pytest.approx(recall)
    assert recall >= vector_index.RECALL_GOAL
    assert index.nprobe == built.facts["probed"] < built.facts["num_lists"]
    index.nprobe = built.facts["probed"] // 2  # half as many lists were not enough
    fewer = index.search(users, K)[1]
    assert np.mean([len(set(f) & set(e)) / K for f, e in zip(fewer, exact(items, users, K), strict=True)]) < 0.95


def test_every_vector_of_a_larger_catalogue_is_in_its_row(approximate):
    items, users = vectors(num_items=2500)
    index = opened(build_index(items, users))
    index.nprobe = index.nlist
    assert index.search(items[:100], 1)[1].ravel().tolist() == list(range(100))  # the nearest to itself is itself


def test_recall_is_measured_on_users_from_everywhere(approximate, monkeypatch):
    monkeypatch.setattr(vector_index, "_QUERIES", 20)
    items, users = vectors(num_items=2500)
    facts = build_index(items, users).facts
    assert facts["num_queries"] == len(users[::4]) == 18


def test_without_the_package_it_says_which_extra_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "faiss", None)
    with pytest.raises(SettingsError, match=r"needs the package faiss: pip install 'appssl\[recsys\]'"):
        build_index(*vectors())
