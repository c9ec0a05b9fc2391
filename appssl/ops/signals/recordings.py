"""Reading and checking tables of sensor samples: numbers, times, and messages that name the row.

Rows are numbered from 1, without the header, in every message. Values of a CSV are read as text, so that a word where a
number belongs is found with its row.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Literal, TypeVar

import numpy as np
import polars as pl

from appssl.errors import DataError
from appssl.ops.paths import inside
from appssl.ops.table_limits import SHOWN, UNREADABLE, checked, first_line, refuse_long_cells
from appssl.settings import nearest

TimeUnit = Literal["seconds", "iso", "unix_ms"]
PARTS = ("train", "val", "test")
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
    """Some samples of a recording, one after the other, as they were read.

    Attributes:
        seconds: (n,) float64, not checked for order. values: (n, channels) float32 or float64, NaN where there is no
            number. labels: (n,) any type, or None where the input has no column of labels. rows: (n,) int64 row
            numbers.
    """

    seconds: np.ndarray
    values: np.ndarray
    labels: pl.Series | None
    rows: np.ndarray


class RowNumbers:
    """Row numbers as they are found: how many, and the first of them, which is what `shown_rows` needs."""

    def __init__(self) -> None:
        self._first: list[int] = []
        self._count = 0

    def add(self, rows: np.ndarray) -> None:
        self._first += rows[: SHOWN - len(self._first)].tolist()
        self._count += len(rows)

    def __len__(self) -> int:
        return self._count

    def __getitem__(self, key: slice) -> list[int]:
        return self._first[key]


def quoted(value: str | None) -> str:
    """A part of an id: `/` is what joins them."""
    return (value or "").replace("%", "%25").replace("/", "%2F")


def shown_rows(rows: Sequence[int] | np.ndarray | RowNumbers) -> str:
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
    except UNREADABLE as error:
        raise DataError(f"{path}: cannot be read: {first_line(error)}.") from None


def whole_table(root: Path, path: str) -> pl.DataFrame:
    """All of a table that is small: of recordings, intervals or names, not of samples. Raises: as `open_table`."""
    return refuse_long_cells(read_rows(root, path, open_table(root, path)), path)


def read_rows(root: Path, path: str, table: pl.LazyFrame, columns: Sequence[str] | None = None) -> pl.DataFrame:
    """The rows of `open_table(root, path)`, or of what was made of it. columns: those it needs; all if None."""

    def read() -> pl.DataFrame:
        checked(inside(root, path), columns)
        return table.collect()

    return reading(path, read)


def require(path: str, known: Sequence[str], needed: Sequence[str]) -> None:
    """Raises DataError naming every column that is missing, with the nearest name."""
    missing = [f"there is no column {name!r}.{nearest(name, known)}" for name in needed if name not in known]
    if missing:
        raise DataError(f"{path}: " + " ".join(missing))


def texts(series: pl.Series) -> list[str | None]:
    """Values as text without spaces around it, null where empty or where bytes are no UTF-8."""
    if series.dtype == pl.Binary:
        series = series.map_elements(_utf8, return_dtype=pl.String)
    return [value.strip() or None if value is not None else None for value in series.cast(pl.String)]


def _utf8(content: bytes) -> str | None:
    try:
        return content.decode()
    except UnicodeDecodeError:
        return None


# Numbers and times


Word = tuple[int, str, str]  # row, column and text of a cell where a number belongs
_FLOAT32 = (pl.Float32, pl.Int8, pl.Int16, pl.UInt8, pl.UInt16, pl.Boolean, pl.Null)  # types that it holds exactly


def numbers(frame: pl.DataFrame, columns: Sequence[str], rows: np.ndarray) -> tuple[np.ndarray, list[Word]]:
    """(n, columns), NaN where the cell holds no number, and the words among them, the first of each column.

    float32 where that holds all numbers exactly, else float64. The numbers of a column are contiguous.

    Raises:
        BadRecording: if a column is of a type that holds no numbers.
    """
    dtype = np.float32 if all(frame.schema[name] in _FLOAT32 for name in columns) else np.float64
    values = np.empty((len(columns), len(frame)), dtype)
    words: list[Word] = []
    for k, name in enumerate(columns):
        series = frame[name]
        if series.dtype == pl.String:
            series, bad = _from_text(series)
            words += [(int(rows[i]), name, text) for i, text in bad]
        elif not (series.dtype.is_numeric() or series.dtype in (pl.Boolean, pl.Null)):
            raise BadRecording("not_a_number", f"column {name} holds {series.dtype}, numbers are needed")
        cast = series.cast(pl.Float32 if dtype == np.float32 else pl.Float64)
        values[k] = (cast.fill_null(np.nan) if cast.null_count() else cast).to_numpy()
    return values.T, words


def _from_text(series: pl.Series) -> tuple[pl.Series, list[tuple[int, str]]]:
    """Float64 of text, null where it is empty; positions and text of the first words."""
    cast = series.cast(pl.Float64, strict=False)
    if not cast.null_count():
        return cast, []
    series = series.str.strip_chars()
    empty = series.str.to_lowercase().is_in(_NO_NUMBER).fill_null(True)
    series = series.zip_with(~empty, pl.Series([None], dtype=pl.String))
    cast = series.cast(pl.Float64, strict=False)
    bad = np.flatnonzero((series.is_not_null() & cast.is_null()).to_numpy())[: SHOWN + 1]
    return cast, [(int(i), str(series[int(i)])) for i in bad]


def refuse_words(words: Sequence[Word]) -> None:
    """Raises BadRecording naming row and column of every text that is no number."""
    if words:
        shown = "; ".join(f"row {row}, column {name}: {text!r}" for row, name, text in sorted(words)[:SHOWN])
        raise BadRecording("not_a_number", f"{shown}. A number belongs there; leave the cell empty where there is none")


def moments(series: pl.Series, unit: TimeUnit, rows: np.ndarray) -> tuple[np.ndarray, list[Word]]:
    """(n,) float64 seconds, since 1970 (UTC) for `iso` and `unix_ms`, and words that are no times as `numbers`.

    NaN where there is no time. A time without zone is taken as UTC.
    """
    if series.dtype in (pl.Datetime, pl.Date):
        epoch = series.cast(pl.Datetime("us")).dt.epoch("us").cast(pl.Float64)
        return epoch.fill_null(np.nan).to_numpy() / 1e6, []
    if unit == "iso":
        return np.array([_iso(value) for value in series.cast(pl.String)], np.float64), []
    values, words = numbers(series.to_frame(), [series.name], rows)
    return values[:, 0].astype(np.float64) / (1000 if unit == "unix_ms" else 1), words


def _iso(value: str | None) -> float:
    try:
        moment = datetime.fromisoformat((value or "").strip())
    except ValueError:
        return float("nan")
    return (moment if moment.tzinfo else moment.replace(tzinfo=UTC)).timestamp()


def one_time(value: str | None, unit: TimeUnit) -> float:
    """A single time as `moments`; NaN if it cannot be read."""
    return only_moment(pl.Series("time", [value]), unit)


def only_moment(series: pl.Series, unit: TimeUnit) -> float:
    """`one_time` of a series of one cell."""
    try:
        seconds, words = moments(series, unit, np.array([1]))
    except BadRecording:
        return float("nan")
    return float(seconds[0]) if not words and np.isfinite(seconds[0]) else float("nan")
