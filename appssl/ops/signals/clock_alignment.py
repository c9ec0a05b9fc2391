"""Offset and drift between the clocks of two devices on one body, from how strongly both move.

The motion energy of both, on a grid of their own clocks, is cut into blocks. In each block the lag of the largest
normalized cross-correlation is found, to a fraction of a sample by a parabola through the peak. A line through the lags
gives offset and drift: the median of the slopes between blocks (Theil and Sen), then least squares over the blocks near
that line. Blocks without motion, with gaps, or whose peak does not stand out have no say.

Source: cross-correlation of activity in windows is common practice, as in Bannach et al., Automatic event-based
synchronization, EuroSSC 2009; the line is that of Sen, JASA 63(324), 1968. Deviations: none of note.
"""

from dataclasses import dataclass

import numpy as np
from scipy import fft, ndimage

from appssl.ops.signals.sample_store import Rows, slices

_SMOOTH_SECONDS = 0.1  # of the energy: bodies shake for that long
_SLOW_SECONDS = 2.0  # what changes more slowly is posture, and no motion
_LEAST_COVERED = 0.8  # share of a block with samples
_LEAST_CORRELATION = 0.2  # of the peak
_LEAST_PROMINENCE = 1.15  # peak over the largest value away from it
_AWAY_SECONDS = 1.0  # from where on a value counts as away from the peak
_LEAST_BLOCKS = 3
_PAIRED = 2048  # blocks of a week; more are taken at equal distances, since pairs grow with their square
_NEAR = 3.0  # times the median distance from the line; blocks beyond are left out of the last fit


@dataclass(frozen=True)
class Alignment:
    """What the second clock shows minus what the first shows, as a line over the first clock's time.

    Attributes:
        offset: seconds, at time 0 of the first grid. drift: seconds per second. residual: median distance of the blocks
            from the line, seconds. num_blocks, num_used: blocks that were compared, and those near the line.
        times, lags: (num_blocks,) of every compared block, seconds.
    """

    offset: float
    drift: float
    residual: float
    num_blocks: int
    num_used: int
    times: np.ndarray
    lags: np.ndarray

    @property
    def drift_per_day(self) -> float:
        """Seconds per day."""
        return self.drift * 86_400

    def on_first_clock(self, seconds: np.ndarray) -> np.ndarray:
        """Times (n,) of the second clock as the first clock shows them."""
        return (seconds - self.offset) / (1 + self.drift)


def motion_energy(acceleration: np.ndarray, hz: float) -> np.ndarray:
    """How strongly a device moves, (n,) float32, NaN where there is no sample.

    Args:
        acceleration: (n, 3), any unit, NaN where there is no sample. hz: samples per second.
    """
    return MotionEnergy(vector_lengths(acceleration), hz)[:]


def vector_lengths(vectors: np.ndarray) -> np.ndarray:
    """Lengths (...) float64 of vectors (..., 3)."""
    found: np.ndarray = np.sqrt(np.square(vectors, dtype=np.float64).sum(axis=-1))
    return found


class MotionEnergy:
    """`motion_energy` from lengths of the acceleration (n,), NaN where there is no sample; worked out where read."""

    def __init__(self, lengths: Rows, hz: float) -> None:
        self._lengths = lengths
        self._slow, self._fast = (max(1, round(seconds * hz)) for seconds in (_SLOW_SECONDS, _SMOOTH_SECONDS))
        total, count = 0.0, 0
        for a, b in slices(len(lengths)):
            known = lengths[a:b][np.isfinite(lengths[a:b])]
            total, count = total + float(known.sum()), count + len(known)
        self._filling = total / count if count else 0.0

    def __len__(self) -> int:
        return len(self._lengths)

    def __getitem__(self, rows: slice) -> np.ndarray:
        begin, end, _ = rows.indices(len(self))
        low = max(begin - self._slow - self._fast, 0)  # means at the edges of what is read need what lies around it
        part = self._lengths[low : end + self._slow + self._fast]
        known = np.isfinite(part)
        filled = np.where(known, part, self._filling)
        moving = np.abs(filled - _mean(filled, self._slow))
        energy = np.where(known, _mean(moving, self._fast), np.nan).astype(np.float32)
        return energy[begin - low : end - low]


Energy = np.ndarray | MotionEnergy


def _mean(values: np.ndarray, length: int) -> np.ndarray:
    found: np.ndarray = ndimage.uniform_filter1d(values, length, mode="nearest")
    return found


def align(
    first: Energy, second: Energy, *, hz: float, block_seconds: float = 300.0, max_lag_seconds: float = 30.0
) -> Alignment | None:
    """
    Args:
        first, second: motion energy (n,), (m,) on grids of `hz` that begin at the same reading of each clock.
        max_lag_seconds: largest difference of the clocks that is looked for.
    Returns:
        None if fewer than three blocks can be compared: too little motion, too short, or too different.
    """
    size, reach = round(block_seconds * hz), round(max_lag_seconds * hz)
    begins = range(0, len(first) - size + 1, size)
    lags_of = {begin: _lag(first[begin : begin + size], second, begin, reach, hz) for begin in begins}
    found = [((begin + size / 2) / hz, lag / hz) for begin, lag in lags_of.items() if lag is not None]
    if len(found) < _LEAST_BLOCKS:
        return None
    times, lags = np.array(found).T
    slope, level = _theil_sen(times, lags)
    distance = np.abs(lags - level - slope * times)
    near = distance <= _NEAR * max(float(np.median(distance)), 0.5 / hz)
    slope, level = np.polyfit(times[near], lags[near], 1) if near.sum() >= _LEAST_BLOCKS else (slope, level)
    residual = float(np.median(np.abs(lags - level - slope * times)))
    return Alignment(float(level), float(slope), residual, len(found), int(near.sum()), times, lags)


def _lag(block: np.ndarray, second: Energy, begin: int, reach: int, hz: float) -> float | None:
    """Samples by which a block of the first lies later in the second; None if that cannot be told."""
    low, high = begin - reach, begin + len(block) + reach
    other = np.full(high - low, np.nan, np.float32)
    inside = slice(max(low, 0), min(high, len(second)))
    if inside.stop <= inside.start:
        return None
    other[inside.start - low : inside.stop - low] = second[inside]
    scores = _correlation(block, other)
    if scores is None:
        return None
    peak = int(scores.argmax())
    away = np.abs(np.arange(len(scores)) - peak) > _AWAY_SECONDS * hz
    rest = float(scores[away].max(initial=0.0))
    if scores[peak] < max(_LEAST_CORRELATION, _LEAST_PROMINENCE * rest) or not 0 < peak < len(scores) - 1:
        return None
    left, top, right = scores[peak - 1 : peak + 2]
    curve = left - 2 * top + right
    return peak + (0.5 * (left - right) / curve if curve < 0 else 0.0) - reach


def _correlation(block: np.ndarray, other: np.ndarray) -> np.ndarray | None:
    """Normalized cross-correlation of a block (n,) at every place of a longer stretch (n + k,), (k + 1,).

    A place needs 80 % of its samples; it has 0 otherwise.
    """
    known, theirs = np.isfinite(block), np.isfinite(other)
    if known.mean() < _LEAST_COVERED or theirs.mean() == 0:
        return None
    a = np.where(known, block - np.mean(block, where=known), 0).astype(np.float64)
    b = np.where(theirs, other - np.mean(other, where=theirs), 0).astype(np.float64)
    power = float(a @ a)
    if power == 0:
        return None
    length = fft.next_fast_len(len(a) + len(b), real=True)
    product = fft.irfft(fft.rfft(b, length) * np.conj(fft.rfft(a, length)), length)[: len(b) - len(a) + 1]
    sums = [np.concatenate([[0.0], values.cumsum()]) for values in (b, b * b, theirs)]
    total, squares, count = (s[len(a) :] - s[: len(s) - len(a)] for s in sums)
    spread = squares - total**2 / len(a)
    usable = (count >= _LEAST_COVERED * len(a)) & (spread > 1e-12 * squares.max(initial=0.0))
    scores = np.zeros(len(product))
    np.divide(product, np.sqrt(power * np.maximum(spread, 0)), out=scores, where=usable)
    return scores


def _theil_sen(x: np.ndarray, y: np.ndarray) -> tuple[float, float]:
    """Slope and level of the line with the median of the slopes between all pairs of (at most `_PAIRED`) points."""
    step = -(-len(x) // _PAIRED)
    i, j = np.triu_indices(len(x[::step]), 1)
    slope = float(np.median((y[::step][j] - y[::step][i]) / (x[::step][j] - x[::step][i])))
    return slope, float(np.median(y - slope * x))
