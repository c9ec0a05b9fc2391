"""Windows of fixed length over samples of a common clock: where they start, why some are left out, their label."""

from collections.abc import Sequence

import numpy as np
from numpy.lib.stride_tricks import sliding_window_view

from appssl.ops.signals.resample import GAP, MISSING, NAN, NON_WEAR, OK, SATURATED
from appssl.ops.signals.sample_store import slices

REASONS = {MISSING: "missing_device", GAP: "gap", NAN: "nan", NON_WEAR: "non_wear", SATURATED: "saturated"}
_TURNED = 1 << 16  # numbers of windows that are turned round at once
_MIXED = 1 << 18  # samples of windows with several labels that are counted at once


def lengths(window_seconds: float, overlap: float, hz: float) -> tuple[int, int]:
    """Samples per window, and samples from one start to the next; at least 1 each."""
    size = max(1, round(window_seconds * hz))
    return size, max(1, round(size * (1 - overlap)))


def starts(num_samples: int, size: int, step: int, *, anchor: int = 0) -> np.ndarray:
    """(W,) int64 first samples of all windows that lie within 0..num_samples, such that one begins at `anchor`."""
    return np.arange(anchor % step, num_samples - size + 1, step, dtype=np.int64)


def _spans(first: np.ndarray, size: int, length: int) -> np.ndarray:
    """Edges of windows for `reduceat`, whose results are then every second one."""
    edges = np.column_stack([first, first + size]).ravel()
    return edges[:-1] if len(edges) and edges[-1] == length else edges  # what has no end goes on to that of the array


def gravest(codes: np.ndarray, first: np.ndarray, size: int) -> np.ndarray:
    """(W, devices) uint8: the gravest code (L, devices) of `ops.resample` within each window; OK if it can be used."""
    found = np.full((len(first), codes.shape[1]), OK, np.uint8)
    if len(first):
        edges = _spans(first, size, len(codes))
        for d in range(codes.shape[1]):
            found[:, d] = np.maximum.reduceat(codes[:, d], edges)[::2]
    return found


def left_out(
    codes: np.ndarray, first: np.ndarray, worst: np.ndarray, size: int, *, min_devices: int
) -> list[tuple[str, dict[int, int]] | None]:
    """Why each window is left out, or None.

    Args:
        codes: (L, devices) uint8 of `ops.resample`. worst: (W, devices) as of `gravest`. min_devices: devices that can
            be used throughout, which a window needs.
    Returns:
        Per window the gravest reason of any device, and {device: samples that have it}.
    """
    enough = (worst == OK).sum(axis=1) >= min_devices
    result: list[tuple[str, dict[int, int]] | None] = [None] * len(first)
    for w in np.flatnonzero(~enough):
        code = int(worst[w].max())
        window = codes[first[w] : first[w] + size] == code
        result[w] = (REASONS[code], {int(d): int(window[:, d].sum()) for d in np.flatnonzero(worst[w] == code)})
    return result


def gathered(signal: np.ndarray, first: np.ndarray, size: int) -> np.ndarray:
    """Windows (B, columns, size) of a signal (L, columns) from first samples (B,) on, with time last.

    Windows are copied as they lie, some at a time, and turned round while the cache holds them.
    """
    columns = signal.shape[1]
    found = np.empty((len(first), columns, size), signal.dtype)
    if len(first):
        whole = sliding_window_view(signal.reshape(-1), size * columns)
        for a, b in slices(len(first), max(1, _TURNED // (size * columns))):
            found[a:b] = whole[first[a:b] * columns].reshape(-1, size, columns).transpose(0, 2, 1)
    return found


def device_bits(usable: np.ndarray) -> np.ndarray:
    """(W,) int64 with bit d set where device d is usable, of flags (W, devices) bool, at most 63 devices."""
    return usable @ (np.int64(1) << np.arange(usable.shape[1], dtype=np.int64))


def devices_of_bits(bits: np.ndarray, num_devices: int) -> np.ndarray:
    """(W, devices) bool of numbers (W,) int64 made by `device_bits`."""
    return (bits[:, None] >> np.arange(num_devices) & 1).astype(bool)


def label_type(count: int) -> np.dtype:
    """Smallest type of integers that holds -1 and the numbers of `count` labels."""
    return np.min_scalar_type(-max(count, 1))


def majority(
    labels: np.ndarray, first: np.ndarray, size: int, names: Sequence[str], purity: float
) -> tuple[list[str | None], np.ndarray]:
    """Label of each window, and the share of its samples that have it.

    Args:
        labels: (L,) integer number in `names`, -1 without label. purity: share from which a window has the label;
            below, it has none. Of two equally frequent labels the first in `names` counts.
    """
    if not len(names) or not len(first):
        return [None] * len(first), np.zeros(len(first))
    edges = _spans(first, size, len(labels))
    lowest, best = (fold.reduceat(labels, edges)[::2].astype(np.int64) for fold in (np.minimum, np.maximum))
    largest = (best >= 0).astype(np.float64)
    mixed = np.flatnonzero(lowest != best)  # most windows have one label throughout
    for a, b in slices(len(mixed), max(1, _MIXED // size)):
        own = mixed[a:b]
        number = labels[first[own, None] + np.arange(size)].astype(np.int64) + 1
        place = np.arange(len(own))[:, None] * (len(names) + 1) + number
        count = np.bincount(place.ravel(), minlength=len(own) * (len(names) + 1)).reshape(len(own), -1)[:, 1:]
        best[own], largest[own] = count.argmax(axis=1), count.max(axis=1) / size
    return [names[k] if s > 0 and s >= purity else None for k, s in zip(best.tolist(), largest, strict=True)], largest


def label_ticks(start: np.ndarray, end: np.ndarray, number: Sequence[int], num_samples: int, hz: float) -> np.ndarray:
    """(num_samples,) labels of ticks i / hz with start <= i / hz < end, -1 elsewhere."""
    labels = np.full(num_samples, -1, label_type(max(number, default=0) + 1))
    low = np.clip(np.ceil(np.round(start * hz, 6)), 0, num_samples).astype(np.int64)
    high = np.clip(np.ceil(np.round(end * hz, 6)), 0, num_samples).astype(np.int64)
    for a, b, k in zip(low, high, number, strict=True):
        labels[a:b] = k
    return labels
