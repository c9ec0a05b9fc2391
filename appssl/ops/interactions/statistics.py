"""Pure functions on interaction logs: order statistics, splits in time, popularity slices."""

from collections.abc import Callable, Iterable, Sequence

import numpy as np

_COUNTERS = 16  # bits: so many counters at once


def counted(blocks: Callable[[], Iterable[np.ndarray]], positions: Sequence[int]) -> list[int]:
    """Values at positions of the sorted whole, found by counting: memory does not grow with the number of values.

    Args:
        blocks: called for every pass; blocks (N,) int64 of values, in any order. positions: 0 is the smallest value.
    """
    ends = [(int(block.min()), int(block.max())) for block in blocks() if len(block)]
    low, high = min(low for low, _ in ends), max(high for _, high in ends)
    found = {position: _counted(blocks, position, low, high) for position in set(positions)}
    return [found[position] for position in positions]


def _counted(blocks: Callable[[], Iterable[np.ndarray]], position: int, low: int, high: int) -> int:
    while high > low:
        shift = max(0, (high - low).bit_length() - _COUNTERS)
        counts = np.zeros(((high - low) >> shift) + 1, dtype=np.int64)
        for block in blocks():
            inside = block[(block >= low) & (block <= high)]
            counts += np.bincount((inside - low) >> shift, minlength=len(counts))
        bin_ = int(np.searchsorted(np.cumsum(counts), position, side="right"))
        position -= int(counts[:bin_].sum())
        low, high = low + (bin_ << shift), min(high, low + ((bin_ + 1) << shift) - 1)
    return low


def time_cuts(timestamps: np.ndarray, train_share: float, val_share: float) -> tuple[int, int]:
    """Times (Unix seconds) at which validation and test begin, so that about the given shares lie before.

    Args:
        timestamps: (N,) int64, sorted. Events at the same second are never divided.
    """
    last = len(timestamps) - 1
    first, second = (min(last, int(share * len(timestamps))) for share in (train_share, train_share + val_share))
    return int(timestamps[first]), int(timestamps[second])


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
