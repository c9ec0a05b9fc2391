"""Pure functions on interaction logs: k-core, splits in time, popularity slices."""

import numpy as np
import polars as pl


def k_core(events: pl.DataFrame, min_user: int, min_item: int) -> pl.DataFrame:
    """Largest part of the log in which every user has `min_user` events and every item `min_item`.

    Args:
        events: columns `user` and `item`. Rows keep their order.
    """
    while True:
        enough = (pl.len().over("user") >= min_user) & (pl.len().over("item") >= min_item)
        kept = events.filter(enough)
        if len(kept) == len(events):
            return kept
        events = kept


def time_cuts(timestamps: np.ndarray, train_share: float, val_share: float) -> tuple[int, int]:
    """Times (Unix seconds) at which validation and test begin, so that about the given shares lie before.

    Args:
        timestamps: (N,) int64, any order. Events at the same second are never divided.
    """
    ordered = np.sort(timestamps)
    position = [min(len(ordered) - 1, int(share * len(ordered))) for share in (train_share, train_share + val_share)]
    return int(ordered[position[0]]), int(ordered[position[1]])


def popularity_slices(counts: np.ndarray, head_share: float, middle_share: float) -> np.ndarray:
    """Slice (N,) str of every item by its count in training: head, middle, tail, cold.

    Items in falling order of count (ties by number) make up the head until `head_share` of all events is covered, then
    the middle until `head_share + middle_share`, then the tail. Items without an event are cold.
    """
    order = np.lexsort((np.arange(len(counts)), -counts))
    before = np.concatenate([[0.0], np.cumsum(counts[order])[:-1]]) / max(1, counts.sum())
    names = np.where(before < head_share, "head", np.where(before < head_share + middle_share, "middle", "tail"))
    slices = np.empty(len(counts), dtype=object)
    slices[order] = names
    slices[counts == 0] = "cold"
    return slices


def gini(counts: np.ndarray) -> float:
    """Gini coefficient of exposure, 0 for equal shares, towards 1 when one item gets all; NaN without exposure."""
    ordered = np.sort(np.asarray(counts, dtype=np.float64))
    total, number = ordered.sum(), len(ordered)
    if total == 0:
        return float("nan")
    return float((2 * np.arange(1, number + 1) - number - 1) @ ordered / (number * total))


def padded_histories(users: np.ndarray, items: np.ndarray, num_users: int, length: int) -> np.ndarray:
    """Last `length` items of every user, (num_users, length) int64, -1 where there are fewer.

    Args:
        users, items: (N,) int64 in order of time.
    """
    histories = np.full((num_users, length), -1, dtype=np.int64)
    order = np.argsort(users, kind="stable")
    sorted_users, sorted_items = users[order], items[order]
    starts = np.searchsorted(sorted_users, np.arange(num_users))
    ends = np.searchsorted(sorted_users, np.arange(num_users), side="right")
    rank = ends[sorted_users] - 1 - np.arange(len(sorted_users))  # 0 for the user's latest item
    kept = rank < length
    filled = np.minimum(ends - starts, length)
    column = filled[sorted_users] - 1 - rank
    histories[sorted_users[kept], column[kept]] = sorted_items[kept]
    return histories
