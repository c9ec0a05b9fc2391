"""Arrays of any length: in memory while they are small, in a nameless file beyond, and read back by slices.

The file has no name in its folder, so that nothing of it is left when it is closed, or when the process ends in
whatever way.
"""

import errno
import os
import tempfile
from bisect import bisect_right
from collections.abc import Callable, Iterator
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
    """An array (n,) or (channels, n) in a file."""

    file: BinaryIO
    offset: int
    dtype: np.dtype
    shape: tuple[int, ...]

    def read(self, begin: int, end: int, channels: list[int]) -> np.ndarray:
        """(channels, end - begin)."""
        found = np.empty((len(channels), end - begin), self.dtype)
        for row, channel in zip(found, channels, strict=True):
            self.file.seek(self.offset + (channel * self.shape[-1] + begin) * self.dtype.itemsize)
            view = memoryview(row).cast("B")
            while view:
                view = view[self.file.readinto(view) :]  # type: ignore[attr-defined]
        return found


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
    """Rows (n,) or (n, channels) that were appended in chunks.

    Reads like an array with its rows first: `[a:b]`, `[a:b, [0, 2]]` for some channels, and `[k]` for one row. Every
    read goes to the file again where the rows lie there; the channels of what is read are contiguous in memory.
    """

    def __init__(self, scratch: Scratch) -> None:
        self._scratch = scratch
        self._chunks: list[np.ndarray | _Filed] = []
        self._ends = [0]

    def append(self, rows: np.ndarray) -> None:
        if len(rows) or not self._chunks:  # the first chunk says what kind of rows there are, also without any
            self._chunks.append(self._scratch.keep(rows.T))
            self._ends.append(self._ends[-1] + len(rows))

    def __len__(self) -> int:
        return self._ends[-1]

    def __getitem__(self, key: Any) -> Any:
        rows, channels = key if isinstance(key, tuple) else (key, None)
        if isinstance(rows, slice):
            begin, end, _ = rows.indices(len(self))
            return self._read(begin, max(begin, end), channels)
        row = range(len(self))[rows]
        return self._read(row, row + 1, channels)[0]

    def _read(self, begin: int, end: int, channels: list[int] | None) -> np.ndarray:
        k = min(bisect_right(self._ends, begin) - 1, len(self._chunks) - 1)
        parts: list[np.ndarray] = []
        while not parts or begin < end:
            first, last = self._ends[k], min(end, self._ends[k + 1])
            parts.append(_part(self._chunks[k], begin - first, last - first, channels))
            begin, k = last, k + 1
        return (parts[0] if len(parts) == 1 else np.concatenate(parts, axis=-1)).T


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


def _part(chunk: np.ndarray | _Filed, begin: int, end: int, channels: list[int] | None) -> np.ndarray:
    everything = list(range(chunk.shape[0])) if len(chunk.shape) > 1 else [0]
    if isinstance(chunk, _Filed):
        found = chunk.read(begin, end, everything if channels is None else channels)
        return found[0] if len(chunk.shape) == 1 else found
    return chunk[..., begin:end] if channels in (None, everything) else chunk[channels, begin:end]
