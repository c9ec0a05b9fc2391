"""Irregular samples of one recording onto the samples of a common clock.

The common clock ticks at `hz` from an origin. Values are interpolated linearly between stamps, and never across a gap
longer than `max_gap` seconds: such spans stay empty. When the recording is faster than the clock, it is interpolated
on a grid of a whole multiple of `hz` first, low-passed there, and every k-th value is taken. The filter is a symmetric
(zero-phase) FIR filter, Kaiser window, 60 dB: it passes up to 0.4 hz and stops from 0.5 hz, the Nyquist frequency of
the result. At the ends of a stretch the last value is held.
"""

from dataclasses import dataclass
from functools import cache
from itertools import pairwise

import numpy as np
from scipy import signal

from appssl.ops.recordings import BadRecording, shown_rows

# What a sample of the common clock is; of several, the larger number is the reason that is given.
OK, SATURATED, NON_WEAR, NAN, GAP, MISSING = range(6)
PASS, STOP, ATTENUATION_DB = 0.4, 0.5, 60.0  # of the filter: edges as shares of the rate, and how much it stops
_FASTER = 1.05  # ratio of rates from which a recording is filtered; clocks that nearly agree are only interpolated
_OUTLIER = 5.0  # steps longer than this many median steps are pauses, and do not count for the rate


@dataclass(frozen=True)
class Clean:
    """Samples with increasing time. `kept` and the row numbers explain what became of every sample that was read.

    Attributes:
        seconds: (n,) float64, strictly increasing. values: (n, channels) float64, may hold NaN.
        kept: (n,) int64 position in the input of the first sample at each time.
        repeated: row numbers of samples whose time was there before; they are averaged with the first.
    """

    seconds: np.ndarray
    values: np.ndarray
    kept: np.ndarray
    repeated: np.ndarray

    def part(self, begin: int, end: int) -> "Clean":
        """Samples begin..end - 1."""
        return Clean(self.seconds[begin:end], self.values[begin:end], self.kept[begin:end], self.repeated)


def increasing(seconds: np.ndarray, values: np.ndarray, rows: np.ndarray) -> Clean:
    """Checks that time never goes back, and averages samples with equal time.

    Raises:
        BadRecording: if time goes back (with the rows), there are fewer than two times, or most times are repeated.
    """
    steps = np.diff(seconds)
    back = np.flatnonzero(steps < 0) + 1
    if len(back):
        raise BadRecording("time_goes_back", f"the time is earlier than in the row before, {shown_rows(rows[back])}")
    first = np.concatenate([[True], steps > 0])
    kept = np.flatnonzero(first)
    if len(kept) < 2:
        raise BadRecording("too_short", f"{len(seconds)} sample(s) with {len(kept)} different time(s); two are needed")
    repeated = rows[~first]
    if len(repeated) > len(seconds) / 2:
        raise BadRecording(
            "time_repeated",
            f"{len(repeated)} of {len(seconds)} times are those of the row before, {shown_rows(repeated)}; "
            "the clock is too coarse",
        )
    if len(repeated):
        counts = np.diff(np.append(kept, len(seconds)))
        values = np.add.reduceat(values, kept, axis=0) / counts[:, None]
    return Clean(seconds[kept], values, kept, repeated)


def estimated_hz(seconds: np.ndarray, num_samples: int) -> float:
    """Rate of increasing stamps (n,), of `num_samples` samples before repeated times were joined; pauses do not count.

    Number of steps divided by the time they take, which jitter and stamps in bursts do not bias.
    """
    steps = np.diff(seconds)
    usual = steps <= _OUTLIER * np.median(steps)
    joined = num_samples - len(seconds)
    return float((usual.sum() + joined) / steps[usual].sum())


def check_rate(found: float, *, stated: float | None, hz: float, max_gap: float, tolerance: float = 0.2) -> None:
    """
    Raises:
        BadRecording: if the stated rate and the one found differ by more than `tolerance`, or the rate is too low for
            a clock of `hz` or for `max_gap` seconds.
    """
    if stated is not None and abs(found - stated) > tolerance * stated:
        raise BadRecording(
            "rate_differs",
            f"sampling_hz {stated:g} is stated, the times say {found:.4g}; they may differ by {tolerance:.0%}. "
            "Correct sampling_hz or time_unit",
        )
    if 1 / found > max_gap:
        raise BadRecording(
            "rate_too_low",
            f"the rate is {found:.4g} Hz: samples are {1 / found:.3g} s apart, max_gap_seconds is {max_gap:g}",
        )
    if found < hz / 2:
        raise BadRecording("rate_too_low", f"the rate is {found:.4g} Hz, less than half of sampling_hz {hz:g}")


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


def resample(
    seconds: np.ndarray, values: np.ndarray, *, hz: float, max_gap: float, recorded_hz: float
) -> tuple[int, np.ndarray, np.ndarray]:
    """A recording on the clock t = i / hz.

    Args:
        seconds: (n,) float64, strictly increasing, since the clock's origin. values: (n, channels) float64; NaN where
            there is no number.
        recorded_hz: rate of the recording, which decides whether it is filtered.
    Returns:
        Number i of the first sample, values (m, channels) float32, NaN where not usable, and codes (m,) uint8: OK,
        GAP, or NAN, where a stamp next to the tick holds no number.
    """
    first = _tick_from(seconds[0], hz)
    count = max(0, _tick_until(seconds[-1], hz) - first + 1)
    out = np.full((count, values.shape[1]), np.nan, np.float32)
    codes = np.full(count, GAP, np.uint8)
    factor = int(np.ceil(recorded_hz / hz / _FASTER)) if recorded_hz > hz * _FASTER else 1
    for a, b in stretches(seconds, max_gap):
        low, high = _tick_from(seconds[a], hz), _tick_until(seconds[b - 1], hz)
        if high < low:
            continue
        part = slice(low - first, high - first + 1)
        _stretch(seconds[a:b], values[a:b], low, high, hz, factor, out[part], codes[part])
    return first, out, codes


def _stretch(
    seconds: np.ndarray,
    values: np.ndarray,
    low: int,
    high: int,
    hz: float,
    factor: int,
    out: np.ndarray,
    codes: np.ndarray,
) -> None:
    """Fills ticks low..high of one stretch; ticks beside a sample without number are NAN, and NaN."""
    good = np.isfinite(values).all(axis=1)
    ticks = np.clip(np.arange(low, high + 1) / hz, seconds[0], seconds[-1])
    codes[:] = OK
    if not good.all():
        right = np.searchsorted(seconds, ticks)  # first stamp at or after the tick
        exact = seconds[right] == ticks
        left = np.where(exact, right, np.maximum(right - 1, 0))
        codes[~(good[left] & good[right])] = NAN
    if not good.any():
        return
    known, values = seconds[good], values[good]
    if factor == 1:
        for k in range(values.shape[1]):
            out[:, k] = np.interp(ticks, known, values[:, k])
    else:
        taps = lowpass(factor)
        half = len(taps) // 2
        fine = np.arange(low * factor - half, high * factor + half + 1) / (hz * factor)
        for k in range(values.shape[1]):
            filtered = signal.upfirdn(taps, np.interp(fine, known, values[:, k]), 1, factor)
            skip = 2 * half // factor  # where the filter first lies within the values
            out[:, k] = filtered[skip : skip + len(out)]
    out[codes == NAN] = np.nan


def _tick_from(seconds: float, hz: float) -> int:
    """First tick at or after a time; a tick that rounding puts a little before it counts."""
    return int(np.ceil(round(seconds * hz, 6)))


def _tick_until(seconds: float, hz: float) -> int:
    """Last tick at or before a time, with the same allowance."""
    return int(np.floor(round(seconds * hz, 6)))


def nearest_samples(seconds: np.ndarray, ticks: np.ndarray) -> np.ndarray:
    """(m,) position of the stamp nearest to each tick; the earlier of two equally near."""
    right = np.clip(np.searchsorted(seconds, ticks), 1, len(seconds) - 1)
    return np.where(ticks - seconds[right - 1] <= seconds[right] - ticks, right - 1, right)
