"""Irregular samples of one recording onto the samples of a common clock.

The common clock ticks at `hz` from an origin. Values are interpolated linearly between stamps, and never across a gap
longer than `max_gap` seconds: such spans stay empty. When the recording is faster than the clock, it is interpolated
on a grid of a whole multiple of `hz` first, low-passed there, and every k-th value is taken. The filter is a symmetric
(zero-phase) FIR filter, Kaiser window, 60 dB: it passes up to 0.4 hz and stops from 0.5 hz, the Nyquist frequency of
the result. At the ends of a stretch the last value is held.

Any ticks can be asked for by themselves: they are what they would be among all others, to the rounding of float32.
"""

from bisect import bisect_left, bisect_right
from dataclasses import dataclass
from functools import cache
from itertools import pairwise

import numpy as np
from scipy import signal

from appssl.ops.signals.sample_store import Rows, View

# What a sample of the common clock is; of several, the larger number is the reason that is given.
OK, SATURATED, NON_WEAR, NAN, GAP, MISSING = range(6)
PASS, STOP, ATTENUATION_DB = 0.4, 0.5, 60.0  # of the filter: edges as shares of the rate, and how much it stops
_FASTER = 1.05  # ratio of rates from which a recording is filtered; clocks that nearly agree are only interpolated
_ROUNDING = 2.0**-25  # steps by which a stamp may lie behind a point of the grid and still count as on it
_SEARCHED = 4096  # rows that are read at once where a sample with numbers is looked for


@dataclass(frozen=True)
class Clean:
    """Samples of a recording: seconds (n,) float64, strictly increasing; values (n, channels), may hold NaN."""

    seconds: Rows
    values: Rows

    def part(self, begin: int, end: int) -> "Clean":
        """Samples begin..end - 1."""
        return Clean(View(self.seconds, begin, end), View(self.values, begin, end))


def filter_factor(recorded_hz: float, hz: float) -> int:
    """Points of the grid that is filtered, per tick; 1 where a recording is not filtered."""
    return int(np.ceil(recorded_hz / hz / _FASTER)) if recorded_hz > hz * _FASTER else 1


@cache
def lowpass(factor: int) -> np.ndarray:
    """Filter for taking every `factor`-th sample: symmetric, sums to 1, half its length is a multiple of `factor`."""
    count, beta = signal.kaiserord(ATTENUATION_DB, 2 * (STOP - PASS) / factor)
    half = -(-(count // 2) // factor) * factor
    taps = signal.firwin(2 * half + 1, (PASS + STOP) / factor, window=("kaiser", beta))
    return taps / taps.sum()


def stretches(seconds: np.ndarray, max_gap: float) -> list[tuple[int, int]]:
    """(first, last + 1) sample of every stretch without a gap longer than `max_gap`."""
    cuts = np.flatnonzero(np.diff(seconds) > max_gap) + 1
    edges = [0, *cuts.tolist(), len(seconds)]
    return list(pairwise(edges))


def tick_span(begin: float, end: float, hz: float) -> tuple[int, int]:
    """(first, last + 1) tick of a recording from `begin` to `end`, seconds since the clock's origin.

    A tick that rounding puts a little before or behind it counts.
    """
    first = int(np.ceil(round(begin * hz, 6)))
    return first, max(first, int(np.floor(round(end * hz, 6))) + 1)


def resample(
    clean: Clean,
    *,
    hz: float,
    max_gap: float,
    recorded_hz: float,
    origin: float = 0.0,
    channels: list[int],
    ticks: tuple[int, int] | None = None,
) -> tuple[int, np.ndarray, np.ndarray]:
    """A recording on the clock t = origin + i / hz.

    Args:
        recorded_hz: rate of the recording, which decides whether it is filtered. origin: seconds.
        channels: those that are wanted, and that need a number. ticks: (first, last + 1) of those that are wanted.
    Returns:
        Number i of the first tick, values (m, channels) float32, NaN where not usable, and codes (m,) uint8: OK, GAP,
        or NAN, where a stamp next to the tick holds no number. No tick lies outside the recording.
    """
    first, end = tick_span(clean.seconds[0] - origin, clean.seconds[-1] - origin, hz)
    if ticks is not None:
        first, end = max(first, ticks[0]), min(end, ticks[1])
    out = np.full((len(channels), max(0, end - first)), np.nan, np.float32)
    codes = np.full(out.shape[1], GAP, np.uint8)
    if first < end:
        grid = _Grid(origin, hz, filter_factor(recorded_hz, hz), max_gap, channels)
        part = _around(clean, grid, first, end)
        for a, b in stretches(part.seconds, max_gap):
            low, high = tick_span(part.seconds[a], part.seconds[b - 1], hz)
            low, high = max(low, first), min(high, end)
            if low < high:
                own = slice(low - first, high - first)
                _fill(part, grid, a, b, low, out[:, own], codes[own])
    return first, out.T, codes


@dataclass(frozen=True)
class _Grid:
    """What is asked for, as of `resample`; `factor`: points of the grid that is filtered, per tick."""

    origin: float
    hz: float
    factor: int
    max_gap: float
    channels: list[int]


_Sample = tuple[float, np.ndarray]  # seconds since the origin, and values (channels,)


@dataclass(frozen=True)
class _Part:
    """Samples around some ticks: seconds (n,) since the origin, values (n, channels), which have all numbers (n,).

    `beyond`: where the first or last of them has none, the nearest sample of its stretch that has, else None.
    """

    seconds: np.ndarray
    values: np.ndarray
    good: np.ndarray
    beyond: tuple[_Sample | None, _Sample | None]


def _around(clean: Clean, grid: _Grid, first: int, end: int) -> _Part:
    """The samples that ticks first..end - 1 depend on, and a few more."""
    reach = _half(grid.factor) / grid.factor + 1
    a = max(bisect_right(clean.seconds, grid.origin + (first - reach) / grid.hz) - 1, 0)
    b = min(bisect_left(clean.seconds, grid.origin + (end - 1 + reach) / grid.hz) + 1, len(clean.seconds))
    values = clean.values[a:b, grid.channels]
    good = np.asarray(np.isfinite(values).all(axis=1))
    before = after = None
    if grid.factor > 1 and good.any():
        before = None if good[0] else _nearest_good(clean, grid, a, -1)
        after = None if good[-1] else _nearest_good(clean, grid, b - 1, 1)
    return _Part(clean.seconds[a:b] - grid.origin, values, good, (before, after))


def _nearest_good(clean: Clean, grid: _Grid, row: int, step: int) -> _Sample | None:
    """The nearest sample before (step -1) or after (1) sample `row` of the same stretch that has all numbers."""
    while 0 <= row + step < len(clean.seconds):
        other = min(max(row + step * _SEARCHED, 0), len(clean.seconds) - 1)
        a, b = min(row, other), max(row, other) + 1
        seconds, values = clean.seconds[a:b][::step], clean.values[a:b, grid.channels][::step]
        gaps = np.flatnonzero(np.abs(np.diff(seconds)) > grid.max_gap)
        good = np.flatnonzero(np.isfinite(values[: gaps[0] + 1 if len(gaps) else None]).all(axis=1))
        if len(good):
            return float(seconds[good[0]]) - grid.origin, values[good[0]]
        if len(gaps):
            return None
        row = other
    return None


def _fill(part: _Part, grid: _Grid, a: int, b: int, low: int, out: np.ndarray, codes: np.ndarray) -> None:
    """Fills ticks from `low` on with the stretch of samples a..b - 1; ticks beside one without number are NAN."""
    seconds, values, good = part.seconds[a:b], part.values[a:b], part.good[a:b]
    codes[:] = OK
    if not good.all():
        ticks = np.clip(np.arange(low, low + len(codes)) / grid.hz, seconds[0], seconds[-1])
        right = np.searchsorted(seconds, ticks)  # first stamp at or after the tick
        left = np.where(seconds[right] == ticks, right, np.maximum(right - 1, 0))
        codes[~(good[left] & good[right])] = NAN
        if not good.any():
            return
        seconds, values = seconds[good], values.T[:, good].T
        if a == 0 and part.beyond[0] is not None:
            seconds, values = np.append(part.beyond[0][0], seconds), np.vstack([part.beyond[0][1], values])
        if b == len(part.good) and part.beyond[1] is not None:
            seconds, values = np.append(seconds, part.beyond[1][0]), np.vstack([values, part.beyond[1][1]])
    factor, half = grid.factor, _half(grid.factor)
    count = (out.shape[1] - 1) * factor + 2 * half + 1
    room = -(-count // (2 * half)) * 2 * half + 2 * half if half else count
    found = np.zeros((len(out), room))
    _interpolate(seconds, values, low * factor - half, grid.hz * factor, found[:, :count])
    out[:] = _decimated(found, factor)[:, : out.shape[1]] if half else found
    out[:, codes == NAN] = np.nan


def _half(factor: int) -> int:
    """Points of the grid on each side of a tick that the filter needs."""
    return len(lowpass(factor)) // 2 if factor > 1 else 0


def _interpolate(seconds: np.ndarray, values: np.ndarray, begin: int, hz: float, out: np.ndarray) -> None:
    """Fills (channels, m) with straight lines between samples, at the times (begin + k) / hz; the ends are held."""
    if len(seconds) == 1:
        out[:] = values.T
        return
    count = out.shape[1]
    place = (seconds - begin / hz) * hz
    before = np.clip(np.ceil(place - _ROUNDING), 0, count).astype(np.int64)  # points of the grid before each stamp
    left = np.repeat(np.arange(-1, len(seconds)), np.diff(before, prepend=0, append=count))
    np.clip(left, 0, len(seconds) - 2, out=left)
    if left[-1] - left[0] == count - 1 and (np.diff(left) == 1).all():  # a stamp to each point: nothing to look up
        low, high = (slice(left[0] + k, left[0] + k + count) for k in (0, 1))
    else:
        low, high = left, left + 1  # type: ignore[assignment]
    begins = seconds[low]
    weight = np.arange(begin, begin + count) / hz - begins
    weight /= seconds[high] - begins
    np.clip(weight, 0, 1, out=weight)
    for line, column in zip(out, values.T.astype(np.float64), strict=True):
        first = column[low]
        np.subtract(column[high], first, out=line)
        line *= weight
        line += first


def _decimated(values: np.ndarray, factor: int) -> np.ndarray:
    """(channels, m): values low-passed, every `factor`-th one, and some more that lack values after them.

    As a product of matrices: the values in rows of as many as the filter is long, times the taps of the results that
    begin in a row, for the row itself and for the one after it.

    Args:
        values: (channels, k * length of the filter), where that is its number of taps - 1.
    """
    first, second = _toeplitz(factor)
    rows = values.reshape(len(values), -1, len(first))
    found = rows[:, :-1] @ first
    found += rows[:, 1:] @ second
    return found.reshape(len(values), -1)


@cache
def _toeplitz(factor: int) -> tuple[np.ndarray, np.ndarray]:
    """Two matrices (width, width / factor): taps of each result for the row it begins in, and for the next one."""
    taps = lowpass(factor)
    width = len(taps) - 1
    both = np.zeros((2 * width, width // factor))
    for k in range(width // factor):
        both[k * factor : k * factor + len(taps), k] = taps
    return both[:width].copy(), both[width:].copy()


def nearest_samples(seconds: np.ndarray, ticks: np.ndarray) -> np.ndarray:
    """(m,) position of the stamp nearest to each tick; the earlier of two equally near."""
    right = np.clip(np.searchsorted(seconds, ticks), 1, len(seconds) - 1)
    return np.where(ticks - seconds[right - 1] <= seconds[right] - ticks, right - 1, right)
