"""Samples of a recording in chunks of rows, so that its length does not matter, and all that is wrong in them."""

from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import polars as pl
import pyarrow.parquet as pq

from appssl.ops.paths import inside
from appssl.ops.signals import sample_store
from appssl.ops.signals.recordings import (
    BadRecording,
    Recording,
    RowNumbers,
    Samples,
    TimeUnit,
    Word,
    moments,
    numbers,
    open_table,
    reading,
    refuse_words,
    require,
    shown_rows,
)

_BUFFER = 1 << 20  # bytes of a Parquet column that are read at once, whatever the size of its row groups
Frames = Iterator[tuple[pl.DataFrame, np.ndarray]]  # rows of a table, and their numbers (n,) int64


def file_frames(root: Path, path: str, columns: Sequence[str]) -> Frames:
    """Columns of a CSV (all text) or Parquet table.

    Raises:
        DataError: if it cannot be read, or lacks a column.
    """
    table = open_table(root, path)
    require(path, table.collect_schema().names(), columns)
    if Path(path).suffix.lower() == ".parquet":
        frames = _parquet(inside(root, path), columns)
    else:
        frames = iter(table.select(columns).collect_batches(chunk_size=sample_store.CHUNK_ROWS))
    count = 0
    while (frame := reading(path, lambda: next(frames, None))) is not None:
        yield frame.select(columns), np.arange(count + 1, count + len(frame) + 1)
        count += len(frame)


def _parquet(file: Path, columns: Sequence[str]) -> Iterator[pl.DataFrame]:
    with pq.ParquetFile(file, pre_buffer=False, buffer_size=_BUFFER) as parquet:
        for batch in parquet.iter_batches(sample_store.CHUNK_ROWS, columns=list(columns), use_threads=False):
            yield pl.DataFrame(batch)


def table_frames(table: pl.DataFrame, rows: np.ndarray) -> Frames:
    """Slices of a table in memory whose rows have the numbers `rows`."""
    return ((table[a:b], rows[a:b]) for a, b in sample_store.slices(len(table)))


def samples(
    frames: Frames, columns: Sequence[str], recording: Recording, *, time: str | None, label: str | None, unit: TimeUnit
) -> Iterator[Samples]:
    """Samples of a recording whose channels are `columns`; without column `time` they are equally spaced.

    Raises:
        BadRecording: after the last chunk, naming all rows that are wrong; what was given before is of no use then.
    """
    words: list[Word] = []
    times = _Times(time, unit, recording)
    count = 0
    for frame, rows in frames:
        values, found = numbers(frame, columns, rows)
        words += found
        seconds = times.of(frame, rows)
        count += len(frame)
        if not words and times.are_good:
            yield Samples(seconds, values, None if label is None else frame[label], rows)
    if not count:
        raise BadRecording("empty", f"{recording.path or recording.where} has no rows")
    refuse_words(words)
    times.refuse()


class _Times:
    """Times of a recording chunk by chunk, and what is wrong with them."""

    def __init__(self, column: str | None, unit: TimeUnit, recording: Recording) -> None:
        self._column, self._unit, self._recording = column, unit, recording
        self._count = 0
        self._words: list[Word] = []
        self._missing = RowNumbers()
        self._example: object = None

    @property
    def are_good(self) -> bool:
        return not self._words and not len(self._missing)

    def of(self, frame: pl.DataFrame, rows: np.ndarray) -> np.ndarray:
        """(n,) float64 seconds."""
        first, self._count = self._count, self._count + len(frame)
        start = self._recording.start or 0.0
        if self._column is None:
            return np.arange(first, self._count) / float(self._recording.hz or 0) + start
        seconds, words = moments(frame[self._column], self._unit, rows)
        self._words += words
        missing = np.flatnonzero(~np.isfinite(seconds))
        if len(missing) and not len(self._missing):
            self._example = frame[self._column][int(missing[0])]
        self._missing.add(rows[missing])
        return seconds + start

    def refuse(self) -> None:
        refuse_words(self._words)
        if len(self._missing):
            raise BadRecording(
                "time_missing",
                f"no time ({self._unit}) in column {self._column}, {shown_rows(self._missing)}; "
                f"the first is {self._example!r}",
            )
