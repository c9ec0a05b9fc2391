"""Labels of recordings, per sample or as intervals of time: read, named, and refused with their rows."""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

import numpy as np
import polars as pl

from appssl.errors import DataError
from appssl.ops.signals.recordings import (
    LABEL_COLUMNS,
    RowNumbers,
    TimeUnit,
    only_moment,
    require,
    shown_rows,
    texts,
    whole_table,
)
from appssl.ops.table_limits import SHOWN, refuse
from appssl.settings import nearest


@dataclass(frozen=True)
class Intervals:
    """Labels as intervals, sorted by start: (n,) float64 seconds, (n,) labels. `rows` as in the table."""

    start: np.ndarray
    end: np.ndarray
    label: list[str]
    session: list[str | None]
    rows: list[int]


def label_names(root: Path, path: str) -> dict[str, str]:
    """Name of each label value: the first two columns of a table."""
    frame = whole_table(root, path)
    if frame.width < 2 or frame.is_empty():
        raise DataError(f"{path}: needs two columns, label value and name, and at least one row.")
    keys, names = texts(frame.to_series(0)), texts(frame.to_series(1))
    problems = [
        f"{path} row {row + 1}: value or name is empty"
        for row, (k, n) in enumerate(zip(keys, names, strict=True))
        if not k or not n
    ]
    seen: set[str | None] = set()
    for row, key in enumerate(keys):
        if key in seen:
            problems.append(f"{path} row {row + 1}: value {key!r} is there twice")
        seen.add(key)
    refuse(problems)
    return {str(key): str(name) for key, name in zip(keys, names, strict=True)}


def read_intervals(root: Path, path: str, unit: TimeUnit, subjects: Sequence[str]) -> dict[str, Intervals]:
    """Intervals of every subject, from a table `subject_id, start, end, activity` (and optionally `session_id`).

    Raises:
        DataError: with all problems: columns, times, end before start, overlap with another activity, unknown subject.
    """
    frame = whole_table(root, path)
    require(path, frame.columns, LABEL_COLUMNS)
    if frame.is_empty():
        raise DataError(f"{path}: the table is empty. Give a row per interval, or leave the setting `labels` out.")
    cells = {name: texts(frame[name]) for name in LABEL_COLUMNS}
    cells["session"] = texts(frame["session_id"]) if "session_id" in frame.columns else [None] * len(frame)
    known, problems = set(subjects), list[str]()
    rows: dict[str, list[tuple[str, float, float, str, int]]] = {}
    for k in range(len(frame)):
        subject, activity, session = cells["subject_id"][k], cells["activity"][k], cells["session"][k]
        start, end = (_moment(frame[name], k, unit, f"{path} row {k + 1}", problems) for name in ("start", "end"))
        if start >= end:
            problems.append(f"{path} row {k + 1}: the interval ends before it starts")
        problems += [f"{path} row {k + 1}: {n} is empty" for n in ("subject_id", "activity") if not cells[n][k]]
        if subject and subject not in known:
            hint = nearest(subject, subjects) if len(problems) < SHOWN else ""  # of many rows it takes long
            problems.append(f"{path} row {k + 1}: subject_id {subject!r} has no recording.{hint}")
        rows.setdefault(str(subject), []).append((session or "", start, end, str(activity), k + 1))
    for own in rows.values():
        own.sort()
        for (s1, _, end, a1, r1), (s2, start, _, a2, r2) in pairwise(own):
            if s1 == s2 and start < end and a1 != a2:
                problems.append(f"{path} rows {r1} and {r2}: {a1} and {a2} of the same subject overlap in time")
    refuse(problems)
    return {subject: _intervals(own) for subject, own in rows.items()}


def _intervals(own: list[tuple[str, float, float, str, int]]) -> Intervals:
    sessions, start, end, label, rows = zip(*own, strict=True)
    return Intervals(np.array(start), np.array(end), list(label), [session or None for session in sessions], list(rows))


def _moment(series: pl.Series, k: int, unit: TimeUnit, where: str, problems: list[str]) -> float:
    value = only_moment(series[k : k + 1], unit)
    if not np.isfinite(value):
        problems.append(f"{where}: {series.name} is {series[k]!r}, a time ({unit}) is needed")
    return value


class Labels:
    """Labels of samples as numbers, in the order in which they are met, and the rows of those that are not known."""

    def __init__(self, names: dict[str, str] | None, classes: Sequence[str], where: str) -> None:
        """
        Args:
            names: name of each value; null: values are names. classes: allowed names; empty: all. where: for messages.
        """
        self._names, self._classes, self._where = names, classes, where
        self._number: dict[str, int] = {}
        self._unknown: dict[str, RowNumbers] = {}
        self.names: list[str | None] = []  # of the numbers; null where it has none

    def add(self, labels: pl.Series, rows: np.ndarray) -> np.ndarray:
        """(n,) int32 numbers of labels (n,) of any type, -1 where there is none."""
        if labels.dtype != pl.String and not labels.dtype.is_integer():
            labels = labels.cast(pl.String)
        raw = labels.unique(maintain_order=True)
        number = pl.Series([self._of(value) for value in texts(raw)], dtype=pl.Int32)
        found = labels.replace_strict(raw, number, return_dtype=pl.Int32).to_numpy()
        for value, hit in self._unknown.items():
            hit.add(rows[found == self._number[value]])
        return found

    def _of(self, value: str | None) -> int:
        if value is None:
            return -1
        if value not in self._number:
            name = value if self._names is None else self._names.get(value)
            if name is None or (self._classes and name not in self._classes):
                self._unknown[value] = RowNumbers()
            self._number[value] = len(self._number)
            self.names.append(name)
        return self._number[value]

    def problems(self) -> list[str]:
        """Every value that has no name, or is no class, with its rows."""
        found = []
        for value, rows in sorted(self._unknown.items()):
            name = self.names[self._number[value]]
            known = list(self._names or ()) if name is None else list(self._classes)
            what = "label_names" if name is None else "classes"
            hint = nearest(value, known)
            found.append(f"{self._where} {shown_rows(rows)}: label {value!r} is not in {what}.{hint}")
        return found


def name_intervals(
    intervals: dict[str, Intervals], names: dict[str, str] | None, classes: Sequence[str], path: str
) -> list[str]:
    """Replaces label values by names, in place; the problems of those that have none."""
    problems: list[str] = []
    for found in intervals.values():
        labels = Labels(names, classes, path)
        numbers = labels.add(pl.Series("label", found.label, dtype=pl.String), np.array(found.rows))
        problems += labels.problems()
        found.label[:] = [labels.names[k] or "" for k in numbers.tolist()]
    return problems
