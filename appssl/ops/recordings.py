"""Reading and checking tables of sensor samples and labels: numbers, times, intervals, and messages that name the row.

Rows are numbered from 1, without the header, in every message. Values of a CSV are read as text, so that a word where a
number belongs is found with its row.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from itertools import pairwise
from pathlib import Path
from typing import Literal, TypeVar

import numpy as np
import polars as pl

from appssl.errors import DataError
from appssl.ops.paths import inside
from appssl.settings import nearest

TimeUnit = Literal["seconds", "iso", "unix_ms"]
PARTS = ("train", "val", "test")
SHOWN = 20  # problems or rows written out in one message
LABEL_COLUMNS = ("subject_id", "start", "end", "activity")
_NO_NUMBER = ["", "na", "nan", "null", "none"]  # text that means: no value
T = TypeVar("T")


class BadRecording(Exception):
    """A recording that cannot be used: a short reason that is counted, and what exactly is wrong."""

    def __init__(self, reason: str, detail: str) -> None:
        super().__init__(f"{reason}: {detail}")
        self.reason = reason
        self.detail = detail


@dataclass(frozen=True)
class Recording:
    """One device on one person for one stretch of time. `session` is null where overlap in time decides it."""

    id: str
    subject: str
    device: str
    where: str
    session: str | None = None
    split: str | None = None
    path: str = ""
    hz: float | None = None
    start: float | None = None


@dataclass(frozen=True)
class Samples:
    """Samples of a recording as they were read.

    Attributes:
        seconds: (n,) float64, not checked for order. values: (n, channels) float64, NaN where there is no number.
        labels: (n,) str or null, or None where the input has no column of labels. rows: (n,) int64 row numbers.
    """

    seconds: np.ndarray
    values: np.ndarray
    labels: pl.Series | None
    rows: np.ndarray


@dataclass(frozen=True)
class Intervals:
    """Labels as intervals, sorted by start: (n,) float64 seconds, (n,) labels. `rows` as in the table."""

    start: np.ndarray
    end: np.ndarray
    label: list[str]
    session: list[str | None]
    rows: list[int]


def quoted(value: str | None) -> str:
    """A part of an id: `/` is what joins them."""
    return (value or "").replace("%", "%25").replace("/", "%2F")


def refuse(problems: Sequence[str]) -> None:
    """Raises DataError with all problems, the first `SHOWN` written out."""
    if problems:
        more = f"\n  and {len(problems) - SHOWN} more" if len(problems) > SHOWN else ""
        raise DataError(f"{len(problems)} problem(s) in the input:\n  " + "\n  ".join(problems[:SHOWN]) + more)


def shown_rows(rows: Sequence[int] | np.ndarray) -> str:
    """`row(s) 3, 4, 5 and 12 more`."""
    more = f" and {len(rows) - SHOWN} more" if len(rows) > SHOWN else ""
    return f"row(s) {', '.join(str(int(row)) for row in rows[:SHOWN])}{more}"


# Tables


def open_table(root: Path, path: str) -> pl.LazyFrame:
    """A CSV (all text) or Parquet table.

    Raises:
        DataError: if it is missing, outside `root`, of another kind, unreadable or empty.
    """
    full = inside(root, path)
    if not full.is_file():
        raise DataError(f"{path}: there is no such file in {root}. Correct the path, or data.root.")
    suffix = full.suffix.lower()
    if suffix not in (".csv", ".parquet"):
        raise DataError(f"{path}: a table is .csv or .parquet, this is {suffix or 'without suffix'}.")
    if full.stat().st_size == 0:
        raise DataError(f"{path}: the file is empty.")
    frame = pl.scan_parquet(full) if suffix == ".parquet" else pl.scan_csv(full, infer_schema=False)
    reading(path, lambda: frame.collect_schema())
    return frame


def reading(path: str, read: Callable[[], T]) -> T:
    """What `read` returns; errors of the file name it."""
    try:
        return read()
    except pl.exceptions.NoDataError:
        raise DataError(f"{path}: the table is empty.") from None
    except (pl.exceptions.PolarsError, OSError) as error:
        raise DataError(f"{path}: cannot be read: {str(error).splitlines()[0]}.") from None


def require(path: str, known: Sequence[str], needed: Sequence[str]) -> None:
    """Raises DataError naming every column that is missing, with the nearest name."""
    missing = [f"there is no column {name!r}.{nearest(name, known)}" for name in needed if name not in known]
    if missing:
        raise DataError(f"{path}: " + " ".join(missing))


def texts(series: pl.Series) -> list[str | None]:
    """Values as text without spaces around it, null where empty."""
    return [value.strip() or None if value is not None else None for value in series.cast(pl.String)]


def label_names(root: Path, path: str) -> dict[str, str]:
    """Name of each label value: the first two columns of a table."""
    frame = reading(path, lambda: open_table(root, path).collect())
    if frame.width < 2 or frame.is_empty():
        raise DataError(f"{path}: needs two columns, label value and name, and at least one row.")
    keys, names = texts(frame.to_series(0)), texts(frame.to_series(1))
    problems = [
        f"{path} row {row + 1}: value or name is empty"
        for row, (k, n) in enumerate(zip(keys, names, strict=True))
        if not k or not n
    ]
    problems += [
        f"{path} row {row + 1}: value {key!r} is there twice" for row, key in enumerate(keys) if key in keys[:row]
    ]
    refuse(problems)
    return {str(key): str(name) for key, name in zip(keys, names, strict=True)}


# Numbers and times


def numbers(frame: pl.DataFrame, columns: Sequence[str], rows: np.ndarray) -> np.ndarray:
    """(n, columns) float64; NaN where the cell is empty.

    Raises:
        BadRecording: naming row and column of every text that is no number.
    """
    values = np.empty((len(frame), len(columns)))
    wrong: list[tuple[int, str, str]] = []
    for k, name in enumerate(columns):
        series = frame[name]
        if series.dtype == pl.String:
            series = series.str.strip_chars()
            empty = series.str.to_lowercase().is_in(_NO_NUMBER).fill_null(True)
            series = series.zip_with(~empty, pl.Series([None], dtype=pl.String))
            cast = series.cast(pl.Float64, strict=False)
            bad = (series.is_not_null() & cast.is_null()).to_numpy()
            wrong += [(int(rows[i]), name, str(series[int(i)])) for i in np.flatnonzero(bad)[: SHOWN + 1]]
            series = cast
        elif not (series.dtype.is_numeric() or series.dtype in (pl.Boolean, pl.Null)):
            raise BadRecording("not_a_number", f"column {name} holds {series.dtype}, numbers are needed")
        values[:, k] = series.cast(pl.Float64).fill_null(np.nan).to_numpy()
    if wrong:
        shown = "; ".join(f"row {row}, column {name}: {text!r}" for row, name, text in sorted(wrong)[:SHOWN])
        raise BadRecording("not_a_number", f"{shown}. A number belongs there; leave the cell empty where there is none")
    return values


def seconds_of(series: pl.Series, unit: TimeUnit, rows: np.ndarray) -> np.ndarray:
    """(n,) float64 seconds; since 1970 (UTC) for `iso` and `unix_ms`. A time without zone is taken as UTC.

    Raises:
        BadRecording: naming every row whose time is missing or cannot be read.
    """
    if series.dtype in (pl.Datetime, pl.Date):
        seconds = series.cast(pl.Datetime("us")).dt.epoch("us").cast(pl.Float64).fill_null(np.nan).to_numpy() / 1e6
    elif unit == "iso":
        seconds = np.array([_iso(value) for value in series.cast(pl.String)], np.float64)
    else:
        seconds = numbers(series.to_frame(), [series.name], rows)[:, 0] / (1000 if unit == "unix_ms" else 1)
    bad = np.flatnonzero(~np.isfinite(seconds))
    if len(bad):
        example = series[int(bad[0])]
        raise BadRecording(
            "time_missing",
            f"no time ({unit}) in column {series.name}, {shown_rows(rows[bad])}; the first is {example!r}",
        )
    return seconds


def _iso(value: str | None) -> float:
    try:
        moment = datetime.fromisoformat((value or "").strip())
    except ValueError:
        return float("nan")
    return (moment if moment.tzinfo else moment.replace(tzinfo=UTC)).timestamp()


def one_time(value: str, unit: TimeUnit) -> float:
    """A single time as `seconds_of`; NaN if it cannot be read."""
    try:
        return float(seconds_of(pl.Series("time", [value]), unit, np.array([1]))[0])
    except BadRecording:
        return float("nan")


# Labels as intervals


def read_intervals(root: Path, path: str, unit: TimeUnit, subjects: Sequence[str]) -> dict[str, Intervals]:
    """Intervals of every subject, from a table `subject_id, start, end, activity` (and optionally `session_id`).

    Raises:
        DataError: with all problems: columns, times, end before start, overlap with another activity, unknown subject.
    """
    frame = reading(path, lambda: open_table(root, path).collect())
    require(path, frame.columns, LABEL_COLUMNS)
    if frame.is_empty():
        raise DataError(f"{path}: the table is empty. Give a row per interval, or leave the setting `labels` out.")
    cells = {name: texts(frame[name]) for name in LABEL_COLUMNS}
    cells["session"] = texts(frame["session_id"]) if "session_id" in frame.columns else [None] * len(frame)
    problems: list[str] = []
    rows: dict[str, list[tuple[str, float, float, str, int]]] = {}
    for k in range(len(frame)):
        subject, activity, session = cells["subject_id"][k], cells["activity"][k], cells["session"][k]
        start, end = (_moment(frame[name], k, unit, f"{path} row {k + 1}", problems) for name in ("start", "end"))
        if start >= end:
            problems.append(f"{path} row {k + 1}: the interval ends before it starts")
        problems += [f"{path} row {k + 1}: {n} is empty" for n in ("subject_id", "activity") if not cells[n][k]]
        if subject and subject not in subjects:
            problems.append(f"{path} row {k + 1}: subject_id {subject!r} has no recording.{nearest(subject, subjects)}")
        rows.setdefault(str(subject), []).append((session or "", start, end, str(activity), k + 1))
    for own in rows.values():
        own.sort()
        for (s1, _, end, a1, r1), (s2, start, _, a2, r2) in pairwise(own):
            if s1 == s2 and start < end and a1 != a2:
                problems.append(f"{path} rows {r1} and {r2}: {a1} and {a2} of the same subject overlap in time")
    refuse(problems)
    return {subject: _intervals(own) for subject, own in rows.items()}


def _intervals(own: list[tuple[str, float, float, str, int]]) -> Intervals:
    sessions, start, end, label, rows = zip(*own, strict=True)
    return Intervals(np.array(start), np.array(end), list(label), [session or None for session in sessions], list(rows))


def _moment(series: pl.Series, k: int, unit: TimeUnit, where: str, problems: list[str]) -> float:
    try:
        return float(seconds_of(series[k : k + 1], unit, np.array([k + 1]))[0])
    except BadRecording:
        problems.append(f"{where}: {series.name} is {series[k]!r}, a time ({unit}) is needed")
        return float("nan")


# Names of labels


def known_labels(
    labels: pl.Series, rows: np.ndarray, names: dict[str, str] | None, classes: Sequence[str], where: str,
    problems: list[str],
) -> list[str | None]:  # fmt: skip
    """Labels by name; every one that has no name, or is no class, becomes a problem with its rows."""
    table: dict[str | None, str | None] = {None: None}
    for value in labels.drop_nulls().unique().sort():
        name = value if names is None else names.get(value)
        if name is None or (classes and name not in classes):
            known = list(names or ()) if name is None else list(classes)
            what = "label_names" if name is None else "classes"
            hit = rows[(labels == value).fill_null(False).to_numpy()]
            problems.append(f"{where} {shown_rows(hit)}: label {value!r} is not in {what}.{nearest(value, known)}")
        table[value] = name
    return [table[value] for value in labels]


def name_intervals(
    intervals: dict[str, Intervals], names: dict[str, str] | None, classes: Sequence[str], path: str
) -> list[str]:
    """Replaces label values by names, in place; the problems of those that have none."""
    problems: list[str] = []
    for found in intervals.values():
        series = pl.Series("label", found.label, dtype=pl.String)
        found.label[:] = [
            name or "" for name in known_labels(series, np.array(found.rows), names, classes, path, problems)
        ]
    return problems
