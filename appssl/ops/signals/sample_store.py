"""Arrays of any length: in memory while they are small, in a nameless file beyond, and read back by slices.

The file has no name in its folder, so that nothing of it is left when it is closed, or when the process ends in
whatever way.
"""

import errno
import os
import tempfile
from bisect import bisect_left, bisect_right
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, BinaryIO

import numpy as np

from appssl.errors import AppsslError

CHUNK_ROWS = 1 << 15  # rows that are worked on at once: a MiB or so, which the cache of a processor holds
IN_MEMORY = 64 << 20  # bytes of a `Scratch` that stay in memory


def slices(length: int, rows: int | None = None) -> Iterator[tuple[int, int]]:
    """(first, last + 1) of chunks of `rows` rows, `CHUNK_ROWS` without, one after the other."""
    step = rows or CHUNK_ROWS
    return ((a, min(a + step, length)) for a in range(0, length, step))


@dataclass(frozen=True)
class _Filed:
    """An array (channels, n) in a file."""

    file: BinaryIO
    offset: int
    dtype: np.dtype
    shape: tuple[int, ...]

    def read(self, begin: int, channels: Sequence[int], out: np.ndarray) -> None:
        """Fills `out` (channels, m) with the numbers of some channels from `begin` on."""
        for row, channel in zip(out, channels, strict=True):
            own = row if row.dtype == self.dtype else np.empty(len(row), self.dtype)
            self.file.seek(self.offset + (channel * self.shape[1] + begin) * self.dtype.itemsize)
            view = memoryview(own.data).cast("B")
            while view:
                view = view[self.file.readinto(view) :]  # type: ignore[attr-defined]
            if own is not row:
                row[:] = own


class Scratch:
    """Keeps arrays, the first `limit` bytes in memory and all others in a file in `folder`, until it is closed."""

    def __init__(self, folder: Path, limit: int | None = None) -> None:
        self._folder = folder
        self._free = IN_MEMORY if limit is None else limit
        self._file: BinaryIO | None = None
        self._end = 0

    def __enter__(self) -> "Scratch":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._file is not None:
            self._file.close()

    def keep(self, values: np.ndarray) -> "np.ndarray | _Filed":
        """
        Raises:
            AppsslError: if the disk is full.
        """
        values = np.ascontiguousarray(values)
        if values.nbytes <= self._free:
            self._free -= values.nbytes
            return values
        try:
            return self._write(values)
        except OSError as error:
            raise AppsslError(
                f"{self._folder}: no space for long recordings while they are worked on: {error.strerror or error}. "
                "Free space or choose another --out."
            ) from error

    def _write(self, values: np.ndarray) -> _Filed:
        if self._file is None:
            self._file = tempfile.TemporaryFile(dir=self._folder, buffering=0)  # noqa: SIM115, closed at the end
        _reserve(self._file, self._end, values.nbytes)
        filed = _Filed(self._file, self._end, values.dtype, values.shape)
        self._file.seek(self._end)
        view = memoryview(values.data).cast("B")
        self._end += values.nbytes
        while view:
            view = view[self._file.write(view) :]
        return filed


def _reserve(file: BinaryIO, begin: int, num_bytes: int) -> None:
    """Makes room where the system can: a full disk is told at once, and writing takes a tenth of the time on ext4."""
    if hasattr(os, "posix_fallocate"):
        try:
            os.posix_fallocate(file.fileno(), begin, num_bytes)
        except OSError as error:
            if error.errno not in (errno.EOPNOTSUPP, errno.EINVAL, errno.ENOSYS):
                raise


class Column:
    """Rows (n,) or (n, channels) that were appended, kept in chunks of `CHUNK_ROWS`.

    Reads like an array with its rows first: `[a:b]`, `[a:b, [0, 2]]` for some channels, and `[k]` for one row. Every
    read goes to the file again where the rows lie there; the channels of what is read are contiguous in memory.
    """

    def __init__(self, scratch: Scratch) -> None:
        self._scratch = scratch
        self._chunks: list[np.ndarray | _Filed] = []  # (channels, n) each
        self._ends = [0]
        self._open = np.zeros((1, 0))  # (channels, CHUNK_ROWS), and how many of these rows are there
        self._filled = 0
        self._is_flat = True

    def append(self, rows: np.ndarray) -> None:
        if rows.dtype != self._open.dtype or not self._open.size:
            self._close()
            self._is_flat = rows.ndim == 1
            self._open = np.empty((1 if self._is_flat else rows.shape[1], CHUNK_ROWS), rows.dtype)
        begin, room = 0, self._open.shape[1]
        while begin < len(rows):
            part = rows[begin : begin + room - self._filled]
            self._open[:, self._filled : self._filled + len(part)] = part.T
            begin, self._filled = begin + len(part), self._filled + len(part)
            if self._filled == room:
                self._close()

    def _close(self) -> None:
        """Keeps the open chunk, full or not."""
        if self._filled:
            kept = self._scratch.keep(self._open[:, : self._filled])
            self._chunks.append(kept)
            self._ends.append(self._ends[-1] + self._filled)
            self._filled = 0
            if isinstance(kept, np.ndarray):
                self._open = np.empty_like(self._open)

    def __len__(self) -> int:
        return self._ends[-1] + self._filled

    def __getitem__(self, key: Any) -> Any:
        rows, channels = key if isinstance(key, tuple) else (key, None)
        if isinstance(rows, slice):
            begin, end, _ = rows.indices(len(self))
            return self._read(begin, max(begin, end), channels)
        row = range(len(self))[rows]
        return self._read(row, row + 1, channels)[0]

    def _read(self, begin: int, end: int, channels: list[int] | None) -> np.ndarray:
        self._close()
        self._open = self._open[:, :0].copy()  # most columns are read when they are complete
        k = bisect_right(self._ends, begin) - 1
        everything = list(range(self._open.shape[0]))
        wanted = everything if channels is None else channels
        own = self._chunks[k : bisect_left(self._ends, end)]
        if len(own) == 1 and isinstance(own[0], np.ndarray) and wanted == everything:
            found = own[0][:, begin - self._ends[k] : end - self._ends[k]]
        else:
            types = [chunk.dtype for chunk in own] or [self._open.dtype]
            found = np.empty((len(wanted), end - begin), np.result_type(*types))
            for first, last, chunk in zip(self._ends[k:], self._ends[k + 1 :], own, strict=False):
                a, b = max(begin, first), min(end, last)
                part = found[:, a - begin : b - begin]
                if isinstance(chunk, np.ndarray):
                    part[:] = chunk[:, a - first : b - first][wanted]
                else:
                    chunk.read(a - first, wanted, part)
        return found[0] if self._is_flat else found.T


class View:
    """Rows begin..end - 1 of others, changed by a function if there is one; reads like them, where they lie."""

    def __init__(
        self, rows: "Rows", begin: int, end: int, change: Callable[[np.ndarray], np.ndarray] | None = None
    ) -> None:
        self._rows, self._places, self._change = rows, range(begin, end), change

    def __len__(self) -> int:
        return len(self._places)

    def __getitem__(self, key: Any) -> Any:
        rows, *channels = key if isinstance(key, tuple) else (key,)
        places = self._places[rows]
        own = slice(places.start, places.stop) if isinstance(places, range) else places
        found = self._rows[(own, *channels)] if channels else self._rows[own]
        return found if self._change is None else self._change(found)


Rows = np.ndarray | Column | View
