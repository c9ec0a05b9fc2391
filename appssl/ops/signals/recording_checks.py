"""The first pass over a recording: its times are checked, its rate is found, and its samples are kept for later passes.

Everything is found chunk by chunk, and does not depend on where one chunk ends and the next begins.
"""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import pairwise

import numpy as np

from appssl.ops.signals.recording_labels import Labels
from appssl.ops.signals.recordings import BadRecording, RowNumbers, Samples, shown_rows
from appssl.ops.signals.resample import Clean
from appssl.ops.signals.sample_store import Column, Scratch

PAUSE_SECONDS = 600.0  # a longer pause of all devices ends a session, and takes no memory
_OUTLIER = 5.0  # steps longer than this many median steps are pauses, and do not count for the rate
_TYPICAL_STEPS = 1 << 18  # the median is that of the first steps; three quarters of an hour at 100 Hz show the rate
_LARGEST = float(np.finfo(np.float32).max)


@dataclass(frozen=True)
class Checked:
    """A recording whose times can be used.

    Attributes:
        clean: its samples. labels: (n,) int32 of them in `names`, -1 without, or null. hz: its rate. num_samples: how
            many were read. repeated: rows whose time was there before. not_finite: rows with a channel without number.
        pauses: (first sample after it, its seconds) of every pause of `PAUSE_SECONDS`.
    """

    clean: Clean
    labels: Column | None
    names: list[str | None]
    hz: float
    num_samples: int
    repeated: RowNumbers
    not_finite: RowNumbers
    pauses: list[tuple[int, float]]

    def parts(self) -> Iterator[tuple[int, int]]:
        """(first, last + 1) sample of every part between pauses."""
        return pairwise([0, *(first for first, _ in self.pauses), len(self.clean.seconds)])


def checked(chunks: Iterable[Samples], labels: Labels, scratch: Scratch) -> Checked:
    """Reads a recording to its end, and keeps it in `scratch`.

    Raises:
        BadRecording: if time goes back or is repeated too often, or from the chunks.
    """
    seconds, values, numbers = Column(scratch), Column(scratch), Column(scratch)
    increasing, steps, not_finite = Increasing(), Steps(), RowNumbers()
    count = 0

    def keep(done: Increased) -> None:
        seconds.append(done.seconds)
        values.append(done.values)
        steps.add(done.seconds)
        if done.labels is not None:
            numbers.append(done.labels)

    for chunk in chunks:
        found, bad = within_float32(chunk.values)
        not_finite.add(chunk.rows[bad])
        own = None if chunk.labels is None else labels.add(chunk.labels, chunk.rows)
        for done in increasing.add(Increased(chunk.seconds, found, own), chunk.rows):
            keep(done)
        count += len(chunk.rows)
    increasing.refuse()
    keep(increasing.last())
    return Checked(
        Clean(seconds, values),
        numbers if len(numbers) else None,
        labels.names,
        steps.hz(count),
        count,
        increasing.repeated,
        not_finite,
        steps.pauses,
    )


def within_float32(values: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Values (n, channels), NaN for those beyond float32, and (n,) bool: rows in which a channel has no number."""
    good = np.isfinite(values) if values.dtype == np.float32 else np.abs(values) <= _LARGEST
    if good.all():
        return values, np.zeros(len(values), bool)
    return np.where(good.T, values.T, values.dtype.type(np.nan)).T, ~good.all(axis=1)


@dataclass(frozen=True)
class Increased:
    """Samples whose times increase: seconds (n,) float64, values (n, channels), labels (n,) or none."""

    seconds: np.ndarray
    values: np.ndarray
    labels: np.ndarray | None

    def __getitem__(self, rows: slice) -> "Increased":
        return Increased(self.seconds[rows], self.values[rows], None if self.labels is None else self.labels[rows])


class Increasing:
    """Checks that time never goes back, and averages samples with equal time; their label is that of the first.

    Attributes:
        repeated: rows whose time is that of the row before.
    """

    def __init__(self) -> None:
        self.repeated = RowNumbers()
        self._back = RowNumbers()
        self._count = self._different = 0
        # The first sample of the newest time, which the next chunk may repeat; the sum of all so far, and their number.
        self._newest: Increased | None = None
        self._sum = np.zeros(0)
        self._together = 0

    def add(self, samples: Increased, rows: np.ndarray) -> list[Increased]:
        """Takes the next samples, whose times are not checked yet, and gives those whose time is complete."""
        steps = np.diff(samples.seconds, prepend=-np.inf if self._newest is None else self._newest.seconds)
        self._back.add(rows[steps < 0])
        self.repeated.add(rows[steps == 0])
        first = np.flatnonzero(steps != 0)
        self._count += len(steps)
        self._different += len(first)
        self._repeat(samples.values[: first[0] if len(first) else len(steps)])
        if not len(first):
            return []
        labels = None if samples.labels is None else samples.labels[first]
        new = Increased(samples.seconds[first], _means(samples.values, first), labels)
        done = [new[:-1]] if self._newest is None else [self.last(), new[:-1]]
        begin = int(first[-1])
        self._newest = samples[begin : begin + 1]
        self._sum, self._together = self._newest.values[0].astype(np.float64), 1
        self._repeat(samples.values[begin + 1 :])
        return done

    def _repeat(self, values: np.ndarray) -> None:
        """Takes samples (n, channels) of the newest time."""
        if len(values):
            self._sum = np.cumsum(np.vstack([self._sum, values]), axis=0)[-1]  # in their order, wherever chunks end
            self._together += len(values)

    def last(self) -> Increased:
        """The sample of the newest time."""
        assert self._newest is not None
        if self._together == 1:
            return self._newest
        return Increased(self._newest.seconds, (self._sum / self._together)[None], self._newest.labels)

    def refuse(self) -> None:
        """
        Raises:
            BadRecording: if time went back (with the rows), there were fewer than two times, or most were repeated.
        """
        if len(self._back):
            raise BadRecording(
                "time_goes_back", f"the time is earlier than in the row before, {shown_rows(self._back)}"
            )
        if self._different < 2:
            raise BadRecording(
                "too_short", f"{self._count} sample(s) with {self._different} different time(s); two are needed"
            )
        if len(self.repeated) > self._count / 2:
            raise BadRecording(
                "time_repeated",
                f"{len(self.repeated)} of {self._count} times are those of the row before, "
                f"{shown_rows(self.repeated)}; the clock is too coarse",
            )


def _means(values: np.ndarray, first: np.ndarray) -> np.ndarray:
    """Means (groups, channels) of rows (n, channels) that begin at `first`; rows before the first are no group's.

    float64 where there is something to average.
    """
    if len(first) == len(values):
        return values
    found = values.T[:, first].astype(np.float64)
    counts = np.diff(first, append=len(values))
    several = counts > 1
    group = np.repeat(np.arange(len(first)), counts)
    member = several[group]
    for k, column in enumerate(values.T[:, first[0] :]):
        sums = np.bincount(group[member], weights=column[member], minlength=len(first))
        found[k, several] = sums[several] / counts[several]
    return found.T


class Steps:
    """Rate of increasing stamps, and the pauses between them.

    The rate is the number of steps divided by the time they take, which jitter and stamps in bursts do not bias; steps
    of more than `_OUTLIER` median steps do not count. The median is that of the first `_TYPICAL_STEPS`.

    Attributes:
        pauses: (first sample after it, its seconds) of every step of more than `PAUSE_SECONDS`.
    """

    def __init__(self) -> None:
        self.pauses: list[tuple[int, float]] = []
        self._count = 0
        self._first = self._last = np.zeros(0)
        self._waiting: list[np.ndarray] = []  # steps that are to be compared with the median, once it is known
        self._longest: float | None = None
        self._unusual, self._left_out = 0, 0.0

    def add(self, seconds: np.ndarray) -> None:
        """Takes the next stamps (n,), increasing."""
        steps = np.diff(seconds, prepend=self._last)
        for k in np.flatnonzero(steps > PAUSE_SECONDS).tolist():
            self.pauses.append((self._count + k + len(seconds) - len(steps), float(steps[k])))
        if not self._count:
            self._first = seconds[:1]
        self._count += len(seconds)
        self._last = seconds[-1:] if len(seconds) else self._last
        self._waiting.append(steps)
        if self._longest is not None or self._count > _TYPICAL_STEPS:
            self._compare()

    def _compare(self) -> None:
        steps = np.concatenate([self._last[:0], *self._waiting])
        self._waiting = []
        if self._longest is None:
            self._longest = _OUTLIER * float(np.median(steps[:_TYPICAL_STEPS]))
        unusual = steps[steps > self._longest]
        self._unusual += len(unusual)
        self._left_out = float(np.cumsum(np.append(self._left_out, unusual))[-1])  # in their order, wherever chunks end

    def hz(self, num_samples: int) -> float:
        """Rate of `num_samples` samples before those with equal times were joined."""
        self._compare()
        usual = float(self._last[0] - self._first[0]) - self._left_out
        return (num_samples - 1 - self._unusual) / usual


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
