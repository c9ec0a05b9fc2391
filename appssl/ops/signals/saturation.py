"""Samples at the limit of a sensor, found chunk by chunk.

At least `shortest` samples on end have the largest or smallest value of the recording, and that value is the limit of
the sensor: it has piled up `_PILED` times as many samples as the value next to it, at least `_LEVELS` different values
lie between it and the median, and it is above zero if it is the largest and below if it is the smallest. A posture or a
rounded quiet signal does not look like that. A row that repeats the one before in all channels is a held sample, and is
not counted again.
"""

from collections.abc import Iterable

import numpy as np

from appssl.ops.signals.rest import runs

_PILED, _LEVELS = 3, 16
_TELLING = 3  # channels that rarely repeat all their values at once by themselves


def fresh(values: np.ndarray, before: np.ndarray) -> np.ndarray:
    """(n,) bool: rows (n, channels) that differ from the one before; all where too few channels can tell.

    Args:
        before: (1, channels) the row before them, or (0, channels) where there is none.
    """
    found = np.ones(len(values), bool)
    if values.shape[1] >= _TELLING and len(values):
        same = np.arange(1, len(values))
        for column in values.T:  # most rows differ in the first channel already
            same = same[column[same] == column[same - 1]]
        found[same] = False
        found[0] = not len(before) or bool((values[0] != before[0]).any())
    return found


class Extremes:
    """Smallest and largest numbers of a channel, and whether they are limits of its sensor."""

    def __init__(self) -> None:
        self.low, self.high = np.inf, -np.inf
        self._known = 0  # fresh samples with a number
        self._outermost = {1: _Levels(), -1: _Levels()}

    def add(self, values: np.ndarray, is_fresh: np.ndarray) -> None:
        """Takes the next samples (n,), and which of them are fresh (n,)."""
        known = np.isfinite(values)
        if not known.all():
            values, is_fresh = values[known], is_fresh[known]
        if not len(values):
            return
        low, high = values.min(), values.max()
        self.low, self.high = min(self.low, float(low)), max(self.high, float(high))
        self._known += int(np.count_nonzero(is_fresh))
        for sign, largest in ((1, high), (-1, -low)):
            if largest >= self._outermost[sign].least:
                self._outermost[sign].add(sign * (values if is_fresh.all() else values[is_fresh]))

    @property
    def is_constant(self) -> bool:
        return self.low == self.high

    def limits(self, shortest: int) -> list[float]:
        """Those of the largest and smallest number that are limits of the sensor."""
        return [
            sign * float(levels.levels[-1])
            for sign, levels in self._outermost.items()
            if levels.end_at_limit(self._known, shortest)
        ]


class _Levels:
    """The `_LEVELS` + 1 largest different numbers of those that were added, increasing, and how often each is there."""

    def __init__(self) -> None:
        self.levels, self.counts = np.zeros(0), np.zeros(0, np.int64)

    @property
    def least(self) -> float:
        """Smaller numbers do not matter."""
        return float(self.levels[0]) if len(self.levels) > _LEVELS else -np.inf

    def add(self, values: np.ndarray) -> None:
        levels, counts = np.unique(values[values >= self.least], return_counts=True)
        together, place = np.unique(np.concatenate([self.levels, levels]), return_inverse=True)
        total = np.zeros(len(together), np.int64)
        np.add.at(total, place, np.concatenate([self.counts, counts]))
        self.levels, self.counts = together[-_LEVELS - 1 :], total[-_LEVELS - 1 :]

    def end_at_limit(self, known: int, shortest: int) -> bool:
        """Whether the largest number is where the sensor ends, of `known` numbers altogether.

        The levels that are kept lie above the median if they are not more than half of all.
        """
        if len(self.levels) <= _LEVELS or self.levels[-1] <= 0:
            return False
        piled = self.counts[-1] >= max(shortest, _PILED * self.counts[-2])
        return bool(piled and 2 * self.counts.sum() <= known)


def runs_at(limit: float, chunks: Iterable[tuple[np.ndarray, np.ndarray]], shortest: int) -> list[tuple[int, int]]:
    """(first, last + 1) of runs of samples at a limit, of at least `shortest` fresh ones.

    Args:
        chunks: samples (n,) of the channel, and which of them are fresh (n,).
    """
    found: list[tuple[int, int, int]] = []  # and how many of its samples are fresh
    position = 0
    for values, is_fresh in chunks:
        total = np.concatenate([[0], np.cumsum(is_fresh)])
        for a, b in runs(values == limit):
            begin, count = position + a, int(total[b] - total[a])
            if found and found[-1][1] == begin:  # it goes on from the chunk before
                begin, count = found[-1][0], found.pop()[2] + count
            elif found and found[-1][2] < shortest:
                found.pop()
            found.append((begin, position + b, count))
        position += len(values)
    return [(begin, end) for begin, end, count in found if count >= shortest]
