"""The clocks of the devices of a session compared with that of one of them, and corrected where that is asked for."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import polars as pl
from pydantic import Field

from appssl.ops.signals.clock_alignment import Alignment, MotionEnergy, align, vector_lengths
from appssl.ops.signals.sample_store import Column, Rows, Scratch, View
from appssl.ops.signals.sessions import Clock, Usable, on_one_clock
from appssl.settings import Settings

CLOCKS: dict[str, Any] = {
    "session": pl.String, "subject": pl.String, "device": pl.String, "reference": pl.String, "outcome": pl.String,
    "offset_seconds": pl.Float64, "drift_seconds_per_day": pl.Float64, "residual_seconds": pl.Float64,
    "num_blocks": pl.Int64, "num_used": pl.Int64, "block_seconds": pl.List(pl.Float64),
    "lag_seconds": pl.List(pl.Float64),
}  # fmt: skip

_NOTICEABLE_SECONDS = 0.1


class Clocks(Settings):
    """Comparing the clocks of devices: offset and drift from the motion of the body that wears them."""

    compare: bool = Field(True, description="estimate offset and drift of every device of a session, and report them")
    correct: bool = Field(False, description="correct the times of the devices by what was estimated")
    reference: str | None = Field(None, description="device whose clock counts; null: the first that is there")
    block_seconds: float = Field(300.0, gt=0, description="length of the stretches that are compared, seconds")
    max_offset_seconds: float = Field(30.0, gt=0, description="largest difference that is looked for, seconds")


def compared(
    part: Sequence[Usable],
    lengths: Mapping[str, Rows],
    settings: Clocks,
    *,
    hz: float,
    max_residual: float,
) -> tuple[list[Usable], list[dict[str, Any]]]:
    """
    Args:
        part: the recordings of a session. lengths: of the acceleration (n,) of each of its devices, in their order, at
            every tick of a clock of `hz` that begins with the session; NaN where there is none.
        max_residual: seconds; a clock that a line describes less well is not corrected.
    Returns:
        The recordings, on the clock of the reference where `correct` is set, and a row (columns of CLOCKS, without
        session and subject) for each other device. Its `outcome` is `estimated`, `corrected`, `unclear` (the residual
        is too large) or `not_estimated` (too short, or too little motion in common).
    """
    if not settings.compare or len(lengths) < 2:
        return list(part), []
    reference = next((device for device in lengths if device == settings.reference), next(iter(lengths)))
    others = [device for device in lengths if device != reference]
    if len(lengths[reference]) / hz < settings.block_seconds:
        return list(part), [_row(device, reference, None, "not_estimated") for device in others]
    origin = min(u.span[0] for u in part)
    first = MotionEnergy(lengths[reference], hz)
    result, rows = [u for u in part if u.recording.device == reference], []
    for device in others:
        own = [u for u in part if u.recording.device == device]
        found = align(
            first,
            MotionEnergy(lengths[device], hz),
            hz=hz,
            block_seconds=settings.block_seconds,
            max_lag_seconds=settings.max_offset_seconds,
        )
        outcome = "not_estimated" if found is None else "unclear" if found.residual > max_residual else "estimated"
        if found is not None and outcome == "estimated" and settings.correct:
            own, outcome = [_on_first_clock(u, found, origin) for u in own], "corrected"
        result += own
        rows.append(_row(device, reference, found, outcome))
    return result, rows


class Lengths:
    """Lengths of the acceleration of all devices of a session at the ticks of its clock, kept in a scratch."""

    def __init__(self, clock: Clock, acceleration: Sequence[int], scratch: Scratch) -> None:
        """`acceleration`: channels x, y, z."""
        self._acceleration = list(acceleration)
        self._columns = [Column(scratch) if own else None for own in clock.parts]

    def add(self, values: np.ndarray) -> None:
        """Takes the next ticks: (m, devices, channels), NaN where there is nothing."""
        for d, column in enumerate(self._columns):
            if column is not None:
                column.append(vector_lengths(values[:, d, self._acceleration]))

    def by_device(self, devices: Sequence[str]) -> dict[str, Column]:
        """(n,) float64 of every device that has a recording."""
        named = zip(devices, self._columns, strict=True)
        return {device: column for device, column in named if column is not None}


def measured_lengths(clock: Clock, acceleration: Sequence[int], scratch: Scratch, max_gap: float) -> Lengths:
    """Lengths by a pass of their own, in which only the acceleration needs numbers."""
    found = Lengths(clock, range(3), scratch)
    for piece in on_one_clock(clock, list(acceleration), max_gap=max_gap):
        found.add(piece.values)
    return found


def _on_first_clock(u: Usable, found: Alignment, origin: float) -> Usable:
    seconds = u.clean.seconds
    shown = View(seconds, 0, len(seconds), lambda own: found.on_first_clock(own - origin) + origin)
    return replace(u, clean=replace(u.clean, seconds=shown))


def _row(device: str, reference: str, found: Alignment | None, outcome: str) -> dict[str, Any]:
    row: dict[str, Any] = {"device": device, "reference": reference, "outcome": outcome}
    if found is not None:
        row |= {
            "offset_seconds": found.offset,
            "drift_seconds_per_day": found.drift_per_day,
            "residual_seconds": found.residual,
            "num_blocks": found.num_blocks,
            "num_used": found.num_used,
            "block_seconds": found.times.tolist(),
            "lag_seconds": found.lags.tolist(),
        }
    return row


def clocks_differ(clocks: pl.DataFrame) -> str:
    """A warning for the report if clocks that were not corrected differ noticeably; else empty."""
    own = clocks.filter(pl.col("outcome") == "estimated")
    largest: dict[str, float] = {}
    for session, lags in own.select("session", "lag_seconds").iter_rows():
        largest[session] = max(largest.get(session, 0.0), *map(abs, lags))
    wrong = [lag for lag in largest.values() if lag > _NOTICEABLE_SECONDS]
    if not wrong:
        return ""
    return (
        f"The clocks of devices of one person differ by up to {max(wrong):.2f} s in {len(wrong)} of "
        f"{clocks['session'].n_unique()} compared sessions, and were taken at their word. clocks.parquet has all; "
        "data.source.clocks.correct: true corrects them."
    )
