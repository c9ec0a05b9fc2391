import tracemalloc

import numpy as np
import pytest

from appssl.errors import DataError
from appssl.ops.images.semantic_duplicates import joined, near_duplicates, normalized


def clustered(num=300, dim=12, seed=0):
    """Random rows, a third of them noisy copies of others; any scale. Parts at random."""
    rng = np.random.default_rng(seed)
    rows = rng.normal(size=(num, dim))
    copies = rng.choice(num, num // 3, replace=False)
    rows[copies] = rows[rng.integers(0, num, len(copies))] + 0.1 * rng.normal(size=(len(copies), dim))
    return (rows * rng.uniform(0.1, 50, (num, 1))).astype(np.float32), rng.integers(0, 3, num)


def literally(rows, parts, threshold):
    """Every pair in float64, groups by following neighbours."""
    x = rows.astype(np.float64)
    num = len(x)
    cosine = np.array([[a @ b / np.sqrt((a @ a) * (b @ b)) for b in x] for a in x])
    near = [[j for j in range(num) if j != i and cosine[i, j] >= threshold] for i in range(num)]
    group = np.full(num, -1)
    for i in range(num):
        waiting = [i] if near[i] and group[i] < 0 else []
        while waiting:
            j = waiting.pop()
            if group[j] < 0:
                group[j] = i
                waiting += near[j]
    nearest = np.array([max(near[i], key=lambda j, i=i: cosine[i, j]) if near[i] else -1 for i in range(num)])
    similarity = np.array([cosine[i, nearest[i]] if near[i] else np.nan for i in range(num)])
    crosses = np.array([any(parts[j] != parts[i] for j in near[i]) for i in range(num)])
    return group, similarity, nearest, crosses


@pytest.mark.parametrize("block", [1, 7, 64, 1000])
@pytest.mark.parametrize("threshold", [0.6, 0.97])
def test_equals_all_pairs_in_float64(block, threshold):
    rows, parts = clustered()
    group, similarity, nearest, crosses = literally(rows, parts, threshold)
    found = near_duplicates(rows, parts, threshold=threshold, block=block)
    assert 0 < (group >= 0).sum() < len(rows)
    assert crosses.any()
    assert (found.group == group).all()
    np.testing.assert_allclose(found.similarity, similarity, atol=1e-6)
    assert (found.nearest == nearest).all()
    assert (found.crosses == crosses).all()


def test_a_worked_example():
    # Cosines along the chain are cos 9 degrees = 0.98769 and cos 11 degrees = 0.98163, of its ends cos 20 = 0.940.
    angles = np.deg2rad([0.0, 90.0, 9.0, 20.0])
    rows = np.stack([np.cos(angles), np.sin(angles)], axis=1)
    found = near_duplicates(rows, np.array([0, 0, 0, 1]), threshold=0.98)
    assert found.group.tolist() == [0, -1, 0, 0]
    assert found.similarity[[0, 2, 3]] == pytest.approx([0.98769, 0.98769, 0.98163], abs=1e-5)
    assert np.isnan(found.similarity[1])
    assert found.nearest.tolist() == [2, -1, 0, 2]
    assert found.crosses.tolist() == [False, False, True, True]  # row 0 is in the group, but not near to row 3


def test_scale_and_order_do_not_matter():
    rows, parts = clustered(120)
    order = np.random.default_rng(1).permutation(len(rows))
    one = near_duplicates(rows, parts, threshold=0.9)
    other = near_duplicates(1e20 * rows[order], parts[order], threshold=0.9, block=17)
    assert (one.crosses[order] == other.crosses).all()
    members = {frozenset(np.flatnonzero(one.group == g)) for g in set(one.group[one.group >= 0])}
    assert members == {frozenset(order[other.group == g]) for g in set(other.group[other.group >= 0])}


def test_equal_rows_are_one_group_and_zeros_are_like_nothing():
    rows = np.zeros((6, 3), np.float32)
    rows[2:] = [1, 2, 3]
    found = near_duplicates(rows, np.zeros(6, int), threshold=0.999999, block=4)
    assert found.group.tolist() == [-1, -1, 2, 2, 2, 2]
    assert found.nearest.tolist() == [-1, -1, 3, 2, 2, 2]
    assert not found.crosses.any()


@pytest.mark.parametrize("num", [0, 1])
def test_nothing_to_compare(num):
    found = near_duplicates(np.ones((num, 4)), np.zeros(num, int), threshold=0.5)
    assert found.group.tolist() == [-1] * num


def test_memory_does_not_grow_with_the_number_of_pairs():
    rows = np.ones((4000, 8), np.float32)  # eight million pairs: 128 MB as two int64 columns, 64 MB as similarities
    tracemalloc.start()
    found = near_duplicates(rows, np.zeros(len(rows), int), threshold=0.9, block=256)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert (found.group == 0).all()
    assert peak < 12e6


def test_joined_keeps_the_smallest_row_as_root():
    root = joined(np.arange(6), np.array([4, 2]), np.array([5, 4]))
    assert root.tolist() == [0, 1, 2, 3, 2, 2]
    assert joined(root, np.array([5]), np.array([1])).tolist() == [0, 1, 1, 3, 1, 1]


def test_normalized_neither_overflows_nor_changes_its_input():
    rows = np.array([[3e38, 3e38], [3e-38, 0.0], [0.0, 0.0]], np.float32)
    before = rows.copy()
    np.testing.assert_allclose(normalized(rows), [[0.5**0.5, 0.5**0.5], [1, 0], [0, 0]], rtol=1e-6)
    assert (rows == before).all()


def test_what_cannot_be_compared_is_refused():
    with pytest.raises(DataError, match="not finite"):
        near_duplicates(np.array([[np.nan, 1.0]]), np.zeros(1, int), threshold=0.9)
    for threshold in (0.0, 1.5):
        with pytest.raises(DataError, match="cosine threshold"):
            near_duplicates(np.ones((2, 2)), np.zeros(2, int), threshold=threshold)
