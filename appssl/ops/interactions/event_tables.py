"""Reading interaction logs: every row becomes an event, with what is wrong with it; a block of rows at a time."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import polars as pl
from pydantic import Field

from appssl.errors import DataError
from appssl.ops.table_limits import UNREADABLE, checked, first_line
from appssl.settings import Settings

# What may be wrong with a row, by number; the first that applies is the row's. The unit is judged by the whole log.
PROBLEMS = (
    "",
    "no user",
    "no item",
    "timestamp is no time",
    "timestamp is not after 1970",
    "timestamp in another unit",
    "timestamp after the end",
    "rating is no number",
    "rating below lowest_rating",
    "weight is no number above 0",
)
ANOTHER_UNIT = PROBLEMS.index("timestamp in another unit")
_ROWS_AT_ONCE = 1 << 19
_OTHER_UNIT = 100  # times the median, or a part of it: milliseconds among seconds, hours among seconds
_LATEST = 10**11  # seconds, the year 5138: a log whose median lies beyond is in milliseconds
_ISO = [f"%F{gap}{clock}{zone}" for gap in ("T", " ") for clock in ("%H:%M:%S%.f", "%H:%M") for zone in ("%:z", "")]


class Columns(Settings):
    """Names of the columns of the log."""

    user: str = Field("user_id", description="who")
    item: str = Field("item_id", description="what")
    timestamp: str = Field("timestamp", description="when: Unix seconds, or ISO 8601")
    rating: str | None = Field(None, description="how much, for min_rating")
    event: str | None = Field(None, description="kind of the event (view, purchase), for events")
    weight: str | None = Field(None, description="weight of the event, above 0")
    session: str | None = Field(None, description="session of the event, within a user")

    def named(self) -> dict[str, str]:
        """Column of each thing that the log has."""
        return {what: name for what, name in self.plain().items() if name is not None}


@dataclass(frozen=True)
class Judging:
    """What a row must be to count: latest second, lowest rating that is no fault, lowest that is kept, kinds kept."""

    end: int | None = None
    lowest_rating: float | None = None
    min_rating: float | None = None
    kinds: tuple[str, ...] = ()


def scan(path: Path) -> pl.LazyFrame:
    """A CSV (all text) or Parquet table.

    Raises:
        DataError: if it is missing, empty, damaged, or of another format.
    """
    if not path.is_file():
        raise DataError(f"{path}: no such table. Is the path right, and data.root?")
    if path.suffix not in (".csv", ".tsv", ".parquet"):
        raise DataError(f"{path}: give a table in CSV or Parquet (.csv, .tsv, .parquet).")
    with reading(path):
        if path.suffix == ".parquet":
            frame = pl.scan_parquet(path)
        else:
            frame = pl.scan_csv(path, infer_schema=False, separator="\t" if path.suffix == ".tsv" else ",")
        frame.collect_schema()
    return frame


@contextmanager
def reading(path: Path) -> Iterator[None]:
    """Where a table is read: errors of the file become DataErrors that name it."""
    try:
        yield
    except UNREADABLE as error:
        raise DataError(f"{path}: cannot be read: {first_line(error)}.") from None


def require(frame: pl.LazyFrame, columns: list[str], path: Path, where: str) -> None:
    """Raises DataError naming every column that is missing and what the table has."""
    known = frame.collect_schema().names()
    missing = [column for column in columns if column not in known]
    if missing:
        raise DataError(
            f"{path}: has no column {', '.join(missing)}; it has {', '.join(known)}. Name the columns in {where}."
        )


def as_text(frame: pl.LazyFrame, column: str) -> pl.Expr:
    """Ids as text: a whole number has no decimals, so that 7, 7.0 and "7" of three files are one id."""
    if frame.collect_schema()[column].is_float():
        number = pl.col(column)
        whole = number.cast(pl.Int64, strict=False)
        return pl.when(whole == number).then(whole.cast(pl.String)).otherwise(number.cast(pl.String))
    return pl.col(column).cast(pl.String)


def read_events(
    path: Path, columns: Columns, judging: Judging = Judging(), *, ids: Mapping[str, pl.Categorical] | None = None
) -> Iterator[pl.DataFrame]:
    """All rows of a log in blocks, in order, with what is wrong with each.

    Args:
        ids: categories of `user` and `item`, shared by all files; their own without.
    Returns:
        user, item (categories, empty where there is none), timestamp (int64 Unix seconds), problem (uint8, of PROBLEMS;
        ANOTHER_UNIT is not judged here), seen (the offending text, null without a problem), low, other_kind (bool:
        below min_rating, of no kind that is kept), weight (float32), session (uint64, a hash).
    Raises:
        DataError: if the table is damaged or a column is missing.
    """
    frame = scan(path)
    named = columns.named()
    require(frame, list(named.values()), path, "data.source.columns")
    kinds = {what: frame.collect_schema()[name] for what, name in named.items()}
    values = {what: pl.col(name) for what, name in named.items()}
    wanted = {f"raw_{what}": values[what] for what in ("timestamp", "rating", "weight") if what in named}
    for what in ("user", "item"):
        wanted[what] = as_text(frame, named[what]).fill_null("").cast(ids[what] if ids else pl.Categorical())
    wanted["timestamp"] = _seconds(values["timestamp"], kinds["timestamp"])
    wanted |= {w: values[w].cast(pl.Float64, strict=False) for w in ("rating", "weight") if w in named}
    if "event" in named:
        wanted["event"] = values["event"].cast(pl.String)
    if "session" in named:
        wanted["session"] = as_text(frame, named["session"]).fill_null("").hash(0)
    with reading(path):
        checked(path, list(named.values()))
        blocks = frame.select(**wanted).collect_batches(maintain_order=True, chunk_size=_ROWS_AT_ONCE)
        for block in blocks:
            yield _judged(_with_written_times(block), judging)


def _seconds(time: pl.Expr, kind: pl.DataType) -> pl.Expr:
    """Unix seconds; text only where it is a whole number."""
    if kind.is_temporal():
        return time.cast(pl.Datetime("us")).dt.epoch("s")
    if kind == pl.String or kind.is_integer():
        return time.cast(pl.Int64, strict=False)
    return time.cast(pl.Float64, strict=False).floor().cast(pl.Int64, strict=False)


def _with_written_times(block: pl.DataFrame) -> pl.DataFrame:
    """Fills in the times that are text but no whole number."""
    text, found = block["raw_timestamp"], block["timestamp"]
    if text.dtype != pl.String or not found.null_count():
        return block
    left = (found.is_null() & text.is_not_null()).arg_true()
    return block.with_columns(found.scatter(left, written_seconds(text.gather(left))))


def written_seconds(text: pl.Series) -> pl.Series:
    """Unix seconds (int64 or null) of numbers and of each form of ISO 8601, UTC where no zone is given."""
    frame = text.str.strip_chars().alias("text").to_frame()
    found = frame.select(pl.col("text").cast(pl.Float64, strict=False).floor().cast(pl.Int64, strict=False))["text"]
    for form in _iso_seconds(pl.col("text")):
        left = found.is_null().arg_true()
        if left.is_empty():
            break
        found = found.scatter(left, frame[left].select(form)["text"])  # one form after the other: most need one
    return found


def _iso_seconds(text: pl.Expr) -> list[pl.Expr]:
    zoned = text.str.replace("[Zz]$", "+00:00")
    forms = [
        zoned.str.to_datetime(form, strict=False, time_unit="us", time_zone="UTC" if form.endswith("z") else None)
        for form in _ISO
    ]
    return [form.dt.epoch("s") for form in (*forms, text.str.to_date("%F", strict=False).cast(pl.Datetime("us")))]


def _judged(block: pl.DataFrame, judging: Judging) -> pl.DataFrame:
    time, rating, weight = pl.col("timestamp"), pl.col("rating"), pl.col("weight")
    wrong = [
        *((pl.col(who) == "").alias(f"no {who}") for who in ("user", "item")),
        time.is_null().alias("timestamp is no time"),
        (time <= 0).alias("timestamp is not after 1970"),
    ]
    if judging.end is not None:
        wrong.append((time > judging.end).alias("timestamp after the end"))
    if "rating" in block.columns:
        wrong.append((rating.is_null() | ~rating.is_finite()).alias("rating is no number"))
    if "rating" in block.columns and judging.lowest_rating is not None:
        wrong.append((rating < judging.lowest_rating).alias("rating below lowest_rating"))
    if "weight" in block.columns:
        wrong.append((weight.is_null() | ~weight.is_finite() | (weight <= 0)).alias("weight is no number above 0"))
    tests = block.select(wrong)
    number = pl.lit(0, pl.UInt8)
    for name in reversed(tests.columns):
        number = pl.when(name).then(pl.lit(PROBLEMS.index(name), pl.UInt8)).otherwise(number)
    problem = tests.select(problem=number)["problem"]
    low = rating < judging.min_rating if judging.min_rating is not None else pl.lit(False)
    other = ~pl.col("event").fill_null("").is_in(judging.kinds) if judging.kinds else pl.lit(False)
    kept = [name for name in ("user", "item", "timestamp") if name in block.columns]
    extra = [pl.col("weight").cast(pl.Float32)] if "weight" in block.columns else []
    extra += [pl.col("session")] if "session" in block.columns else []
    return block.select(
        *kept, *extra, problem, _seen(block, problem), low=low.fill_null(False), other_kind=other.fill_null(False)
    )


def _seen(block: pl.DataFrame, problem: pl.Series) -> pl.Series:
    """What the row has where the problem lies: rating or weight, else its time."""
    bad = (problem > 0).arg_true()
    seen = pl.Series("seen", [None], dtype=pl.String).new_from_index(0, len(block))
    if bad.is_empty():
        return seen
    rows = block[bad].with_columns(problem.gather(bad))
    of = {
        name: [number for number, text in enumerate(PROBLEMS) if text.startswith(name)] for name in ("rating", "weight")
    }
    text = pl.col("raw_timestamp").cast(pl.String)
    for name, numbers in of.items():
        if f"raw_{name}" in block.columns:
            text = pl.when(pl.col("problem").is_in(numbers)).then(pl.col(f"raw_{name}").cast(pl.String)).otherwise(text)
    return seen.scatter(bad, rows.select(text.alias("seen"))["seen"])


def usual_times(median: float, where: str) -> tuple[float, float]:
    """Times (Unix seconds) between which those in the unit of the log lie, by its median.

    Raises:
        DataError: if most of the log is in milliseconds.
    """
    if median > _LATEST:
        raise DataError(
            f"{where} is not in Unix seconds: the median, {median:.0f}, would lie in the year "
            f"{1970 + int(median / 31_556_952)}. Divide by 1000 if these are milliseconds, or give ISO 8601."
        )
    return median / _OTHER_UNIT, median * _OTHER_UNIT
