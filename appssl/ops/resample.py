"""Signals of irregular clocks on one regular clock: linear interpolation, anti-aliasing, and nothing across gaps.

Time is seconds, float64. A grid is (start, hz, n): points start + k / hz, k = 0..n-1. What stands behind every point of a
grid is one of the states below, so that a window can say why it is left out.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy import signal

OK, MISSING, GAP, ABSENT = 0, 1, 2, 3  # measured; values missing (NaN); no stamps for too long; outside the recording
STATES = {MISSING: "missing_values", GAP: "gap", ABSENT: "device_absent"}
# A rate up to this much above a multiple of the new one counts as that multiple: clocks are never exactly nominal.
_RATE_SLACK = 0.1
_STAMP_SLACK = 1e-6  # seconds: rounding of stamps at the ends of a recording


@dataclass(frozen=True)
class Resampled:
    """values (n, C) float32, 0 where not measured; state (n,) uint8; nearest (n,) int64: row of the nearest sample."""

    values: np.ndarray
    state: np.ndarray
    nearest: np.ndarray


def estimate_rate(times: np.ndarray, max_gap: float) -> float:
    """Samples per second outside gaps, Hz: number of intervals up to `max_gap` over their summed length; 0 if none.

    Args:
        times: (n,) float64 seconds, not decreasing.
    """
    steps = np.diff(times)
    steps = steps[steps <= max_gap + _STAMP_SLACK]
    total = float(steps.sum())
    return len(steps) / total if total > 0 else 0.0


def average_repeated(times: np.ndarray, values: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """One sample for every distinct stamp, the mean of its values; NaN if one of them is NaN.

    Args:
        times: (n,) not decreasing. values: (n, C) float32.
    Returns:
        times (m,), values (m, C) float32, and the first row of each, (m,) int64.
    """
    first = np.flatnonzero(np.diff(times, prepend=-np.inf) > 0)
    counts = np.diff(np.append(first, len(times)))
    means = np.add.reduceat(values.astype(np.float64), first, axis=0) / counts[:, None]
    return times[first], means.astype(np.float32), first


def grid_size(start: float, end: float, hz: float) -> int:
    """Number of grid points in [start, end], both ends included."""
    return int(np.floor((end - start) * hz + 1e-3)) + 1


def stretches(spans: Sequence[tuple[float, float]], longest_pause: float) -> list[tuple[float, float]]:
    """Spans (start, end) joined where at most `longest_pause` seconds lie between them; sorted, disjoint."""
    joined: list[tuple[float, float]] = []
    for start, end in sorted(spans):
        if joined and start - joined[-1][1] <= longest_pause:
            joined[-1] = (joined[-1][0], max(joined[-1][1], end))
        else:
            joined.append((start, end))
    return joined


def resample(
    times: np.ndarray, values: np.ndarray, *, start: float, n: int, hz: float, rate: float, max_gap: float
) -> Resampled:
    """One recording on a grid.

    Linear interpolation between neighbouring samples that are at most `max_gap` apart; samples with a value that is not
    finite count as not there. When the recording is faster than the grid, it is interpolated at a multiple of `hz` first
    and each stretch without gap passes the low-pass filter of `scipy.signal.resample_poly` (FIR, 20 m + 1 taps for m
    samples per grid point, Kaiser window with beta 5, zero phase, -6 dB at hz / 2, ends continued by a line).

    Args:
        times: (N,) float64, strictly increasing, N >= 1. values: (N, C) float32.
        start, n, hz: the grid. rate: of the recording, Hz, as from `estimate_rate`.
    """
    multiple = max(1, int(np.ceil(rate / hz - _RATE_SLACK)))
    fine = start + np.arange((n - 1) * multiple + 1) / (hz * multiple)
    finite = np.isfinite(values).all(axis=1)
    found, whole, _ = _interpolate(times[finite], values[finite], fine, max_gap)
    _, stamped, nearest = _interpolate(times, None, fine[::multiple], max_gap)
    state = np.where(whole[::multiple], OK, np.where(stamped, MISSING, GAP)).astype(np.uint8)
    state[(fine[::multiple] < times[0] - _STAMP_SLACK) | (fine[::multiple] > times[-1] + _STAMP_SLACK)] = ABSENT
    kept = found if multiple == 1 else _decimate(found, whole, multiple)
    kept[state != OK] = 0
    return Resampled(kept, state, nearest)


def _interpolate(
    times: np.ndarray, values: np.ndarray | None, grid: np.ndarray, max_gap: float
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """values (n, C), whether the point lies between samples close enough (n,), and the nearest sample (n,)."""
    width = 0 if values is None else values.shape[1]
    if len(times) == 0:
        return np.zeros((len(grid), width), np.float32), np.zeros(len(grid), bool), np.zeros(len(grid), np.int64)
    after = np.clip(np.searchsorted(times, grid, side="left"), 1, max(1, len(times) - 1))
    before, after = after - 1, np.minimum(after, len(times) - 1)
    step = times[after] - times[before]
    weight = np.clip(np.divide(grid - times[before], step, out=np.zeros(len(grid)), where=step > 0), 0, 1)
    inside = (grid >= times[0] - _STAMP_SLACK) & (grid <= times[-1] + _STAMP_SLACK)
    # On a stamp there is nothing to bridge, however far the next one is.
    on_stamp = (np.abs(grid - times[before]) <= _STAMP_SLACK) | (np.abs(times[after] - grid) <= _STAMP_SLACK)
    near = inside & ((step <= max_gap + _STAMP_SLACK) | on_stamp)
    nearest = np.where(weight > 0.5, after, before)
    if values is None:
        return np.zeros((len(grid), 0), np.float32), near, nearest
    share = weight.astype(np.float32)[:, None]
    return values[before] + (values[after] - values[before]) * share, near, nearest


def _decimate(fine: np.ndarray, whole: np.ndarray, multiple: int) -> np.ndarray:
    """Every `multiple`-th point of (N, C) after the low-pass filter, stretch by stretch of `whole`; (n, C) float32."""
    kept = np.zeros(((len(fine) - 1) // multiple + 1, fine.shape[1]), np.float32)
    edges = np.flatnonzero(np.diff(whole.astype(np.int8), prepend=0, append=0))
    for begin, end in zip(edges[::2], edges[1::2], strict=True):
        first = -(-begin // multiple)
        piece = fine[first * multiple : end]
        if len(piece) < 2:
            kept[first : first + len(piece)] = piece
            continue
        filtered = signal.resample_poly(piece, 1, multiple, axis=0, padtype="line")
        kept[first : first + len(filtered)] = filtered
    return kept
