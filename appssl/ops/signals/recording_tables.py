"""What recordings there are, and their samples: two layouts, read alike.

A *recording table* has a row per recording, whose samples lie in a CSV or Parquet file of their own. A *long table*
holds the samples of all recordings; its devices are a column, or groups of columns (`Wide`).
"""

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np
import polars as pl
from pydantic import Field, model_validator

from appssl.errors import DataError
from appssl.ops.paths import inside
from appssl.ops.signals.recordings import (
    PARTS,
    BadRecording,
    Recording,
    Samples,
    TimeUnit,
    one_time,
    open_table,
    quoted,
    read_rows,
    require,
    shown_rows,
    texts,
    whole_table,
)
from appssl.ops.signals.sample_chunks import Frames, file_frames, samples, table_frames
from appssl.ops.table_limits import refuse
from appssl.settings import Settings

TABLE_COLUMNS = ("recording_id", "subject_id", "device", "path")  # and optional ones:
OPTIONAL_COLUMNS = ("session_id", "sampling_hz", "start_time")
_ROW = "\0row"  # a name that no column has
# A recording and its samples in chunks, which end in a BadRecording if it cannot be used. They are read when asked for,
# one recording after the other.
Loaded = tuple[Recording, Iterator[Samples]]


class Columns(Settings):
    """Which column holds what. With `table`: of the recordings' files; with `long_table`: of that table."""

    time: str | None = Field("time", description="time of a sample; null: none, samples are equally spaced")
    label: str | None = Field(None, description="activity of a sample; null: none, or intervals in `labels`")
    subject: str = Field("subject_id", description="person, in a long table")
    device: str = Field("device", description="device, in a long table that is not wide")
    session: tuple[str, ...] = Field((), description="columns that bound a session of a person, in a long table")
    order: tuple[str, ...] = Field((), description="columns that order the samples of a session without time")
    split: str | None = Field(None, description="train, val or test, in the recording table or long table")


class Wide(Settings):
    """A long table where every device is a group of columns."""

    columns: str = Field("{device}_{channel}", description="how the columns are named")
    devices: tuple[str, ...] = Field(min_length=1, description="names of the devices")
    channels: tuple[str, ...] = Field(min_length=1, description="names of the channels, those of every device")

    @model_validator(mode="after")
    def _named(self) -> "Wide":
        if "{device}" not in self.columns or "{channel}" not in self.columns:
            raise ValueError("columns must contain {device} and {channel}")
        return self

    def column(self, device: str, channel: str) -> str:
        return self.columns.replace("{device}", device).replace("{channel}", channel)


class RecordingTable:
    """A table of recordings, each in a file of its own."""

    def __init__(self, root: Path, path: str, *, columns: Columns, unit: TimeUnit, hz: float | None) -> None:
        """
        Raises:
            DataError: if the table is wrong; all its problems in one message.
        """
        self.root, self.columns, self.unit, self.hz = root, columns, unit, hz
        frame = whole_table(root, path)
        require(path, frame.columns, [*TABLE_COLUMNS, *([columns.split] if columns.split else [])])
        if frame.is_empty():
            raise DataError(f"{path}: the table is empty. Give a table with one row per recording.")
        used = [name for name in (*TABLE_COLUMNS, *OPTIONAL_COLUMNS) if name in frame.columns]
        cells = {name: texts(frame[name]) for name in used}
        cells["split"] = texts(frame[columns.split]) if columns.split else [None] * len(frame)
        problems: list[str] = []
        found = [self._row(path, k, {n: c[k] for n, c in cells.items()}, problems) for k in range(len(frame))]
        seen: dict[str, int] = {}
        for k, name in enumerate(cells["recording_id"]):
            if name and seen.setdefault(name, k) != k:
                problems.append(
                    f"{path} row {k + 1}: recording_id {name!r} is there twice, first in row {seen[name] + 1}"
                )
        refuse(problems)
        self.recordings = sorted(found, key=lambda r: r.id)

    def _row(self, path: str, k: int, cells: Mapping[str, str | None], problems: list[str]) -> Recording:
        where = f"{path} row {k + 1}"
        problems += [f"{where}: {name} is empty" for name in TABLE_COLUMNS if not cells[name]]
        hz = _positive(cells.get("sampling_hz"), f"{where}: sampling_hz", problems)
        start = self._start(cells.get("start_time"), where, problems)
        if self.columns.time is None and hz is None and self.hz is None:
            problems.append(
                f"{where}: without a time column the rate is needed: give sampling_hz, or recorded_hz in the settings"
            )
        if cells["split"] is not None and cells["split"] not in PARTS:
            problems.append(f"{where}: {self.columns.split} is {cells['split']!r}, must be one of {', '.join(PARTS)}")
        file = cells["path"] or "."
        try:
            inside(self.root, file)
        except DataError as error:
            problems.append(f"{where}: {error}")
        name, subject, device = (cells[column] or "" for column in ("recording_id", "subject_id", "device"))
        session = quoted(cells["session_id"]) if cells.get("session_id") else None
        return Recording(name, subject, device, where, session, cells["split"], file, hz or self.hz, start)

    def _start(self, cell: str | None, where: str, problems: list[str]) -> float | None:
        if cell is None:
            return None
        if self.columns.time is not None and self.unit != "seconds":
            problems.append(
                f"{where}: start_time is for times in seconds; {self.unit} times are absolute. Leave it empty"
            )
            return None
        units: tuple[TimeUnit, ...] = ("seconds", "iso")
        found = [value for unit in units if np.isfinite(value := one_time(cell, unit))]
        if not found:
            problems.append(f"{where}: start_time {cell!r} is neither a number of seconds nor an ISO time")
            return None
        return found[0]

    def channels(self) -> tuple[str, ...]:
        """Columns of the first readable file that are neither time nor label."""
        for recording in self.recordings:
            try:
                names = open_table(self.root, recording.path).collect_schema().names()
            except DataError:
                continue  # it fails by itself, with its reason, when it is read
            if found := tuple(n for n in names if n not in (self.columns.time, self.columns.label)):
                return found
        raise DataError("no recording of the table can be read, or none has a column beside the time. Check its paths.")

    def load(self, subjects: Sequence[str], channels: Sequence[str]) -> Iterator[tuple[str, Iterator[Loaded]]]:
        """Every subject with its recordings."""
        for subject in subjects:
            own = [recording for recording in self.recordings if recording.subject == subject]
            yield subject, ((recording, self._samples(recording, channels)) for recording in own)

    def digest(self, recording: Recording) -> str | None:
        """SHA-256 of the file of a recording; null if there is none."""
        file = inside(self.root, recording.path)
        return _sha256(file) if file.is_file() else None

    def _samples(self, recording: Recording, channels: Sequence[str]) -> Iterator[Samples]:
        c = self.columns
        wanted = [*channels, *(name for name in (c.time, c.label) if name is not None)]
        frames = _readable(file_frames(self.root, recording.path, wanted))
        return samples(frames, channels, recording, time=c.time, label=c.label, unit=self.unit)


def _readable(frames: Frames) -> Frames:
    try:
        yield from frames
    except DataError as error:
        raise BadRecording("unreadable", str(error)) from None


class LongTable:
    """A table with the samples of all recordings."""

    def __init__(
        self, root: Path, path: str, *, columns: Columns, wide: Wide | None, unit: TimeUnit, hz: float | None
    ) -> None:
        """
        Raises:
            DataError: if the table is wrong; all its problems in one message.
        """
        self.root, self.path, self.columns, self.wide, self.unit, self.hz = root, path, columns, wide, unit, hz
        table = open_table(root, path)
        self.names = table.collect_schema().names()
        c = columns
        keys = [c.subject, *([] if wide else [c.device]), *c.session, *([c.split] if c.split else [])]
        extra = [*c.order, *(name for name in (c.time, c.label) if name is not None)]
        groups = [wide.column(d, ch) for d in wide.devices for ch in wide.channels] if wide else []
        require(path, self.names, [*keys, *extra, *groups])
        if c.time is None and hz is None:
            raise DataError(f"{path}: without a time column the rate is needed: set recorded_hz.")
        self.keys = list(dict.fromkeys(keys))
        self.table = table.with_columns(pl.col(name).cast(pl.String).str.strip_chars() for name in self.keys)
        found = read_rows(root, path, self.table.select(self.keys).unique(maintain_order=True), self.keys)
        if found.is_empty():
            raise DataError(f"{path}: the table is empty. Give a table with one row per sample.")
        self.recordings = self._listed(found)

    def _listed(self, found: pl.DataFrame) -> list[Recording]:
        c = self.columns
        cells = {name: texts(found[name]) for name in found.columns}
        problems: list[str] = []
        recordings: dict[str, Recording] = {}
        for k in range(len(found)):
            needed = [name for name in self.keys if name != c.split]
            empty = [name for name in needed if cells[name][k] is None]
            problems += [f"{self.path}: column {name} has empty cells; every sample needs one" for name in empty]
            split = cells[c.split][k] if c.split else None
            if split is not None and split not in PARTS:
                problems.append(f"{self.path}: {c.split} is {split!r}, must be one of {', '.join(PARTS)}")
            subject, session = str(cells[c.subject][k]), "/".join(quoted(cells[name][k]) for name in c.session)
            for device in self.wide.devices if self.wide else (str(cells[c.device][k]),):
                name = "/".join(part for part in (quoted(subject), session, quoted(device)) if part)
                old = recordings.get(name)
                if old is not None and old.split != split:
                    problems.append(f"{self.path}: recording {name} is in the parts {old.split} and {split}")
                where = f"{self.path} {name}"
                recordings[name] = Recording(name, subject, device, where, session or None, split, hz=self.hz)
        refuse(list(dict.fromkeys(problems)))
        return [recordings[name] for name in sorted(recordings)]

    def channels(self) -> tuple[str, ...]:
        """Channels of `wide`, or numeric columns (all of a CSV) that are nothing else."""
        if self.wide:
            return self.wide.channels
        c = self.columns
        used = {*self.keys, *c.order, c.time, c.label}
        schema = self.table.collect_schema()
        found = tuple(n for n in self.names if n not in used and (schema[n].is_numeric() or schema[n] == pl.String))
        if not found:
            raise DataError(f"{self.path}: no column is left for the channels. It has: {', '.join(self.names)}.")
        return found

    def load(self, subjects: Sequence[str], channels: Sequence[str]) -> Iterator[tuple[str, Iterator[Loaded]]]:
        """Every subject with its recordings; the rows of all of them are read at once."""
        c = self.columns
        data = [self.wide.column(d, ch) for d in self.wide.devices for ch in channels] if self.wide else list(channels)
        require(self.path, self.names, data)
        wanted = dict.fromkeys([*self.keys, *c.order, *(n for n in (c.time, c.label) if n is not None), *data])
        own = {r.subject for r in self.recordings} & set(subjects)
        chosen = self.table.select(list(wanted)).with_row_index(_ROW, offset=1)
        found = read_rows(self.root, self.path, chosen.filter(pl.col(c.subject).is_in(sorted(own))), list(wanted))
        by_subject = {key[0]: part for key, part in found.group_by(c.subject, maintain_order=True)}
        for subject in subjects:
            yield subject, self._subject(subject, by_subject[subject], channels)

    def digest(self, recording: Recording) -> str | None:
        """Null: the digest of the table says it."""
        return None

    def _subject(self, subject: str, frame: pl.DataFrame, channels: Sequence[str]) -> Iterator[Loaded]:
        c = self.columns
        names = [*c.session, *([] if self.wide else [c.device])]
        parts: dict[str, pl.DataFrame] = {}
        for key, part in frame.group_by(names, maintain_order=True) if names else [((), frame)]:
            parts["/".join(quoted(str(value)) for value in key)] = part
        for recording in self.recordings:
            if recording.subject == subject:
                mine = recording.session or "" if self.wide else recording.id.removeprefix(f"{quoted(subject)}/")
                part = parts[mine].sort(list(c.order), maintain_order=True) if c.order else parts[mine]
                yield recording, self._samples(recording, part, channels)

    def _samples(self, recording: Recording, part: pl.DataFrame, channels: Sequence[str]) -> Iterator[Samples]:
        c = self.columns
        columns = [self.wide.column(recording.device, ch) for ch in channels] if self.wide else list(channels)
        rows = part[_ROW].cast(pl.Int64).to_numpy()
        yield from samples(table_frames(part, rows), columns, recording, time=c.time, label=c.label, unit=self.unit)
        if c.time is None and c.order:
            repeated = part.select(c.order).is_duplicated().to_numpy()
            if repeated.any():
                raise BadRecording("order_repeated", f"equal {', '.join(c.order)} in {shown_rows(rows[repeated])}")


def _sha256(file: Path) -> str:
    with file.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def _positive(cell: str | None, what: str, problems: list[str]) -> float | None:
    if cell is None:
        return None
    value = one_time(cell, "seconds")
    if not value > 0:
        problems.append(f"{what} is {cell!r}, must be a number above 0")
        return None
    return value
