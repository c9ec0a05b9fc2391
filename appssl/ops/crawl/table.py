"""The table of addresses that a crawl starts from, and the two tables that it ends with.

`images`: a row per kept row of the input, ready for the source `webnoisy`. `outcomes`: a row per row of the input. Both
are in the order of the input and depend on nothing but it and what was found.
"""

import hashlib
from pathlib import Path

import polars as pl

from appssl.addresses import masked
from appssl.ops.images.index import PARTS, text_table
from appssl.ops.table_limits import refuse

OPTIONAL = ("image_id", "label", "true_label", "split", "licence")
_ID_DIGITS = 16  # of an id that is derived; 64 bits: one collision in a million is 1 in 10^7


def address_key(url: str) -> str:
    """SHA-256 (hex) of an address as it is written: the name of its file, and of it in the journal."""
    return hashlib.sha256(url.encode()).hexdigest()


def read_addresses(path: Path) -> pl.DataFrame:
    """The input: image_id, url, those of `OPTIONAL` that it has, `key`, and `same_as`, the row that it repeats, from 1.

    A row repeats an earlier one if the address is the same and no ids tell them apart.

    Raises:
        DataError: if the table cannot be read or lacks `url`, an id is there twice, or a split does not exist.
    """
    table = text_table(path, str(path), ["url"])
    found = [name for name in OPTIONAL if name in _names(path)]
    table = table.with_columns(text_table(path, str(path), found) if found else []).with_columns(
        url=pl.col("url").fill_null("").str.strip_chars()
    )
    table = table.with_columns(pl.Series("key", [address_key(url) for url in table["url"]], dtype=pl.String))
    table = table.with_row_index("row", offset=1)
    given = pl.col("image_id") if "image_id" in found else pl.lit(None, pl.String)
    table = table.with_columns(
        image_id=given.fill_null(pl.col("key").str.head(_ID_DIGITS)),
        same_as=pl.when(given.is_null() & (pl.col("row") > pl.col("row").min().over("key", given.is_null()))).then(
            pl.col("row").min().over("key", given.is_null())
        ),
    )
    refuse(_problems(table, path))
    return table


def _names(path: Path) -> list[str]:
    if path.suffix.lower() == ".parquet":
        return list(pl.read_parquet_schema(path))
    return pl.read_csv(path, n_rows=0, infer_schema=False).columns


def _problems(table: pl.DataFrame, path: Path) -> list[str]:
    named = table.filter(pl.col("same_as").is_null())
    twice = named.filter(pl.col("image_id").is_duplicated() & ~pl.col("image_id").is_first_distinct())
    problems = [
        f"{path} row {row}: image_id {name!r} is there already" for row, name in twice.select("row", "image_id").rows()
    ]
    if "split" in table.columns:
        wrong = table.filter(pl.col("split").is_not_null() & ~pl.col("split").is_in(PARTS))
        problems += [
            f"{path} row {row}: split {value!r} is not one of {', '.join(PARTS)}"
            for row, value in wrong.select("row", "split").rows()
        ]
    return problems


def joined(table: pl.DataFrame, latest: pl.DataFrame) -> pl.DataFrame:
    """The input with what became of every row. latest: of the journal."""
    found = table.join(latest, on="key", how="left", maintain_order="left")
    repeats = pl.col("same_as").is_not_null()
    words = pl.format("as row {}", "same_as")
    cleared = ("status", "bytes", "sha256", "attempts", "content_type", "path")
    return found.with_columns(
        outcome=pl.when(repeats).then(pl.lit("left_out")).otherwise("outcome"),
        reason=pl.when(repeats).then(pl.lit("repeated_address")).otherwise("reason"),
        message=pl.when(repeats).then(words).otherwise("message"),
        **{name: pl.when(~repeats).then(pl.col(name)) for name in cleared},
    )


def outcomes(found: pl.DataFrame) -> pl.DataFrame:
    """A row per row of the input; addresses without user names and passwords."""
    shown = {url: masked(url) for url in found.filter(pl.col("url").str.contains("@"))["url"]}
    return found.select(
        "image_id",
        pl.col("url").replace(shown) if shown else pl.col("url"),
        "outcome",
        "reason",
        "status",
        "bytes",
        "sha256",
        "attempts",
        "content_type",
        "message",
        "path",
    )


def images(found: pl.DataFrame) -> pl.DataFrame:
    """The kept rows as a table of the source `webnoisy`; columns that the input lacks are not there."""
    kept = found.filter(pl.col("outcome") == "kept").rename({"url": "source_url"})
    wanted = ("image_id", "path", "label", "true_label", "split", "source_url", "licence")
    return kept.select(name for name in wanted if name in kept.columns)
