"""What the samples of a recording say of its sensor: saturated or constant channels, times not worn, units.

Everything is flagged and nothing is changed. Acceleration is the first vector (channels `*_x, *_y, *_z`) whose name
says so, or the first of all where no name says anything; angular velocity is one whose name says so.

*Not worn*: every axis of the acceleration has a standard deviation below `still_mg` thousandths of gravity in each
block, for `minutes` on end. Gravity is the length of the block's mean, so that the unit does not matter; where gravity
was taken off the acceleration, only a sensor that shows the same number all the time counts as still.
Source: Doherty et al., PLoS ONE 12(2), 2017, e0169649: 13 mg in all axes for at least 60 minutes. Deviations: blocks of
60 s instead of 10 s.

*At rest* is a block of `REST_SECONDS` with the same limit; the median length of their means is gravity, which says the
unit.

*Saturated*: at least `saturated_run` samples on end at the largest or smallest value of the recording, where that value
is the limit of the sensor: it has piled up `_PILED` times as many samples as the value next to it, at least `_LEVELS`
different values lie between it and the median, and it is above zero if it is the largest and below if it is the
smallest. A posture or a rounded quiet signal does not look like that. A row that repeats the one before in all channels
is a held sample, and is not counted again.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, Literal

import numpy as np
import polars as pl
from pydantic import Field

from appssl.ops.channels import vectors
from appssl.ops.resample import NON_WEAR, OK, SATURATED
from appssl.settings import Settings

QUALITY: dict[str, Any] = {
    "saturated": pl.String, "constant": pl.String, "non_wear": pl.String, "non_wear_seconds": pl.Float64,
    "gravity": pl.Float64, "acc_unit": pl.String, "gyro_p99": pl.Float64, "gyro_unit": pl.String,
}  # fmt: skip

REST_SECONDS = 2.0
_REST_SAMPLES = 8  # at least, where the rate is low
_COVERED = 0.5  # share of a block that must have samples
_UNITS = {"g": 1.0, "m/s2": 9.80665, "cm/s2 or mg": 990.0, "mm/s2": 9806.65}  # what gravity is in each
_UNIT_TOLERANCE = 0.15  # sensors that were never calibrated show gravity that well
_LARGEST_RAD = 50.0  # radians per second that no limb keeps up for 1 % of the time
_OTHER_UNIT = 20.0  # ratio of angular velocities of two people from which their units differ; degrees are 57 times more
_PILED, _LEVELS = 3, 16
_TELLING = 3  # channels that rarely repeat all their values at once by themselves
_ROUNDING = 1e-9  # of a mean, by which equal numbers differ from it
_SHOWN = 5  # names in a message

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
        codes: (n,) uint8 of `ops.resample`, a sample's reason to be left out, or OK.
        row: columns of QUALITY.
    """

    codes: np.ndarray
    row: dict[str, Any]


def quality(seconds: np.ndarray, values: np.ndarray, channels: Sequence[str], hz: float, wear: Wear) -> Quality:
    """
    Args:
        seconds: (n,) float64, increasing. values: (n, channels) float64, NaN where there is no number.
    """
    fresh = _fresh(values)
    told = np.cumsum(fresh) - 1  # number among the fresh rows of the row that each one repeats
    found = {
        name: flags[told]
        for k, name in enumerate(channels)
        if (flags := saturated(values[fresh, k], wear.saturated_run)).any()
    }
    acc, gyro = acceleration(channels), angular_velocity(channels)
    still = not_worn(seconds, values[:, acc], hz, wear) if acc else []
    gravity = at_rest(seconds, values[:, acc], hz, wear.still_mg) if acc else None
    fast = _p99(values[:, gyro]) if gyro else None
    codes = np.full(len(seconds), OK, np.uint8)
    if "saturated" in wear.leave_out:
        for flags in found.values():
            codes[flags] = SATURATED
    if "non_wear" in wear.leave_out:
        for a, b in still:
            codes[a:b] = NON_WEAR
    resting = float(sum(seconds[b - 1] - seconds[a] for a, b in still))
    row = {
        "saturated": ", ".join(f"{name} {int(flags.sum())}" for name, flags in found.items()),
        "constant": ", ".join(name for k, name in enumerate(channels) if _constant(values[:, k])),
        "non_wear": f"{len(still)}, together {resting / 60:.0f} min" if still else "",
        "non_wear_seconds": resting,
        "gravity": gravity,
        "acc_unit": None if gravity is None else unit_of(gravity),
        "gyro_p99": fast,
        "gyro_unit": "degrees/s" if fast is not None and fast > _LARGEST_RAD else None,
    }
    return Quality(codes, row)


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


# Samples of one channel


def _fresh(values: np.ndarray) -> np.ndarray:
    """(n,) bool: rows that differ from the one before; all where too few channels can tell."""
    fresh = np.ones(len(values), bool)
    if values.shape[1] >= _TELLING:
        fresh[1:] = (values[1:] != values[:-1]).any(axis=1)
    return fresh


def _constant(values: np.ndarray) -> bool:
    known = values[np.isfinite(values)]
    return len(known) > 0 and known.min() == known.max()


def saturated(values: np.ndarray, shortest: int) -> np.ndarray:
    """(n,) bool: samples of a channel (n,) in runs of at least `shortest` at the limit of the sensor; see above."""
    flags = np.zeros(len(values), bool)
    known = values[np.isfinite(values)]
    if len(known) == 0 or known.min() == known.max():
        return flags
    for sign in (1, -1):
        limit = (sign * known).max()
        at = sign * values == limit
        if limit > 0 and at.sum() >= shortest and _is_limit(sign * known):
            flags |= _in_runs(at, shortest)
    return flags


def _is_limit(known: np.ndarray) -> bool:
    """Whether the largest value of (n,) numbers is where the sensor ends."""
    levels, counts = np.unique(known, return_counts=True)
    return bool(counts[-1] >= _PILED * counts[-2] and (levels > np.median(known)).sum() > _LEVELS)


def _in_runs(flags: np.ndarray, shortest: int) -> np.ndarray:
    """Those of the flags (n,) bool that lie in runs of at least `shortest`."""
    kept = np.zeros(len(flags), bool)
    for a, b in _runs(flags):
        if b - a >= shortest:
            kept[a:b] = True
    return kept


def _runs(flags: np.ndarray) -> list[tuple[int, int]]:
    """(first, last + 1) of every run of flags that are set."""
    edges = np.flatnonzero(np.diff(np.concatenate([[False], flags, [False]])))
    return [(int(a), int(b)) for a, b in edges.reshape(-1, 2)]


# Rest


@dataclass(frozen=True)
class _Blocks:
    """Blocks that have samples: number from the first on, first sample, samples, length of the mean, whether still."""

    number: np.ndarray
    first: np.ndarray
    count: np.ndarray
    gravity: np.ndarray
    still: np.ndarray


def _blocks(seconds: np.ndarray, values: np.ndarray, hz: float, length: float, still_mg: float) -> _Blocks:
    number = np.floor((seconds - seconds[0]) / length).astype(np.int64)
    first = np.flatnonzero(np.diff(number, prepend=-1))
    count = np.diff(np.append(first, len(seconds)))
    mean = np.add.reduceat(values, first) / count[:, None]
    spread = np.add.reduceat((values - np.repeat(mean, count, axis=0)) ** 2, first) / count[:, None]
    gravity = np.linalg.norm(mean, axis=1)
    limit = np.maximum(still_mg / 1000, _ROUNDING) * gravity
    still = (np.sqrt(spread).max(axis=1) <= limit) & (count >= _COVERED * length * hz)
    return _Blocks(number[first], first, count, gravity, still)


def not_worn(seconds: np.ndarray, values: np.ndarray, hz: float, wear: Wear) -> list[tuple[int, int]]:
    """(first, last + 1) sample of every time without motion; its edges are those of blocks.

    Args:
        values: (n, 3) acceleration in any unit; NaN where there is no number.
    """
    good = np.flatnonzero(np.isfinite(values).all(axis=1))
    if len(good) < 2:
        return []
    blocks = _blocks(seconds[good], values[good], hz, wear.block_seconds, wear.still_mg)
    cuts = np.diff(blocks.number, prepend=-1) != 1  # a block without samples lies between
    found = []
    for a, b in _runs(blocks.still):
        begins = [a, *(k for k in range(a + 1, b) if cuts[k]), b]
        for low, high in pairwise(begins):
            if (high - low) * wear.block_seconds >= wear.minutes * 60:
                last = blocks.first[high - 1] + blocks.count[high - 1] - 1
                found.append((int(good[blocks.first[low]]), int(good[last]) + 1))
    return found


def at_rest(seconds: np.ndarray, values: np.ndarray, hz: float, still_mg: float) -> float | None:
    """Median length of the acceleration (n, 3) at rest, which is gravity; None where it was never at rest."""
    good = np.isfinite(values).all(axis=1)
    if good.sum() < _REST_SAMPLES:
        return None
    length = max(REST_SECONDS, _REST_SAMPLES / hz)
    blocks = _blocks(seconds[good], values[good], hz, length, still_mg)
    resting = blocks.gravity[blocks.still & (blocks.gravity > 0)]
    return float(np.median(resting)) if len(resting) else None


def unit_of(gravity: float) -> str:
    """Unit of an acceleration whose length at rest is `gravity`: g, m/s2, cm/s2 or mg, mm/s2, or `unclear`."""
    return next((unit for unit, own in _UNITS.items() if abs(gravity / own - 1) <= _UNIT_TOLERANCE), "unclear")


def _p99(values: np.ndarray) -> float | None:
    """99th percentile of the length of vectors (n, 3)."""
    lengths = np.linalg.norm(values[np.isfinite(values).all(axis=1)], axis=1)
    return float(np.percentile(lengths, 99)) if len(lengths) else None


# All recordings


def units_differ(recordings: pl.DataFrame) -> list[str]:
    """Warnings for the report where subjects have one kind of device in several units.

    Args:
        recordings: columns subject, device, outcome and those of QUALITY.
    """
    own = recordings.filter(pl.col("outcome") == "kept").sort("device", "subject")
    found = []
    for device in own["device"].unique(maintain_order=True):
        part = own.filter(device=device)
        found += [_acceleration_differs(device, part), _rotation_differs(device, part)]
    return [text for text in found if text]


def _acceleration_differs(device: str, part: pl.DataFrame) -> str:
    known = part.filter(pl.col("acc_unit").is_not_null())
    if known["acc_unit"].n_unique() < 2:
        return ""
    groups = []
    for unit in known["acc_unit"].unique(maintain_order=True):
        rows = known.filter(acc_unit=unit)
        groups.append(f"{_median(rows['gravity']):.4g} ({unit}) in {_named_subjects(rows['subject'])}")
    return (
        f"Units of the acceleration differ between recordings of device {device}: at rest its length is "
        f"{'; '.join(groups)}. A model would learn the unit in place of the motion. Bring all recordings to one unit "
        "and prepare again; recordings.parquet has gravity and acc_unit of each."
    )


def _rotation_differs(device: str, part: pl.DataFrame) -> str:
    known = part.filter(pl.col("gyro_p99") > 0).group_by("subject", maintain_order=True).agg(pl.col("gyro_p99").max())
    fast = known.filter(pl.col("gyro_p99") > _LARGEST_RAD)
    slow = known.filter(pl.col("gyro_p99") * _OTHER_UNIT < _median(fast["gyro_p99"]))
    if fast.is_empty() or slow.is_empty():
        return ""
    return (
        f"Units of the angular velocity seem to differ between subjects for device {device}: its 99th percentile is "
        f"{_median(fast['gyro_p99']):.4g} in {_named_subjects(fast['subject'])}, as in degrees/s, and "
        f"{_median(slow['gyro_p99']):.3g} in {_named_subjects(slow['subject'])}, as in rad/s. Bring all recordings to "
        "one unit and prepare again, unless those subjects hardly moved."
    )


def _median(numbers: pl.Series) -> float:
    """0 of none."""
    return float(np.median(numbers.to_numpy())) if len(numbers) else 0.0


def _named_subjects(subjects: pl.Series) -> str:
    names = subjects.unique(maintain_order=True).to_list()
    more = f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else ""
    return f"{len(names)} subject(s): {', '.join(names[:_SHOWN])}{more}"


def noted(recordings: pl.DataFrame) -> str:
    """How many recordings have which notes, as a sentence; empty without any."""
    own = recordings.filter(pl.col("outcome") == "kept")
    counts = {
        text: own.filter(pl.col(column).is_not_null() & (pl.col(column) != "")).height
        for column, text in (("non_wear", "not worn"), ("saturated", "saturated"), ("constant", "constant channels"))
    }
    counts["unit of acceleration unclear"] = own.filter(pl.col("acc_unit") == "unclear").height
    named = [f"{count} {text}" for text, count in counts.items() if count]
    return f"Recordings with notes, of {len(own)}: {', '.join(named)}; see recordings.parquet." if named else ""
