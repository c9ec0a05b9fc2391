"""`decisions.csv` while somebody reviews: every decision is on the disk before it is answered."""

import threading
from collections.abc import Mapping, Sequence
from pathlib import Path

import polars as pl

from appssl.artifact import write_table, written_aside
from appssl.errors import DataError
from appssl.ops.images.decisions import COLUMNS, DECISIONS, REASONS, read_decisions


class Decisions:
    """The decisions of a review: read at the start, written whole, aside and renamed, after each change.

    The file is sorted by id and holds no time, so it depends on what was decided only. Decisions about images that are
    not in these data stay in it: they were left out because of them, or belong to a larger part of the same crawl.
    """

    def __init__(self, path: Path, *, given: Mapping[str, str | None], classes: Sequence[str]) -> None:
        """
        Args:
            given: id -> given label of every image in the data.
        Raises:
            DataError: if what is in the file is wrong, or is of none of these images.
        """
        self.path, self.given, self.classes = path, given, tuple(classes)
        self._lock = threading.Lock()
        self._rows: dict[str, tuple[str, str | None]] = {}
        if path.is_file():
            found = read_decisions(path, str(path), classes=self.classes, given=given)
            self._rows = {name: (decision, label) for name, decision, label in found.iter_rows()}
        if self._rows and not self.num_here:
            raise DataError(f"{path}: none of its {len(self)} decisions is of these images. Choose another --out.")

    def __len__(self) -> int:
        return len(self._rows)

    @property
    def num_here(self) -> int:
        """Decisions about images in the data."""
        return sum(name in self.given for name in self._rows)

    def rows(self) -> list[tuple[str, str, str | None]]:
        """(id, decision, label), sorted."""
        with self._lock:
            return self._sorted()

    def _sorted(self) -> list[tuple[str, str, str | None]]:
        return [(name, *self._rows[name]) for name in sorted(self._rows)]

    def decide(self, name: str, decision: str | None, label: str | None) -> None:
        """Notes a decision in place of an earlier one of the same image, and writes the file; None takes it back.

        Args:
            label: the right class for `relabel`; others do not read it.
        Raises:
            DataError: if there is no such image, decision or class; the file is as it was.
        """
        if name not in self.given:
            raise DataError(f"there is no image {name!r} in these data.")
        row = None if decision is None else self._checked(name, decision, label)
        with self._lock:
            before = self._rows.get(name)
            if row == before:
                return
            self._put(name, row)
            try:
                self._write()
            except BaseException:
                self._put(name, before)
                raise

    def _checked(self, name: str, decision: str, label: str | None) -> tuple[str, str | None]:
        if decision not in DECISIONS:
            raise DataError(f"decision {decision!r} is not one of {', '.join(DECISIONS)}.")
        if decision in REASONS:
            return decision, None
        label = self.given[name] if decision == "keep" else label
        if label not in self.classes:
            raise DataError(f"{decision} of {name!r}: {label!r} is no class.")
        return decision, label

    def _put(self, name: str, row: tuple[str, str | None] | None) -> None:
        if row is None:
            self._rows.pop(name, None)
        else:
            self._rows[name] = row

    def _write(self) -> None:
        frame = pl.DataFrame(self._sorted(), schema=dict.fromkeys(COLUMNS, pl.String), orient="row")
        with written_aside(self.path) as file:
            write_table(file, frame, ".csv")
