"""Reading interaction logs: every row becomes an event or a row of the quarantine."""

from pathlib import Path

import polars as pl

from appssl.errors import DataError

_OTHER_UNIT = 100  # times the median, or a part of it: milliseconds among seconds, hours among seconds
_LATEST = 10**11  # seconds, the year 5138: a log whose median lies beyond is in milliseconds
_ISO = [f"%F{gap}{clock}{zone}" for gap in ("T", " ") for clock in ("%H:%M:%S%.f", "%H:%M") for zone in ("%:z", "")]


def scan(path: Path) -> pl.LazyFrame:
    """A CSV (all text) or Parquet table.

    Raises:
        DataError: if it is missing, empty, damaged, or of another format.
    """
    if not path.is_file():
        raise DataError(f"{path}: no such table. Is data.root right?")
    try:
        if path.suffix == ".parquet":
            frame = pl.scan_parquet(path)
        elif path.suffix in (".csv", ".tsv"):
            frame = pl.scan_csv(path, infer_schema=False, separator="\t" if path.suffix == ".tsv" else ",")
        else:
            raise DataError(f"{path}: give a table in CSV or Parquet (.csv, .tsv, .parquet).")
        frame.collect_schema()
        return frame
    except (pl.exceptions.PolarsError, OSError) as error:
        raise DataError(f"{path}: cannot be read: {str(error).splitlines()[0]}.") from None


def require(frame: pl.LazyFrame, columns: list[str], path: Path, where: str) -> None:
    """Raises DataError naming every column that is missing and what the table has."""
    known = frame.collect_schema().names()
    missing = [column for column in columns if column not in known]
    if missing:
        raise DataError(
            f"{path}: has no column {', '.join(missing)}; it has {', '.join(known)}. Name the columns in {where}."
        )


def read_events(path: Path, *, user: str, item: str, timestamp: str, rating: str | None) -> pl.DataFrame:
    """All rows of a log with what is wrong with each.

    Returns:
        row (int64, from 1, header not counted), user, item (str), timestamp (int64 Unix seconds), rating (float64 or
        null), problem (str or null), seen (the offending text).
    Raises:
        DataError: if the table is empty, a column is missing, or the times are in milliseconds.
    """
    frame = scan(path)
    require(frame, [c for c in (user, item, timestamp, rating) if c], path, "data.source.columns")
    time = pl.col(timestamp)
    columns = {
        "user": pl.col(user).cast(pl.String),
        "item": pl.col(item).cast(pl.String),
        "timestamp": _seconds(frame, timestamp),
        "rating": pl.col(rating).cast(pl.Float64, strict=False) if rating else pl.lit(None, pl.Float64),
        "seen": time.cast(pl.String),
        "rating_text": pl.col(rating).cast(pl.String) if rating else pl.lit(None, pl.String),
    }
    try:
        events = frame.with_row_index("row", offset=1).select(pl.col("row").cast(pl.Int64), **columns).collect()
    except (pl.exceptions.PolarsError, OSError) as error:
        raise DataError(f"{path}: cannot be read to its end: {str(error).splitlines()[0]}.") from None
    if events.is_empty():
        raise DataError(f"{path}: holds no interactions.")
    median = events.filter(pl.col("timestamp") > 0)["timestamp"].median()
    if isinstance(median, int | float) and median > _LATEST:
        raise DataError(
            f"{path}: {timestamp} is not in Unix seconds: the median, {median:.0f}, would lie in the year "
            f"{1970 + int(median / 31_556_952)}. Divide by 1000 if these are milliseconds, or give ISO 8601."
        )
    return _judge(events, median, with_rating=rating is not None)


def _seconds(frame: pl.LazyFrame, column: str) -> pl.Expr:
    kind = frame.collect_schema()[column]
    if kind.is_temporal():
        return pl.col(column).cast(pl.Datetime("us")).dt.epoch("s")
    if kind == pl.String:
        text = pl.col(column).str.strip_chars()
        number = text.cast(pl.Float64, strict=False).floor().cast(pl.Int64, strict=False)
        return pl.coalesce(number, *_iso_seconds(text))
    return pl.col(column).cast(pl.Float64, strict=False).floor().cast(pl.Int64, strict=False)


def _iso_seconds(text: pl.Expr) -> list[pl.Expr]:
    """Unix seconds by each form of ISO 8601, UTC where no zone is given; every row is read by itself."""
    zoned = text.str.replace("[Zz]$", "+00:00")
    forms = [
        zoned.str.to_datetime(form, strict=False, time_unit="us", time_zone="UTC" if form.endswith("z") else None)
        for form in _ISO
    ]
    return [form.dt.epoch("s") for form in (*forms, text.str.to_date("%F", strict=False).cast(pl.Datetime("us")))]


def _judge(events: pl.DataFrame, median: object, *, with_rating: bool) -> pl.DataFrame:
    middle = float(median) if isinstance(median, int | float) else None
    low, high = (0.0, float("inf")) if middle is None else (middle / _OTHER_UNIT, middle * _OTHER_UNIT)
    problem = (
        pl.when(pl.col("user").is_null() | (pl.col("user") == ""))
        .then(pl.lit("no user"))
        .when(pl.col("item").is_null() | (pl.col("item") == ""))
        .then(pl.lit("no item"))
        .when(pl.col("timestamp").is_null())
        .then(pl.lit("timestamp is no time"))
        .when(pl.col("timestamp") <= 0)
        .then(pl.lit("timestamp is not after 1970"))
        .when((pl.col("timestamp") > high) | (pl.col("timestamp") < low))
        .then(pl.lit("timestamp in another unit"))
    )
    if with_rating:
        problem = problem.when(pl.col("rating").is_null() | ~pl.col("rating").is_finite()).then(
            pl.lit("rating is no number")
        )
    return (
        events.with_columns(problem=problem.otherwise(None))
        .with_columns(seen=pl.when(pl.col("problem") == "rating is no number").then("rating_text").otherwise("seen"))
        .drop("rating_text")
    )
