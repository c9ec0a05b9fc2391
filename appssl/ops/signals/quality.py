"""What the samples of a recording say of its sensor: saturated or constant channels, times not worn, units.

Everything is flagged and nothing is changed. Acceleration is the first vector (channels `*_x, *_y, *_z`) whose name
says so, or the first of all where no name says anything; angular velocity is one whose name says so.

*Not worn*: every axis of the acceleration has a standard deviation below `still_mg` thousandths of gravity in each
block, for `minutes` on end. Gravity is the length of the block's mean, so that the unit does not matter; where gravity
was taken off the acceleration, only a sensor that shows the same number all the time counts as still.
Source: Doherty et al., PLoS ONE 12(2), 2017, e0169649: 13 mg in all axes for at least 60 minutes. Deviations: blocks of
60 s instead of 10 s.

*At rest* is a block of `REST_SECONDS` with the same limit; the median length of their means is gravity, which says the
unit. *Saturated* is what `ops/signals/saturation.py` states.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import polars as pl
from pydantic import Field

from appssl.ops.signals.channels import vectors
from appssl.ops.signals.resample import NON_WEAR, SATURATED
from appssl.ops.signals.rest import BlockSums, at_rest, not_worn, rest_seconds
from appssl.ops.signals.sample_store import Rows, slices
from appssl.ops.signals.saturation import Extremes, fresh, runs_at
from appssl.settings import Settings

QUALITY: dict[str, Any] = {
    "saturated": pl.String, "constant": pl.String, "non_wear": pl.String, "non_wear_seconds": pl.Float64,
    "gravity": pl.Float64, "acc_unit": pl.String, "gyro_p99": pl.Float64, "gyro_unit": pl.String,
}  # fmt: skip

LARGEST_RAD = 50.0  # radians per second that no limb keeps up for 1 % of the time
_UNITS = {"g": 1.0, "m/s2": 9.80665, "cm/s2 or mg": 990.0, "mm/s2": 9806.65}  # what gravity is in each
_UNIT_TOLERANCE = 0.15  # sensors that were never calibrated show gravity that well

Flagged = Literal["non_wear", "saturated"]


class Wear(Settings):
    """Times when a device was not worn, and samples at the limit of its sensor."""

    still_mg: float = Field(
        13.0, gt=0, lt=1000, description="standard deviation of a device at rest, 1/1000 of gravity"
    )
    block_seconds: float = Field(60.0, gt=0, le=3600, description="stretch over which it is taken, seconds")
    minutes: float = Field(60.0, gt=0, description="shortest time at rest that counts as not worn, minutes")
    saturated_run: int = Field(3, ge=2, description="samples on end at the limit of a sensor that count as saturated")
    leave_out: tuple[Flagged, ...] = Field(
        ("non_wear",), description="windows that touch non_wear, saturated are left out; they are flagged in any case"
    )


@dataclass(frozen=True)
class Quality:
    """
    Attributes:
        flags: (r, 3) int64: first sample, last + 1, code of `ops.resample` of samples that are to be left out.
        row: columns of QUALITY.
    """

    flags: np.ndarray
    row: dict[str, Any]


def quality(seconds: Rows, values: Rows, channels: Sequence[str], hz: float, wear: Wear) -> Quality:
    """
    Args:
        seconds: (n,) float64, increasing. values: (n, channels), NaN where there is no number.
    """
    acc, gyro = acceleration(channels), angular_velocity(channels)
    extremes = [Extremes() for _ in channels]
    worn, rest = BlockSums(wear.block_seconds), BlockSums(rest_seconds(hz))
    rotations = Percentile(99, len(seconds))
    for begin, part, is_fresh in _chunks(values):
        for own, column in zip(extremes, part.T, strict=True):
            own.add(column, is_fresh)
        if acc:
            position, motion = _finite(part.T[acc].T)
            times = seconds[begin : begin + len(part)][position]
            for blocks in (worn, rest):
                blocks.add(begin + position, times, motion)
        if gyro:
            x, y, z = _finite(part.T[gyro].T)[1].T
            rotations.add(x * x + y * y + z * z)
    limits = {name: _saturated(values, k, extremes[k], wear.saturated_run) for k, name in enumerate(channels)}
    still = not_worn(worn.blocks(), hz, wear.still_mg, wear.minutes)
    flags = [(a, b, SATURATED) for runs in limits.values() for a, b in runs if "saturated" in wear.leave_out]
    flags += [(a, b, NON_WEAR) for a, b, _ in still if "non_wear" in wear.leave_out]
    resting = float(sum(lasted for _, _, lasted in still))
    row = {
        "saturated": ", ".join(f"{name} {sum(b - a for a, b in runs)}" for name, runs in limits.items() if runs),
        "constant": ", ".join(name for name, own in zip(channels, extremes, strict=True) if own.is_constant),
        "non_wear": f"{len(still)}, together {resting / 60:.0f} min" if still else "",
        "non_wear_seconds": resting,
        **_units(at_rest(rest.blocks(), hz, wear.still_mg), rotations.root()),
    }
    return Quality(np.array(flags, np.int64).reshape(-1, 3), row)


def _units(gravity: float | None, fast: float | None) -> dict[str, Any]:
    """Columns of QUALITY. `fast`: 99th percentile of the angular velocity."""
    return {
        "gravity": gravity,
        "acc_unit": None if gravity is None else unit_of(gravity),
        "gyro_p99": fast,
        "gyro_unit": "degrees/s" if fast is not None and fast > LARGEST_RAD else None,
    }


def _chunks(values: Rows) -> Iterator[tuple[int, np.ndarray, np.ndarray]]:
    """First row, values (n, channels), and which of them are fresh (n,), of every chunk of a recording."""
    before = values[:0]
    for a, b in slices(len(values)):
        part = values[a:b]
        yield a, part, fresh(part, before)
        before = part[-1:]


def _finite(vectors: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Positions of the vectors (n, 3) that have all numbers, and they, float64."""
    good = np.isfinite(vectors).all(axis=1)
    whole = vectors if good.all() else vectors.T[:, good].T
    return np.flatnonzero(good), whole.astype(np.float64)


def _saturated(values: Rows, channel: int, extremes: Extremes, shortest: int) -> list[tuple[int, int]]:
    """(first, last + 1) of runs at the limits of the sensor."""
    return [
        run
        for limit in extremes.limits(shortest)
        for run in runs_at(limit, ((part[:, channel], is_fresh) for _, part, is_fresh in _chunks(values)), shortest)
    ]


class Percentile:
    """A high percentile of up to `most` lengths, whose squares come in chunks; keeps those that may be above it."""

    def __init__(self, percent: float, most: int) -> None:
        self._percent = percent
        self._size = most - int(percent / 100 * (most - 1)) + 1
        self._count = 0
        self._largest = np.zeros(0)
        self._least = -np.inf  # smaller numbers cannot matter

    def add(self, numbers: np.ndarray) -> None:
        self._count += len(numbers)
        self._largest = np.concatenate([self._largest, numbers[numbers >= self._least]])
        if len(self._largest) > 2 * self._size:
            self._largest = np.partition(self._largest, -self._size)[-self._size :]
            self._least = float(self._largest.min())

    def root(self) -> float | None:
        """That of the square roots, as of `np.percentile`; None without a number."""
        if not self._count:
            return None
        place = self._percent / 100 * (self._count - 1) - (self._count - len(self._largest))
        below = int(place)
        found = np.sqrt(np.sort(self._largest)[below : below + 2])
        return float(found[0] + (place - below) * (found[-1] - found[0]))


def acceleration(channels: Sequence[str]) -> list[int]:
    """Channels x, y, z of the acceleration; empty if there are none."""
    named = _named(channels, ("acc",))
    without_gravity = _named(channels, ("lin", "user"))
    others = _named(channels, ("gyr", "rot", "ang", "mag", "ori", "euler", "quat"))
    candidates = [
        *(v for v in named if v not in without_gravity),
        *named,
        *(v for v in vectors(list(channels)).tolist() if v not in others),
    ]
    return next(iter(candidates), [])


def angular_velocity(channels: Sequence[str]) -> list[int]:
    found = _named(channels, ("gyr",))
    return found[0] if found else []


def _named(channels: Sequence[str], words: Sequence[str]) -> list[list[int]]:
    return [v for v in vectors(list(channels)).tolist() if any(word in channels[v[0]].lower() for word in words)]


def unit_of(gravity: float) -> str:
    """Unit of an acceleration whose length at rest is `gravity`: g, m/s2, cm/s2 or mg, mm/s2, or `unclear`."""
    return next((unit for unit, own in _UNITS.items() if abs(gravity / own - 1) <= _UNIT_TOLERANCE), "unclear")
