"""Windows over a regular signal: where they start, what they touch, which label they have. Nothing is copied."""

import numpy as np


def window_starts(n: int, size: int, step: int) -> np.ndarray:
    """Starts (W,) int64 of all whole windows of `size` samples, every `step` samples, in a signal of `n` samples."""
    return np.arange(0, n - size + 1, step, dtype=np.int64)


def touches(mask: np.ndarray, starts: np.ndarray, size: int) -> np.ndarray:
    """(W,) bool: whether any of mask[start : start + size] is True. Cost linear in the length, whatever the overlap."""
    total = np.concatenate([[0], np.cumsum(mask, dtype=np.int64)])
    return total[starts + size] > total[starts]


def covered(starts: np.ndarray, size: int, n: int) -> np.ndarray:
    """(n,) bool: samples that lie in at least one window."""
    change = np.zeros(n + 1, np.int64)
    np.add.at(change, starts, 1)
    np.add.at(change, starts + size, -1)
    return np.cumsum(change[:-1]) > 0


def runs(mask: np.ndarray) -> list[tuple[int, int]]:
    """(begin, end) of each run of True, end not included."""
    edges = np.flatnonzero(np.diff(mask.astype(np.int8), prepend=0, append=0))
    return [(int(a), int(b)) for a, b in zip(edges[::2], edges[1::2], strict=True)]


def majority(codes: np.ndarray, starts: np.ndarray, size: int, num_classes: int) -> tuple[np.ndarray, np.ndarray]:
    """The most frequent class of each window.

    Args:
        codes: (n,) or (devices, n) integers, class of each sample, -1 where unlabelled; devices vote together.
    Returns:
        classes (W,) int64, -1 where no sample is labelled, the smaller number if two are equally frequent; and the share
        (W,) float64 of the window's samples, unlabelled ones included, that have this class.
    """
    codes = np.atleast_2d(codes)
    best = np.full(len(starts), -1, np.int64)
    most = np.zeros(len(starts), np.int64)
    for k in range(num_classes):
        total = np.concatenate([[0], np.cumsum((codes == k).sum(axis=0), dtype=np.int64)])
        count = total[starts + size] - total[starts]
        better = count > most
        best[better], most[better] = k, count[better]
    return best, most / (size * len(codes))
