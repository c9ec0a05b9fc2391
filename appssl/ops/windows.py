"""Windows of fixed length over samples of a common clock: where they start, why some are left out, their label."""

from collections.abc import Sequence

import numpy as np

from appssl.ops.resample import GAP, MISSING, NAN, NON_WEAR, OK, SATURATED

REASONS = {MISSING: "missing_device", GAP: "gap", NAN: "nan", NON_WEAR: "non_wear", SATURATED: "saturated"}


def lengths(window_seconds: float, overlap: float, hz: float) -> tuple[int, int]:
    """Samples per window, and samples from one start to the next; at least 1 each."""
    size = max(1, round(window_seconds * hz))
    return size, max(1, round(size * (1 - overlap)))


def starts(num_samples: int, size: int, step: int, *, anchor: int = 0) -> np.ndarray:
    """(W,) int64 first samples of all windows that lie within 0..num_samples, such that one begins at `anchor`."""
    return np.arange(anchor % step, num_samples - size + 1, step, dtype=np.int64)


def counts(flags: np.ndarray, first: np.ndarray, size: int) -> np.ndarray:
    """(W, ...) int64: how many of the `size` samples from each start are set, of flags (L, ...) bool."""
    total = np.zeros((len(flags) + 1, *flags.shape[1:]), np.int64)
    np.cumsum(flags, axis=0, out=total[1:])
    return total[first + size] - total[first]


def gravest(codes: np.ndarray, first: np.ndarray, size: int) -> np.ndarray:
    """(W, devices) uint8: the gravest code (L, devices) of `ops.resample` within each window; OK if it can be used."""
    found = np.full((len(first), codes.shape[1]), OK, np.uint8)
    for code in sorted(REASONS):
        found[counts(codes == code, first, size) > 0] = code
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


def device_bits(usable: np.ndarray) -> np.ndarray:
    """(W,) int64 with bit d set where device d is usable, of flags (W, devices) bool, at most 63 devices."""
    return usable @ (np.int64(1) << np.arange(usable.shape[1], dtype=np.int64))


def devices_of_bits(bits: np.ndarray, num_devices: int) -> np.ndarray:
    """(W, devices) bool of numbers (W,) int64 made by `device_bits`."""
    return (bits[:, None] >> np.arange(num_devices) & 1).astype(bool)


def majority(
    labels: np.ndarray, first: np.ndarray, size: int, names: Sequence[str], purity: float
) -> tuple[list[str | None], np.ndarray]:
    """Label of each window, and the share of its samples that have it.

    Args:
        labels: (L,) int64 number in `names`, -1 without label. purity: share from which a window has the label; below,
            it has none. Of two equally frequent labels the first in `names` counts.
    """
    if not len(names) or not len(first):
        return [None] * len(first), np.zeros(len(first))
    share = counts(labels[:, None] == np.arange(len(names)), first, size) / size
    best = share.argmax(axis=1)
    largest = share[np.arange(len(first)), best]
    return [names[k] if s > 0 and s >= purity else None for k, s in zip(best, largest, strict=True)], largest


def label_ticks(start: np.ndarray, end: np.ndarray, number: Sequence[int], num_samples: int, hz: float) -> np.ndarray:
    """(num_samples,) int64 labels of ticks i / hz with start <= i / hz < end; -1 elsewhere."""
    labels = np.full(num_samples, -1, np.int64)
    low = np.clip(np.ceil(np.round(start * hz, 6)), 0, num_samples).astype(np.int64)
    high = np.clip(np.ceil(np.round(end * hz, 6)), 0, num_samples).astype(np.int64)
    for a, b, k in zip(low, high, number, strict=True):
        labels[a:b] = k
    return labels
