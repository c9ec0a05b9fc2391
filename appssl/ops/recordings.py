"""Reading of sensor recordings: times, channels and labels from a table, each fault named by row and column.

Rows are numbered from 1, the header not counted. A fault of one recording raises `BadRecording`; it never stops others.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import polars as pl
from pydantic import Field

from appssl.errors import DataError
from appssl.ops.resample import average_repeated, estimate_rate
from appssl.settings import Settings

ROW = "__row__"  # row number in the file
SHOWN = 20  # bad rows named in a message
_MISSING_WORDS = ["", "na", "nan", "null", "none"]  # text that means: no value
_LATEST_SECONDS = 1e11  # the year 5138; a larger number is in milliseconds
_FORMATS = (".csv", ".parquet")


class Columns(Settings):
    """Names of columns in the table of recordings and in the recordings, or in the long table."""

    recording: str = Field("recording_id", description="table of recordings: unique id")
    subject: str = Field("subject_id", description="who wears the devices")
    device: str | None = Field("device", description="device or place on the body; null in a wide table")
    path: str = Field("path", description="table of recordings: CSV or Parquet file, relative to data.root")
    sampling_hz: str = Field("sampling_hz", description="table of recordings, if there: stated rate, Hz")
    start_time: str = Field("start_time", description="table of recordings, if there: added to the times of the file")
    session: tuple[str, ...] = Field((), description="what bounds a session beside the subject: activity, day, execution")
    time: str | None = Field("time", description="time of a sample; null: the rows are in order, at the stated rate")
    order: tuple[str, ...] = Field((), description="long table without time: columns that order the rows of a session")
    label: str | None = Field(None, description="label of a sample")
    split: str | None = Field(None, description="part of a subject: train, val or test; null: divided by `split`")


class BadRecording(Exception):
    """A recording that cannot be used: short reason, as counted, and what is wrong where."""

    def __init__(self, reason: str, detail: str) -> None:
        self.reason, self.detail = reason, detail
        super().__init__(f"{reason}: {detail}")


@dataclass(frozen=True)
class Recording:
    """times (n,) float64 s, increasing; values (n, C) float32, NaN where missing; labels (n,) text or null, or None."""

    times: np.ndarray
    values: np.ndarray
    labels: pl.Series | None
    rate: float
    num_missing: int
    num_repeated: int


def read_table(path: Path, columns: Sequence[str] | None = None) -> pl.DataFrame:
    """A CSV (all columns as text) or Parquet file.

    Args:
        columns: read only these, as far as they exist.
    Raises:
        DataError: if it is missing, unreadable or of another format.
    """
    if path.suffix.lower() not in _FORMATS:
        raise DataError(f"{path}: is neither .csv nor .parquet.")
    try:
        if path.suffix.lower() == ".parquet":
            known = pl.read_parquet_schema(path)
            return pl.read_parquet(path, columns=None if columns is None else [c for c in known if c in columns])
        if path.stat().st_size == 0:
            return pl.DataFrame()
        frame = pl.read_csv(path, infer_schema=False, missing_utf8_is_empty_string=True)
    except FileNotFoundError:
        raise DataError(f"{path}: no such file.") from None
    except (OSError, pl.exceptions.PolarsError) as error:
        raise DataError(f"{path}: cannot be read: {str(error).splitlines()[0]}") from None
    return frame if columns is None else frame.select([c for c in frame.columns if c in columns])


def named(rows: Iterable[int]) -> str:
    """`rows 3, 7, 9`, at most 20 of them."""
    every = list(rows)
    more = f" and {len(every) - SHOWN} more" if len(every) > SHOWN else ""
    return f"row{'s' if len(every) > 1 else ''} {', '.join(map(str, every[:SHOWN]))}{more}"


def as_numbers(column: pl.Series) -> tuple[np.ndarray, np.ndarray]:
    """(n,) float64, NaN where there is no value; and (n,) bool: text that is no number."""
    if column.dtype != pl.String:
        numbers = column.cast(pl.Float64, strict=False)
        return numbers.fill_null(np.nan).to_numpy(), np.zeros(len(column), bool)
    text = column.str.strip_chars()
    numbers = text.cast(pl.Float64, strict=False)
    empty = text.is_null() | text.str.to_lowercase().is_in(_MISSING_WORDS)
    return numbers.fill_null(np.nan).to_numpy(), (numbers.is_null() & ~empty).to_numpy()


def as_seconds(column: pl.Series, time_unit: str) -> tuple[np.ndarray, np.ndarray]:
    """Times as float64 seconds (Unix time for dates), NaN where there is none; and (n,) bool: no time, but text.

    Args:
        column: numbers in `time_unit` (s or ms), dates, or ISO 8601 text; times without zone are taken as UTC.
    """
    if column.dtype.is_temporal():
        return _seconds_of(column.cast(pl.Datetime("us"), strict=False)), np.zeros(len(column), bool)
    numbers, not_numbers = as_numbers(column)
    if not not_numbers.any():
        return numbers / (1000 if time_unit == "ms" else 1), not_numbers
    # The zone is optional: without one the text gets Z, so that both forms are read by one format.
    text = column.str.strip_chars().str.replace(r"^(\S*)[ tT](.*)$", "${1}T${2}")
    zoned = pl.when(text.str.contains(r"(?:[zZ]|[+-]\d\d:?\d\d)$")).then(text).otherwise(text + "Z")
    parsed = pl.select(zoned.str.to_datetime("%+", time_unit="us", time_zone="UTC", strict=False)).to_series()
    empty = text.str.to_lowercase().is_in(_MISSING_WORDS) | text.is_null()
    return _seconds_of(parsed.dt.replace_time_zone(None)), (parsed.is_null() & ~empty).to_numpy()


def _seconds_of(column: pl.Series) -> np.ndarray:
    return (column.cast(pl.Int64).cast(pl.Float64) / 1e6).fill_null(np.nan).to_numpy()


def to_recording(
    frame: pl.DataFrame,
    *,
    channels: Sequence[str],
    time: str | None,
    time_unit: str,
    label: str | None,
    stated_hz: float | None,
    start: float,
    max_gap: float,
    rate_tolerance: float,
    repeated: str,
) -> Recording:
    """Checks the rows of one recording, in order, with their numbers in column `__row__`.

    Args:
        repeated: `average` samples of equal times, or `fail`. start: added to the times, seconds.
    Raises:
        BadRecording: if there is nothing in it, or times, rate or values cannot be used.
    """
    if frame.is_empty():
        raise BadRecording("empty", "there are no rows")
    needed = [*channels, *([time] if time else []), *([label] if label else [])]
    absent = [name for name in needed if name not in frame.columns]
    if absent:
        there = ", ".join(c for c in frame.columns if c != ROW)
        raise BadRecording("missing_column", f"no column {', '.join(absent)}; there are: {there}")
    rows = frame[ROW].to_numpy()
    values = _values(frame, channels, rows)
    labels = frame[label].cast(pl.String) if label else None
    if time is None:
        if stated_hz is None:
            raise BadRecording("no_rate", "neither time nor rate is known: set columns.time or recorded_hz")
        times, num_repeated, rate = start + np.arange(len(frame)) / stated_hz, 0, stated_hz
        _check_gap(stated_hz, max_gap)
    else:
        times = _times(frame[time], time_unit, rows) + start
        times, values, labels, num_repeated = _increasing(times, values, labels, rows, repeated)
        rate = _rate(times, stated_hz, max_gap, rate_tolerance)
    num_missing = int((~np.isfinite(values)).any(axis=1).sum())
    if num_missing == len(values):
        raise BadRecording("no_values", f"all {num_missing} rows have a missing value in {', '.join(channels)}")
    return Recording(times, values, labels, rate, num_missing, num_repeated)


def _values(frame: pl.DataFrame, channels: Sequence[str], rows: np.ndarray) -> np.ndarray:
    values = np.empty((len(frame), len(channels)), np.float32)
    problems = []
    for k, name in enumerate(channels):
        numbers, bad = as_numbers(frame[name])
        if bad.any():
            example = frame[name][int(np.argmax(bad))]
            problems.append(f"column {name}, {named(rows[bad])}: {example!r} is no number")
        values[:, k] = numbers
    if problems:
        raise BadRecording("not_a_number", "; ".join(problems))
    return values


def _times(column: pl.Series, time_unit: str, rows: np.ndarray) -> np.ndarray:
    times, bad = as_seconds(column, time_unit)
    bad |= ~np.isfinite(times)
    if bad.any():
        example = column[int(np.argmax(bad))]
        raise BadRecording("bad_time", f"column {column.name}, {named(rows[bad])}: {example!r} is no time")
    if np.abs(times).max() > _LATEST_SECONDS:
        raise BadRecording(
            "bad_time", f"column {column.name}: {column[0]} seconds is beyond the year 5000; set time_unit to ms"
        )
    return times


def _increasing(
    times: np.ndarray, values: np.ndarray, labels: pl.Series | None, rows: np.ndarray, repeated: str
) -> tuple[np.ndarray, np.ndarray, pl.Series | None, int]:
    steps = np.diff(times)
    if (steps < 0).any():
        raise BadRecording("time_goes_back", f"the time goes back in {named(rows[1:][steps < 0])}")
    if not (steps == 0).any():
        return times, values, labels, 0
    if repeated == "fail":
        raise BadRecording(
            "time_repeats", f"{named(rows[1:][steps == 0])}: same time as before; repeated_times: average accepts them"
        )
    times, values, first = average_repeated(times, values)
    return times, values, None if labels is None else labels[first], int((steps == 0).sum())


def _rate(times: np.ndarray, stated_hz: float | None, max_gap: float, tolerance: float) -> float:
    if len(times) < 2:
        raise BadRecording("too_short", "a single sample has no rate")
    rate = estimate_rate(times, max_gap)
    if rate == 0 or np.median(np.diff(times)) > max_gap:
        _check_gap(1 / float(np.median(np.diff(times))), max_gap)
    if stated_hz is not None and abs(rate / stated_hz - 1) > tolerance:
        raise BadRecording(
            "wrong_rate",
            f"stated {stated_hz:g} Hz, but the times say {rate:.4g} Hz, more than {tolerance:.0%} off; correct the stated "
            "rate or time_unit",
        )
    return rate


def _check_gap(rate: float, max_gap: float) -> None:
    if 1 / rate > max_gap:
        raise BadRecording(
            "slower_than_gap",
            f"samples lie {1 / rate:.4g} s apart ({rate:.4g} Hz), more than max_gap_seconds {max_gap:g}: nothing may be "
            f"interpolated; set max_gap_seconds to at least {1 / rate:.2g} if this rate is meant",
        )
