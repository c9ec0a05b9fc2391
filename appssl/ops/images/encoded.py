"""The encoded bytes of listed images, read where they lie: files, rows of a Parquet table, members of a tar."""

from collections.abc import Iterator
from pathlib import Path

import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq

from appssl.errors import DataError
from appssl.ops.paths import inside

_EMPTY = "empty_file: nothing in the cell"


def contents(root: Path, units: pl.DataFrame, image_column: str, max_bytes: int) -> Iterator[tuple[int, bytes | str]]:
    """(position in `units`, the encoded image or why there is none), a file or row group at a time.

    Yields in an order of its own that makes reading sequential. A text is `reason: detail`.
    """
    keyed = units.with_row_index("position")
    for position, file in (
        keyed.filter((pl.col("row") < 0) & (pl.col("offset") < 0)).select("position", "file").iter_rows()
    ):
        yield position, _file_bytes(root, file, max_bytes)
    tarred = keyed.filter(pl.col("offset") >= 0).sort("file", "offset").select("position", "file", "offset", "length")
    for (file,), part in tarred.partition_by("file", as_dict=True, maintain_order=True).items():
        with inside(root, str(file)).open("rb") as stream:
            for position, _, offset, length in part.iter_rows():
                stream.seek(offset)
                yield position, _within(length, max_bytes) or stream.read(length)
    stored = keyed.filter(pl.col("row") >= 0).select("position", "file", "row")
    for (file,), part in stored.partition_by("file", as_dict=True, maintain_order=True).items():
        rows = dict(zip(part["row"].to_list(), part["position"].to_list(), strict=True))
        yield from _table_bytes(root, str(file), image_column, rows, max_bytes)


def _file_bytes(root: Path, file: str, max_bytes: int) -> bytes | str:
    try:
        full = inside(root, file)
        if not full.is_file():
            return "missing_file: there is no such file" if not full.exists() else "not_a_file: not a plain file"
        return _within(full.stat().st_size, max_bytes) or full.read_bytes()
    except DataError as error:
        return f"outside_root: {error}"
    except OSError as error:
        return f"unreadable_file: {error.strerror}"


def _within(size: int, max_bytes: int) -> str:
    return f"too_many_bytes: {size}, limit {max_bytes}" if size > max_bytes else ""


def _table_bytes(
    root: Path, name: str, column: str, rows: dict[int, int], max_bytes: int
) -> Iterator[tuple[int, bytes | str]]:
    """Cells of a Parquet table, a row group at a time."""
    try:
        with pq.ParquetFile(inside(root, name)) as file:
            first = 0
            for number in range(file.num_row_groups):
                count = file.metadata.row_group(number).num_rows
                wanted = [row for row in range(first, first + count) if row in rows]
                values = file.read_row_group(number, columns=[column]).column(column) if wanted else []
                for row in wanted:
                    content = values[row - first].as_py()
                    yield rows[row], _within(len(content), max_bytes) or content if content else _EMPTY
                first += count
    except (pa.ArrowException, OSError) as error:
        raise DataError(
            f"{name}: column {column!r} cannot be read: {error}. The table is damaged, copy it again."
        ) from None
