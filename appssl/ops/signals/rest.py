"""Times when a device did not move: not worn, or at rest, which shows what gravity is in its unit.

Everything is found in blocks of equal length, from the samples that have all three numbers.
"""

from dataclasses import dataclass
from itertools import pairwise

import numpy as np

REST_SECONDS = 2.0
REST_SAMPLES = 8  # at least, where the rate is low
_COVERED = 0.5  # share of a block that must have samples
_ROUNDING = 1e-9  # of a mean, by which equal numbers differ from it


@dataclass(frozen=True)
class Blocks:
    """Blocks of `seconds` that have samples, (K,) each.

    Attributes:
        number: of the block, from the first on. first, last: of its samples. begin, end: their times, seconds.
        count: its samples. gravity: length of their mean. spread: largest standard deviation of an axis.
    """

    seconds: float
    number: np.ndarray
    first: np.ndarray
    last: np.ndarray
    begin: np.ndarray
    end: np.ndarray
    count: np.ndarray
    gravity: np.ndarray
    spread: np.ndarray

    def still(self, hz: float, still_mg: float) -> np.ndarray:
        """(K,) bool: blocks without motion, beyond `still_mg` thousandths of gravity, that are at least half there."""
        limit = np.maximum(still_mg / 1000, _ROUNDING) * self.gravity
        return (self.spread <= limit) & (self.count >= _COVERED * self.seconds * hz)


class BlockSums:
    """Collects the blocks of samples that come in chunks.

    Sums are of differences to the first sample of a block: exactly 0 where a sensor shows the same number all the time.
    """

    def __init__(self, seconds: float) -> None:
        self.seconds = seconds
        self._origin: float | None = None
        self._open = np.zeros((0, 15))  # the newest block, which the next chunk may go on with
        self._done: list[np.ndarray] = []

    def add(self, position: np.ndarray, seconds: np.ndarray, values: np.ndarray) -> None:
        """Takes the next samples: their positions (n,) in the recording, times (n,), and values (n, 3) float64."""
        if not len(position):
            return
        if self._origin is None:
            self._origin = float(seconds[0])
        number = np.floor((seconds - self._origin) / self.seconds)
        begin = np.flatnonzero(np.diff(number, prepend=-1.0))
        count = np.diff(begin, append=len(number))
        last = begin + count - 1
        goes_on = len(self._open) > 0 and self._open[0, 0] == number[0]
        table = np.empty((len(begin), 15))
        table[:, :6] = np.stack(
            [number[begin], position[begin], position[last], seconds[begin], seconds[last], count], axis=1
        )
        table[:, 6:9] = values[begin]
        if goes_on:
            table[0, 6:9] = self._open[0, 6:9]
        for k in range(3):
            moved = values[:, k] - np.repeat(table[:, 6 + k], count)
            table[:, 9 + k] = np.add.reduceat(moved, begin)
            table[:, 12 + k] = np.add.reduceat(moved * moved, begin)
        if goes_on:
            table[0, [1, 3]] = self._open[0, [1, 3]]
            table[0, 9:] += self._open[0, 9:]
            table[0, 5] += self._open[0, 5]
        else:
            table = np.concatenate([self._open, table])
        self._done.append(_summary(table[:-1]))
        self._open = table[-1:]

    def blocks(self) -> Blocks:
        """Those of all samples."""
        columns: list[np.ndarray] = list(np.concatenate([*self._done, _summary(self._open)]).T)
        return Blocks(self.seconds, *columns)


def _summary(table: np.ndarray) -> np.ndarray:
    """(K, 8) fields of `Blocks` from (K, 15): the first 6 of them, and offset, sum and sum of squares of 3 axes."""
    count = table[:, 5:6]
    mean = table[:, 9:12] / count
    spread = np.sqrt(np.maximum(table[:, 12:] / count - mean**2, 0)).max(axis=1, initial=0.0)
    gravity = np.linalg.norm(table[:, 6:9] + mean, axis=1)
    return np.column_stack([table[:, :6], gravity, spread])


def not_worn(blocks: Blocks, hz: float, still_mg: float, minutes: float) -> list[tuple[int, int, float]]:
    """(first, last + 1) sample, and seconds, of every time of at least `minutes` without motion, in whole blocks."""
    still = blocks.still(hz, still_mg)
    cuts = np.diff(blocks.number, prepend=-1) != 1  # a block without samples lies between
    found = []
    for a, b in runs(still):
        begins = [a, *(k for k in range(a + 1, b) if cuts[k]), b]
        for low, high in pairwise(begins):
            if (high - low) * blocks.seconds >= minutes * 60:
                lasted = float(blocks.end[high - 1] - blocks.begin[low])
                found.append((int(blocks.first[low]), int(blocks.last[high - 1]) + 1, lasted))
    return found


def at_rest(blocks: Blocks, hz: float, still_mg: float) -> float | None:
    """Median length of the acceleration at rest, which is gravity; None where it was never at rest."""
    if blocks.count.sum() < REST_SAMPLES:
        return None
    resting = blocks.gravity[blocks.still(hz, still_mg) & (blocks.gravity > 0)]
    return float(np.median(resting)) if len(resting) else None


def rest_seconds(hz: float) -> float:
    """Length of a block in which a device that records at `hz` may be at rest."""
    return max(REST_SECONDS, REST_SAMPLES / hz)


def runs(flags: np.ndarray) -> list[tuple[int, int]]:
    """(first, last + 1) of every run of flags that are set."""
    edges = np.flatnonzero(np.diff(np.concatenate([[False], flags, [False]])))
    return [(int(a), int(b)) for a, b in edges.reshape(-1, 2)]
