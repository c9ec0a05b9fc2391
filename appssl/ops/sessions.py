"""Recordings of a person that belong together, and their samples and labels on one clock."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from appssl.ops.recordings import Intervals, Recording, quoted
from appssl.ops.resample import GAP, MISSING, OK, Clean, nearest_samples, resample
from appssl.ops.windows import label_ticks

Span = tuple[float, float]


@dataclass(frozen=True)
class Usable:
    """A recording that passed all checks: times on its own clock, seconds; labels like times; its rate, Hz.

    `flags`: (n,) uint8 codes of `ops.resample` of samples that are there and are to be left out; null: none.
    """

    recording: Recording
    clean: Clean
    labels: list[str | None] | None
    hz: float
    flags: np.ndarray | None = None

    @property
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
class Clock:
    """Samples of a session on the clock origin + i / hz.

    Attributes:
        origin: seconds. values: (L, devices, channels) float32, NaN where not usable.
        codes: (L, devices) uint8 of `ops.resample`. anchor: first tick where every device of the session has begun.
    """

    origin: float
    values: np.ndarray
    codes: np.ndarray
    anchor: int


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


def on_one_clock(
    part: Sequence[Usable], devices: Sequence[str], num_channels: int, *, hz: float, max_gap: float
) -> Clock:
    """Resamples all recordings of a session. Ticks outside a device's recordings are MISSING, between them GAP."""
    origin = min(u.span[0] for u in part)
    length = int(np.floor(round((max(u.span[1] for u in part) - origin) * hz, 6))) + 1
    values = np.full((length, len(devices), num_channels), np.nan, np.float32)
    codes = np.full((length, len(devices)), MISSING, np.uint8)
    begins = []
    for d, device in enumerate(devices):
        edges: list[int] = []
        for u in part:
            if u.recording.device == device:
                first, found, code = resample(
                    u.clean.seconds - origin, u.clean.values, hz=hz, max_gap=max_gap, recorded_hz=u.hz
                )
                if u.flags is not None:
                    _flag(code, u.flags, (u.clean.seconds - origin) * hz - first)
                values[first : first + len(found), d], codes[first : first + len(found), d] = found, code
                edges += [first, first + len(found)]
        if edges:
            between = codes[min(edges) : max(edges), d]
            between[between == MISSING] = GAP
            begins.append(min(edges))
    return Clock(origin, values, codes, max(begins, default=0))


def _flag(codes: np.ndarray, flags: np.ndarray, ticks: np.ndarray) -> None:
    """Raises codes (m,) of ticks to those of flagged samples beside them, which lie at `ticks` (n,) float64."""
    for flag in np.unique(flags[flags != OK]):
        place = np.round(ticks[flags == flag], 6)
        for beside in (np.floor(place), np.ceil(place)):
            own = beside[(beside >= 0) & (beside < len(codes))].astype(np.int64)
            codes[own] = np.maximum(codes[own], flag)


def _of(intervals: Intervals, session: str | None) -> np.ndarray:
    """(n,) bool: intervals of this session, or that name none."""
    return np.array([s is None or session is None or quoted(s) == session for s in intervals.session], bool)


def meets(intervals: Intervals, part: Sequence[Usable], *, origin: float, seconds: float) -> np.ndarray:
    """(n,) bool: which intervals lie at least in part within a session of `seconds` from `origin`."""
    within = (intervals.start < origin + seconds) & (intervals.end > origin)
    return within & _of(intervals, part[0].recording.session)


def interval_labels(
    intervals: Intervals, session: str | None, *, origin: float, length: int, hz: float
) -> tuple[np.ndarray, list[str]]:
    """(length,) int64 label of every tick as a number in the names, -1 without.

    Args:
        session: intervals of other sessions are passed over; null: all count.
    """
    own = np.flatnonzero(_of(intervals, session))
    names = sorted({intervals.label[k] for k in own})
    number = [names.index(intervals.label[k]) for k in own]
    return label_ticks(intervals.start[own] - origin, intervals.end[own] - origin, number, length, hz), names


def sample_labels(
    part: Sequence[Usable], devices: Sequence[str], *, origin: float, length: int, hz: float
) -> tuple[np.ndarray, list[str]]:
    """As `interval_labels`, from labels per sample: the nearest sample of the first device that has a label there."""
    labels = np.full(length, -1, np.int64)
    names = sorted({label for u in part for label in u.labels or () if label is not None})
    position = {name: k for k, name in enumerate(names)}
    for u in sorted(part, key=lambda u: devices.index(u.recording.device)):
        if u.labels is None:
            continue
        seconds = u.clean.seconds - origin
        low, high = (int(np.clip(round(edge * hz), 0, length - 1)) for edge in (seconds[0], seconds[-1]))
        ticks = np.arange(low, high + 1)
        own = np.array([-1 if label is None else position[label] for label in u.labels], np.int64)
        own = own[nearest_samples(seconds, ticks / hz)]
        free = labels[ticks] < 0
        labels[ticks[free]] = own[free]
    return labels, names


def shown(span: Span) -> str:
    return f"{span[0]:.3f} to {span[1]:.3f} s"
