"""What a table of any origin may hold, and how reading one fails."""

from collections.abc import Sequence
from pathlib import Path

import polars as pl
import pyarrow as pa
from pyarrow import parquet

from appssl.errors import DataError

SHOWN = 20  # problems or rows written out in one message
_LONGEST_PROBLEM = 800  # characters
_BUFFER = 1 << 20  # bytes of a Parquet column that are read at once, whatever the size of its row groups
LONGEST_CELL = 65_536  # bytes of text; names, paths, labels and addresses are shorter, and messages repeat them
# A damaged Parquet file can end polars' own checks in a panic, which is no Exception.
UNREADABLE = (
    pl.exceptions.PolarsError,
    pl.exceptions.PanicException,
    pa.ArrowException,
    OSError,
    UnicodeDecodeError,
)


def refuse(problems: Sequence[str]) -> None:
    """Raises DataError with all problems, the first `SHOWN` written out."""
    if problems:
        more = f"\n  and {len(problems) - SHOWN} more" if len(problems) > SHOWN else ""
        shown = [
            text if len(text) <= _LONGEST_PROBLEM else f"{text[:_LONGEST_PROBLEM]}..." for text in problems[:SHOWN]
        ]
        raise DataError(f"{len(problems)} problem(s) in the input:\n  " + "\n  ".join(shown) + more)


def checked(path: Path, columns: Sequence[str] | None = None) -> Path:
    """The path itself. A Parquet file is decoded by Arrow first: polars 2.1 ends the process on some damaged pages.

    Args:
        columns: that are to be read, where others may be large, such as images; all if None.
    Raises:
        pa.ArrowException, OSError: if it is damaged.
    """
    if path.suffix.lower() != ".parquet":
        return path
    with parquet.ParquetFile(path, pre_buffer=False, buffer_size=_BUFFER) as file:
        for _ in file.iter_batches(columns=None if columns is None else list(columns)):
            pass
    return path


def refuse_long_cells(frame: pl.DataFrame, path: str) -> pl.DataFrame:
    """The frame itself. path: as messages name it.

    Raises:
        DataError: naming the first cell with a text longer than `LONGEST_CELL` bytes, as a lost quote makes them.
    """
    for name, kind in frame.schema.items():
        if kind != pl.String:
            continue
        too_long = (frame[name].str.len_bytes() > LONGEST_CELL).fill_null(False)
        if too_long.any():
            why = f"holds more than {LONGEST_CELL:,} bytes of text. Is a quote missing before it?"
            raise DataError(f"{path}: row {(too_long.arg_max() or 0) + 1}, column {name[:100]!r} {why}")
    return frame


def first_line(error: BaseException) -> str:
    """What a library says of a file, without the copy of its bytes that may follow."""
    return (str(error).splitlines() or [type(error).__name__])[0][:500]
