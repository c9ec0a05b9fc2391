import math

import numpy as np
import pytest
from scipy import sparse

from appssl.ops.interactions.ranking_metrics import NUM_DECILES, popularity_deciles, user_metrics


def literal(wanted, items, members, k):
    """Recall and NDCG of one list, of the items in `members` only; None without such an item."""
    relevant = [item for item in wanted if members[item]]
    if not relevant:
        return None, None
    hits = [item in relevant for item in items]
    ideal = sum(1 / math.log2(rank + 2) for rank in range(min(k, len(relevant))))
    return sum(hits) / len(relevant), sum(hit / math.log2(rank + 2) for rank, hit in enumerate(hits)) / ideal


@pytest.mark.parametrize("k", [1, 3, 8])
def test_equals_the_definitions_written_out_for_every_user_and_slice(k):
    rng = np.random.default_rng(0)
    relevant = rng.random((30, 12)) < 0.2
    relevant[:, 4] |= ~relevant.any(axis=1)
    items = np.stack([rng.permutation(12)[:k] for _ in range(30)])
    items[5, k // 2 :] = -1
    slices = {"a": np.arange(12) < 3, "b": np.arange(12) % 5 == 4, "none": np.zeros(12, dtype=bool)}
    found = user_metrics(sparse.csr_matrix(relevant * 2.0), items, slices)
    for user in range(30):
        wanted, shown = np.flatnonzero(relevant[user]).tolist(), items[user].tolist()
        for ending, members in {"": np.ones(12, dtype=bool), **{f"_{n}": m for n, m in slices.items()}}.items():
            for name, expected in zip(("recall", "ndcg"), literal(wanted, shown, members, k), strict=True):
                value = found[f"{name}@{k}{ending}"][user]
                assert math.isnan(value) if expected is None else value == pytest.approx(expected)
        first = next((1 / rank for rank, item in enumerate(shown, 1) if item in wanted), 0.0)
        assert found[f"mrr@{k}"][user] == first
        assert found["num_relevant"][user] == len(wanted)


def test_a_worked_example():
    relevant = sparse.csr_matrix(np.array([[1, 0, 1, 1]]))
    found = user_metrics(relevant, np.array([[1, 2]]), {"last": np.array([False, False, False, True])})
    assert found["recall@2"] == [1 / 3]
    assert found["mrr@2"] == [1 / 2]
    assert found["ndcg@2"] == pytest.approx((1 / math.log2(3)) / (1 + 1 / math.log2(3)))
    assert found["recall@2_last"] == found["ndcg@2_last"] == [0.0]


def deciles_literal(counts):
    """Item by item: where, in tenths of all events, those of the items before it end."""
    found, before = [0] * len(counts), 0
    for item in sorted(range(len(counts)), key=lambda item: (-counts[item], item)):
        if counts[item]:
            found[item] = before * 10 // sum(counts) + 1
        before += counts[item]
    return found


@pytest.mark.parametrize("seed", range(5))
def test_deciles_equal_the_definition_written_out(seed):
    counts = np.random.default_rng(seed).zipf(1.5, 200).clip(max=500) - 1
    assert popularity_deciles(counts).tolist() == deciles_literal(counts.tolist())


def test_each_decile_has_a_tenth_of_the_events_where_no_item_is_large():
    counts = np.random.default_rng(0).integers(1, 50, 3000)
    deciles = popularity_deciles(counts)
    shares = np.bincount(deciles, counts, minlength=NUM_DECILES + 1)[1:] / counts.sum()
    assert shares == pytest.approx(0.1, abs=counts.max() / counts.sum())
    order = np.lexsort((np.arange(3000), -counts))
    assert (np.diff(deciles[order]) >= 0).all()


def test_ties_go_by_number_and_items_without_events_have_no_decile():
    assert popularity_deciles(np.array([1] * 10)).tolist() == list(range(1, 11))
    assert popularity_deciles(np.array([0, 1, 0, 1])).tolist() == [0, 1, 0, 6]
    assert popularity_deciles(np.zeros(3, dtype=np.int64)).tolist() == [0, 0, 0]


def test_an_item_with_more_than_a_tenth_leaves_deciles_empty():
    assert popularity_deciles(np.array([1, 7, 1, 1])).tolist() == [8, 1, 9, 10]
