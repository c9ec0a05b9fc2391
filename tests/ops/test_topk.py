import numpy as np
import pytest

from appssl.ops.topk import best_items, seen_matrix, top_columns


def literal(values, k):
    rows = []
    for row in values:
        order = sorted((c for c in range(len(row)) if row[c] > -np.inf), key=lambda c: (-row[c], c))[:k]
        rows.append(order + [-1] * (k - len(order)))
    return rows


@pytest.mark.parametrize("k", [1, 3, 7, 12])
def test_equals_a_sort_with_ties_to_the_smaller_number(k):
    values = np.random.default_rng(0).integers(0, 4, (20, 9)).astype(np.float32)
    values[3] = -np.inf
    values[4, 2:] = -np.inf
    assert top_columns(values, k).tolist() == literal(values, k)


@pytest.mark.parametrize("block", [1, 4, 100])
def test_seen_items_are_left_out_whatever_the_block(block):
    rng = np.random.default_rng(1)
    scores = rng.random((10, 15)).astype(np.float32)
    users, items = rng.integers(0, 10, 40), rng.integers(0, 15, 40)
    seen = seen_matrix(users, items, 10, 15)
    masked = scores.copy()
    masked[users, items] = -np.inf
    found = np.concatenate([b for _, b in best_items(lambda u: scores[u], np.arange(10), seen, 5, block=block)])
    assert found.tolist() == literal(masked, 5)
