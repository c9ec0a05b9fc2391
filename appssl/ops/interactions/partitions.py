"""Records on disk in parts that fit in memory: by ranges of users, then by ranges of time."""

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import polars as pl

EVENTS_AT_ONCE = 1 << 21  # of a part, about; a user, and the events of one second, are never divided
RECORDS_READ = 1 << 20


@contextmanager
def scratch(folder: Path) -> Iterator[Path]:
    """A folder for files in between, empty at the start and gone at the end."""
    inner = folder / ".scratch"
    shutil.rmtree(inner, ignore_errors=True)  # left by a process that was killed
    inner.mkdir(parents=True)
    try:
        yield inner
    finally:
        shutil.rmtree(inner, ignore_errors=True)


def chunks(path: Path, kind: np.dtype) -> Iterator[np.ndarray]:
    """Records of a file, a part at a time, writable."""
    with path.open("rb") as file:
        while content := file.read(RECORDS_READ * kind.itemsize):
            yield np.frombuffer(bytearray(content), dtype=kind)


class Partitions:
    """Files of records, numbered; what is added is appended, in order."""

    def __init__(self, folder: Path, kind: np.dtype, count: int) -> None:
        folder.mkdir()
        self._folder, self.kind, self.count = folder, kind, count

    def _path(self, number: int) -> Path:
        return self._folder / f"{number}.part"

    def add(self, records: np.ndarray, parts: np.ndarray) -> None:
        """Appends each record (N,) to its part (N,) uint16."""
        order = np.argsort(parts, kind="stable")
        records = records.take(order)  # of records several times as fast as records[order]
        ends = np.cumsum(np.bincount(parts, minlength=self.count))
        for number in np.unique(parts).tolist():
            with self._path(number).open("ab") as file:
                file.write(records[ends[number - 1] if number else 0 : ends[number]].data)

    def read(self, number: int) -> np.ndarray:
        """All records of a part, writable."""
        path = self._path(number)
        return np.fromfile(path, dtype=self.kind) if path.exists() else np.zeros(0, dtype=self.kind)

    def replace(self, number: int, records: np.ndarray) -> None:
        with self._path(number).open("wb") as file:
            file.write(np.ascontiguousarray(records).data)

    def take(self, number: int) -> np.ndarray:
        """All records of a part, whose file is removed."""
        records = self.read(number)
        self._path(number).unlink(missing_ok=True)
        return records


def ranges(counts: np.ndarray) -> np.ndarray:
    """Part (len(counts),) uint16 of each of a row of things with so many events: consecutive, about equal in events."""
    before = np.cumsum(counts) - counts
    return np.unique(before // EVENTS_AT_ONCE, return_inverse=True)[1].astype(np.uint16)


def ordered_by(*keys: np.ndarray) -> np.ndarray:
    """Rows (N,) in the order of the first key, then the next; equal rows stay in their order."""
    frame = pl.DataFrame({str(number): np.ascontiguousarray(key) for number, key in enumerate(keys)})
    return frame.select(pl.arg_sort_by(*frame.columns, maintain_order=True)).to_series().to_numpy()


def pair(first: np.ndarray, second: np.ndarray) -> np.ndarray:
    """Two numbers (N,) uint32 as one (N,) uint64, in the order of the first, then the second."""
    return (first.astype(np.uint64) << np.uint64(32)) | second
