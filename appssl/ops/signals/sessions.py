"""Recordings of a person that belong together, and their samples and labels on one clock."""

from bisect import bisect_left, bisect_right
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from appssl.ops.signals import sample_store
from appssl.ops.signals.recording_labels import Intervals
from appssl.ops.signals.recordings import Recording, quoted
from appssl.ops.signals.resample import GAP, MISSING, OK, Clean, filter_factor, nearest_samples, resample, tick_span
from appssl.ops.signals.sample_store import Rows, slices
from appssl.ops.signals.windows import label_ticks, label_type

Span = tuple[float, float]


@dataclass(frozen=True)
class SampleLabels:
    """Labels of samples: (n,) int32 numbers in `names`, -1 without."""

    numbers: Rows
    names: Sequence[str | None]


@dataclass(frozen=True)
class Usable:
    """A recording, or a part of one, that passed all checks: times on its own clock, seconds; its rate, Hz.

    `flags`: (r, 3) first sample, last + 1, code of `ops.resample` of samples that are there and are to be left out;
    null: none. `is_whole`: whether every sample has a number in all channels.
    """

    recording: Recording
    clean: Clean
    labels: SampleLabels | None
    hz: float
    flags: np.ndarray | None = None
    is_whole: bool = False

    @cached_property
    def span(self) -> Span:
        return float(self.clean.seconds[0]), float(self.clean.seconds[-1])

    def meets(self, other: "Usable") -> bool:
        """Whether both were recorded at the same time, in the same session where sessions are named."""
        return (
            self.recording.session == other.recording.session
            and self.span[0] <= other.span[1]
            and other.span[0] <= self.span[1]
        )


@dataclass(frozen=True)
class Piece:
    """Samples of a session from tick `first` on.

    Attributes:
        values: (m, devices, channels) float32, NaN where not usable. codes: (m, devices) uint8 of `ops.resample`.
    """

    first: int
    values: np.ndarray
    codes: np.ndarray


@dataclass(frozen=True)
class Clock:
    """The clock of a session: ticks at origin + i / hz, i < length; its recordings, by device.

    Attributes:
        origin: seconds. anchor: first tick where every device of the session has begun. piece: ticks worked on at once.
    """

    origin: float
    hz: float
    length: int
    anchor: int
    piece: int
    parts: Sequence[Sequence[Usable]]


def collisions(usable: Sequence[Usable]) -> dict[str, str]:
    """Recordings of one device must not overlap: id of every one that does with an earlier one -> why it fails."""
    kept: list[Usable] = []
    refused: dict[str, str] = {}
    for u in sorted(usable, key=lambda u: (u.span, u.recording.id)):
        other = next((v for v in kept if v.recording.device == u.recording.device and v.meets(u)), None)
        if other is None:
            kept.append(u)
        else:
            refused[u.recording.id] = (
                f"{u.recording.device} was recording {other.recording.id} at the same time ({shown(other.span)}); "
                "give start_time, or session_id when times begin anew"
            )
    return refused


def never_meet(usable: Sequence[Usable]) -> bool:
    """Whether there are several devices, and no two of them were ever recorded at the same time."""
    pairs = [(u, v) for k, u in enumerate(usable) for v in usable[:k] if u.recording.device != v.recording.device]
    return bool(pairs) and not any(u.meets(v) for u, v in pairs)


def sessions(subject: str, usable: Sequence[Usable]) -> list[tuple[str, list[Usable]]]:
    """Name and recordings of every session: chains of recordings that overlap in time, in the order of their begin."""
    named: dict[str | None, list[Usable]] = {}
    for u in sorted(usable, key=lambda u: (u.recording.session or "", u.span, u.recording.id)):
        named.setdefault(u.recording.session, []).append(u)
    found = []
    for given, members in named.items():
        parts: list[list[Usable]] = []
        end = -np.inf
        for u in members:
            if u.span[0] > end:
                parts.append([])
            parts[-1].append(u)
            end = max(end, u.span[1])
        for k, part in enumerate(parts):
            number = f".{k + 1:04d}" if len(parts) > 1 else ""
            name = f"{k + 1:04d}" if given is None else f"{given}{number}"
            found.append((f"{quoted(subject)}/{name}", part))
    return found


def clock_of(part: Sequence[Usable], devices: Sequence[str], hz: float) -> Clock:
    """The clock of a session. It begins with the first sample."""
    origin = min(u.span[0] for u in part)
    length = int(np.floor(round((max(u.span[1] for u in part) - origin) * hz, 6))) + 1
    parts = [[u for u in part if u.recording.device == device] for device in devices]
    begins = [min(_ticks(u, origin, hz)[0] for u in own) for own in parts if own]
    piece = max(1, sample_store.CHUNK_ROWS // max(filter_factor(u.hz, hz) for u in part))
    return Clock(origin, hz, length, max(begins), piece, parts)


def _ticks(u: Usable, origin: float, hz: float) -> tuple[int, int]:
    return tick_span(u.span[0] - origin, u.span[1] - origin, hz)


def on_one_clock(clock: Clock, channels: list[int], *, max_gap: float) -> Iterator[Piece]:
    """Resamples some channels of all recordings of a session, piece by piece, as if its other channels were not there.

    Ticks outside a device's recordings are MISSING, between them GAP.
    """
    for first, end in slices(clock.length, clock.piece):
        values = np.full((end - first, len(clock.parts), len(channels)), np.nan, np.float32)
        codes = np.full((end - first, len(clock.parts)), MISSING, np.uint8)
        for d, own in enumerate(clock.parts):
            if own:
                spans = [_ticks(u, clock.origin, clock.hz) for u in own]
                begin, last = (
                    min(max(edge - first, 0), end - first) for edge in (min(spans)[0], max(b for _, b in spans))
                )
                codes[begin:last, d] = GAP
            for u in own:
                _place(u, clock, channels, max_gap, first, values[:, d], codes[:, d])
        yield Piece(first, values, codes)


def _place(
    u: Usable,
    clock: Clock,
    channels: list[int],
    max_gap: float,
    first: int,
    values: np.ndarray,
    codes: np.ndarray,
) -> None:
    """Writes a recording into values (m, channels) and codes (m,) of ticks from `first` on."""
    begin, found, code = resample(
        u.clean,
        hz=clock.hz,
        max_gap=max_gap,
        recorded_hz=u.hz,
        origin=clock.origin,
        ticks=(first, first + len(codes)),
        channels=channels,
    )
    if len(code):
        if u.flags is not None:
            _flag(code, *_flags_near(u, u.flags, clock, begin, begin + len(code)))
        own = slice(begin - first, begin - first + len(code))
        values[own], codes[own] = found, code


def _flags_near(u: Usable, runs: np.ndarray, clock: Clock, first: int, end: int) -> tuple[np.ndarray, np.ndarray]:
    """Codes (n,) uint8 of the samples around ticks first..end - 1, and their places (n,) in ticks from `first` on."""
    seconds = u.clean.seconds
    a = max(bisect_left(seconds, clock.origin + (first - 1) / clock.hz) - 1, 0)
    b = min(bisect_right(seconds, clock.origin + end / clock.hz) + 1, len(seconds))
    flags = np.full(b - a, OK, np.uint8)
    for begin, last, code in runs[(runs[:, 0] < b) & (runs[:, 1] > a)].tolist():
        own = flags[max(begin - a, 0) : last - a]
        np.maximum(own, code, out=own)
    return flags, (seconds[a:b] - clock.origin) * clock.hz - first


def _flag(codes: np.ndarray, flags: np.ndarray, ticks: np.ndarray) -> None:
    """Raises codes (m,) of ticks to those of flagged samples beside them, which lie at `ticks` (n,) float64."""
    for flag in np.unique(flags[flags != OK]):
        place = np.round(ticks[flags == flag], 6)
        for beside in (np.floor(place), np.ceil(place)):
            own = beside[(beside >= 0) & (beside < len(codes))].astype(np.int64)
            codes[own] = np.maximum(codes[own], flag)


def _of(intervals: Intervals, clock: Clock) -> np.ndarray:
    """(n,) bool: intervals of this session, or that name none; all where the session has no name."""
    name = next(u.recording.session for own in clock.parts for u in own)
    return np.array([s is None or name is None or quoted(s) == name for s in intervals.session], bool)


def meets(intervals: Intervals, clock: Clock) -> np.ndarray:
    """(n,) bool: which intervals lie at least in part within a session."""
    within = (intervals.start < clock.origin + clock.length / clock.hz) & (intervals.end > clock.origin)
    return within & _of(intervals, clock)


def interval_labels(intervals: Intervals, clock: Clock) -> tuple[np.ndarray, list[str]]:
    """(length,) integers: label of every tick as a number in the names, -1 without."""
    own = np.flatnonzero(_of(intervals, clock))
    names = sorted({intervals.label[k] for k in own})
    number = [names.index(intervals.label[k]) for k in own]
    start, end = (edge[own] - clock.origin for edge in (intervals.start, intervals.end))
    return label_ticks(start, end, number, clock.length, clock.hz), names


def sample_labels(clock: Clock) -> tuple[np.ndarray, list[str]]:
    """As `interval_labels`, from labels per sample: the nearest sample of the first device that has a label there."""
    part = [u for own in clock.parts for u in own]
    names = sorted({name for u in part if u.labels for name in u.labels.names if name is not None})
    found = np.full(clock.length, -1, label_type(len(names)))
    for u in part:
        if u.labels is not None:
            number = np.array([-1 if name is None else names.index(name) for name in u.labels.names] + [-1])
            low, high = (int(np.clip(round((edge - clock.origin) * clock.hz), 0, clock.length - 1)) for edge in u.span)
            for a, b in slices(high + 1 - low):
                own = found[low + a : low + b]
                ticks = np.arange(low + a, low + b) / clock.hz
                near = number[_nearest_labels(u.clean.seconds, u.labels.numbers, clock.origin, ticks)]
                np.copyto(own, near, where=own < 0, casting="same_kind")
    return found, names


def _nearest_labels(seconds: Rows, numbers: Rows, origin: float, ticks: np.ndarray) -> np.ndarray:
    """(m,) the number (n,) of the stamp (n,) nearest to each of increasing times since the origin."""
    b = min(bisect_left(seconds, origin + ticks[-1]) + 2, len(seconds))
    a = max(min(bisect_right(seconds, origin + ticks[0]), b) - 2, 0)
    found: np.ndarray = numbers[a:b][nearest_samples(seconds[a:b] - origin, ticks)]
    return found


def shown(span: Span) -> str:
    return f"{span[0]:.3f} to {span[1]:.3f} s"
