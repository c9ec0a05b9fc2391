"""The clocks of the devices of a session compared with that of one of them, and corrected where that is asked for."""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import polars as pl
from pydantic import Field

from appssl.ops.clock_alignment import Alignment, align, motion_energy
from appssl.ops.resample import resample
from appssl.ops.sessions import Usable
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
    devices: Sequence[str],
    acceleration: Sequence[int],
    settings: Clocks,
    *,
    hz: float,
    max_gap: float,
    max_residual: float,
) -> tuple[list[Usable], list[dict[str, Any]]]:
    """
    Args:
        part: the recordings of a session. devices: in their order. acceleration: channels x, y, z.
        max_residual: seconds; a clock that a line describes less well is not corrected.
    Returns:
        The recordings, on the clock of the reference where `correct` is set, and a row (columns of CLOCKS, without
        session and subject) for each other device. Its `outcome` is `estimated`, `corrected`, `unclear` (the residual
        is too large) or `not_estimated` (too short, or too little motion in common).
    """
    there = [device for device in devices if any(u.recording.device == device for u in part)]
    if not settings.compare or len(there) < 2 or len(acceleration) != 3:
        return list(part), []
    reference = settings.reference if settings.reference in there else there[0]
    origin = min(u.span[0] for u in part)
    length = int((max(u.span[1] for u in part) - origin) * hz) + 1
    if length / hz < settings.block_seconds:
        nothing = [_row(device, reference, None, "not_estimated") for device in there if device != reference]
        return list(part), nothing

    def energy(device: str) -> np.ndarray:
        own = [u for u in part if u.recording.device == device]
        return _energy(own, acceleration, origin=origin, length=length, hz=hz, max_gap=max_gap)

    first = energy(reference)
    result, rows = [u for u in part if u.recording.device == reference], []
    for device in there:
        if device == reference:
            continue
        own = [u for u in part if u.recording.device == device]
        found = align(
            first,
            energy(device),
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


def _energy(
    own: Sequence[Usable], acceleration: Sequence[int], *, origin: float, length: int, hz: float, max_gap: float
) -> np.ndarray:
    """Motion energy (length,) of a device on a grid of its own clock, NaN where it was not recording."""
    signal = np.full((length, 3), np.nan, np.float32)
    for u in own:
        values = u.clean.values[:, list(acceleration)]
        first, found, _ = resample(u.clean.seconds - origin, values, hz=hz, max_gap=max_gap, recorded_hz=u.hz)
        signal[first : first + len(found)] = found[: length - first]
    return motion_energy(signal, hz)


def _on_first_clock(u: Usable, found: Alignment, origin: float) -> Usable:
    return replace(u, clean=replace(u.clean, seconds=found.on_first_clock(u.clean.seconds - origin) + origin))


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
