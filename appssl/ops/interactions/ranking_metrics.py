"""Recall, NDCG and MRR of the lists of many users at once, over all items and over slices of them."""

from collections.abc import Mapping

import numpy as np
from scipy import sparse

NUM_DECILES = 10


def popularity_deciles(counts: np.ndarray) -> np.ndarray:
    """Decile (N,) int64 of every item by its training events (N,) int64: 1 for the most popular, 10; 0 without events.

    Items stand in falling order of events, ties in the order of their numbers. An item belongs to the decile in which
    the events of all items before it end: each decile has about a tenth of the events, so the first has few items and
    the last has most. Where one item has more than a tenth, deciles after its own are empty.
    """
    order = np.lexsort((np.arange(len(counts)), -counts))
    before = np.cumsum(counts[order]) - counts[order]
    deciles = np.empty(len(counts), dtype=np.int64)
    deciles[order] = 1 + NUM_DECILES * before // max(1, counts.sum())
    return np.where(counts > 0, deciles, 0)


def user_metrics(
    relevant: sparse.csr_matrix, items: np.ndarray, slices: Mapping[str, np.ndarray]
) -> dict[str, np.ndarray]:
    """Metrics (U,) float64 of each user's list, in [0, 1], larger is better, NaN where a slice has no relevant item.

    With R the user's relevant items: recall = hits / |R|; ndcg has gain 1 and the ideal of min(k, |R|) hits; mrr = 1 /
    rank of the first hit. In a slice both hits and R are those of its items; ranks are still those of the whole list.

    Args:
        relevant: (U, num_items), entries other than 0 are R; each user has one or more.
        items: (U, k) int64 in falling order of score, -1 where a list is shorter.
        slices: name -> (num_items,) bool.
    Returns:
        num_relevant (int64), recall@k, ndcg@k, mrr@k, and recall@k_NAME, ndcg@k_NAME of every slice.
    """
    k = items.shape[1]
    hits = np.take_along_axis(relevant.toarray() != 0, np.maximum(items, 0), axis=1) & (items >= 0)
    is_relevant = relevant.astype(bool).astype(np.int64)
    discounts = 1 / np.log2(np.arange(2, k + 2))
    ideal = np.concatenate([[np.nan], np.cumsum(discounts)])

    def recall_and_ndcg(found: np.ndarray, number: np.ndarray, ending: str) -> dict[str, np.ndarray]:
        at_least_one = np.where(number > 0, number, np.nan)
        return {
            f"recall@{k}{ending}": found.sum(axis=1) / at_least_one,
            f"ndcg@{k}{ending}": found @ discounts / ideal[np.minimum(number, k)],
        }

    number = np.asarray(is_relevant.sum(axis=1)).ravel()
    metrics = {"num_relevant": number, **recall_and_ndcg(hits, number, "")}
    metrics[f"mrr@{k}"] = np.where(hits.any(axis=1), 1 / (hits.argmax(axis=1) + 1), 0.0)
    for name, members in slices.items():
        metrics |= recall_and_ndcg(hits & members[items], is_relevant @ members.astype(np.int64), f"_{name}")
    return metrics
