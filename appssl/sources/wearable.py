"""Recordings of body-worn devices on one clock: aligned windows of all devices of a person, with gaps explained.

Recordings of one person that overlap in time, or share a session column, are a session. All devices of a session are
resampled to ticks of one clock (`ops/signals/resample.py` states how), which begins with its first sample. Windows are
offsets into one memory-mapped array, so overlap costs nothing. A window that touches a gap, a sample without number, a
time without one of the devices, or a time when a device was not worn (`ops/signals/quality.py` states how that is told)
is left out with its reason; nothing is filled. With `missing_devices: mask` a window is kept as long as `min_devices`
can be used, and the others are NaN. Times are taken as they are unless `clocks` says otherwise.

A recording whose times or numbers cannot be used fails; the others go on. Samples with equal time are averaged, numbers
beyond float32 are no numbers, and after a pause of ten minutes the recording goes on as another part, so that a session
ends where all devices pause. The label of a window is the one that `label_purity` of its samples have; windows without
such a label are kept without.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, BinaryIO, Literal

import numpy as np
import polars as pl
from pydantic import Field, model_validator

from appssl.artifact import Artifact, ArtifactWriter, sha256_file
from appssl.contracts import Meta, Quarantined
from appssl.errors import DataError
from appssl.ops.paths import inside
from appssl.ops.signals.channels import vectors
from appssl.ops.signals.clock_correction import CLOCKS, Clocks, Lengths, clocks_differ, compared, measured_lengths
from appssl.ops.signals.notes import noted, units_differ
from appssl.ops.signals.quality import Wear
from appssl.ops.signals.recording_draft import drafted
from appssl.ops.signals.recording_fates import account_of_all, account_of_limits, with_fate
from appssl.ops.signals.recording_labels import Intervals, Labels, label_names, name_intervals, read_intervals
from appssl.ops.signals.recording_tables import Columns, LongTable, RecordingTable, Wide
from appssl.ops.signals.recordings import BadRecording, Recording, Samples, TimeUnit
from appssl.ops.signals.sample_store import Rows, Scratch
from appssl.ops.signals.session_windows import WINDOWS, window_table
from appssl.ops.signals.sessions import (
    Clock,
    Usable,
    clock_of,
    collisions,
    interval_labels,
    meets,
    never_meet,
    sample_labels,
    sessions,
    shown,
)
from appssl.ops.signals.shards import (
    SESSIONS,
    placed,
    refuse_mismatch,
    samples_table,
    statistics,
    write_session,
    write_signal,
)
from appssl.ops.signals.sheets import Sheet, account_figures, clock_figures, figures
from appssl.ops.signals.usable_recordings import RECORDINGS, usable_parts
from appssl.ops.signals.window_accounts import ACCOUNTS, accounts, of_devices
from appssl.ops.signals.window_data import WindowData
from appssl.ops.signals.windows import gravest, lengths, starts
from appssl.ops.split import GroupSplit, group_split, refuse_leak
from appssl.ops.table_limits import refuse
from appssl.settings import Settings, nearest

_INTERVALS: dict[str, Any] = {"subject": pl.String, "row": pl.Int64, "label": pl.String, "used": pl.Boolean}
_MOST_MASKED = 63  # devices, as many as a bit mask in int64 holds

Row = dict[str, Any]


class Config(Settings):
    name: Literal["wearable"] = "wearable"
    table: str | None = Field(None, description="input as table of recordings: recording_id, subject_id, device, path")
    long_table: str | None = Field(None, description="input as one table with the samples of all recordings")
    columns: Columns = Field(Columns(), description="what the columns of the samples mean")
    wide: Wide | None = Field(None, description="names of the columns when every device is a group of columns")
    time_unit: TimeUnit = Field("seconds", description="of all times: seconds, iso, or unix_ms (since 1970)")
    recorded_hz: float | None = Field(None, gt=0, le=1e5, description="stated rate of the recordings, Hz")
    labels: str | None = Field(None, description="table of labels as intervals: subject_id, start, end, activity")
    label_names: str | None = Field(None, description="table of two columns: label value, its name")
    classes: tuple[str, ...] = Field((), description="allowed labels in the order of class numbers; empty: all")
    devices: tuple[str, ...] = Field((), description="devices of a window; empty: all that occur")
    channels: tuple[str, ...] = Field((), description="channels of every device; empty: all columns that are left")
    sampling_hz: float = Field(25.0, gt=0, le=1e5, description="rate of the common clock, Hz")
    max_gap_seconds: float = Field(0.25, gt=0, description="samples further apart are not interpolated, seconds")
    window_seconds: float = Field(4.0, gt=0, description="length of a window, seconds")
    overlap: float = Field(0.5, ge=0, lt=1, description="share of a window that the next one repeats")
    label_purity: float = Field(0.8, ge=0, le=1, description="share of a window's samples that its label needs")
    missing_devices: Literal["refuse", "mask"] = Field(
        "refuse", description="windows need all devices, or devices that cannot be used there are masked"
    )
    min_devices: int = Field(1, ge=1, description="devices that a window needs with missing_devices: mask")
    wear: Wear = Field(Wear(), description="times when a device was not worn, and saturated samples")
    clocks: Clocks = Field(Clocks(), description="comparing and correcting the clocks of the devices of a session")
    split: GroupSplit = Field(GroupSplit(), description="division of the subjects when there is no split column")
    limit_subjects: int | None = Field(None, ge=1, description="use the first subjects only, by name")
    limit_seconds: float | None = Field(None, gt=0, description="use the beginning of every session only, seconds")

    @model_validator(mode="after")
    def _one_input(self) -> "Config":
        if (self.table is None) == (self.long_table is None):
            raise ValueError("give exactly one of table and long_table")
        if self.table is not None and (self.wide or self.columns.session or self.columns.order):
            raise ValueError("wide, columns.session and columns.order are for long_table")
        if self.labels is not None and self.columns.label is not None:
            raise ValueError("give labels as intervals (labels) or per sample (columns.label), not both")
        if self.missing_devices == "refuse" and self.min_devices != 1:
            raise ValueError("min_devices is for missing_devices: mask")
        for name in ("classes", "devices", "channels"):
            if len(set(getattr(self, name))) < len(getattr(self, name)):
                raise ValueError(f"{name} has a name twice")
        return self


@dataclass
class Index:
    """What all shards know: the listed recordings and what is expected of each."""

    input: RecordingTable | LongTable
    subjects: list[str]
    devices: tuple[str, ...]
    channels: tuple[str, ...]
    names: dict[str, str] | None
    intervals: dict[str, Intervals]
    splits: dict[str, str] = field(default_factory=dict)


@dataclass
class Made:
    """What a shard has to tell beside its signal: rows of its tables, and problems of labels."""

    recordings: list[Row] = field(default_factory=list)
    sessions: list[Row] = field(default_factory=list)
    intervals: list[Row] = field(default_factory=list)
    clocks: list[Row] = field(default_factory=list)
    windows: list[pl.DataFrame] = field(default_factory=list)
    accounts: list[pl.DataFrame] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)

    def write(self, out: ArtifactWriter) -> None:
        out.table("recordings.parquet", pl.DataFrame(self.recordings, schema=RECORDINGS))
        out.table("sessions.parquet", pl.DataFrame(self.sessions, schema=SESSIONS))
        out.table("windows.parquet", pl.concat([pl.DataFrame(schema=WINDOWS), *self.windows]))
        out.table("intervals.parquet", pl.DataFrame(self.intervals, schema=_INTERVALS))
        out.table("clocks.parquet", pl.DataFrame(self.clocks, schema=CLOCKS))
        out.table("accounts.parquet", pl.concat([pl.DataFrame(schema=ACCOUNTS), *self.accounts]))


class Wearable:
    def __init__(self, config: Config) -> None:
        self.config = config
        self.size, self.step = lengths(config.window_seconds, config.overlap, config.sampling_hz)

    def inputs(self, root: Path) -> list[Path]:
        return [root / path for path in self._tables().values()]

    def _tables(self) -> dict[str, str]:
        names = ("table", "long_table", "labels", "label_names")
        return {name: path for name in names if (path := getattr(self.config, name)) is not None}

    def prepare(self, root: Path, shard: int, num_shards: int, out: ArtifactWriter) -> None:
        """Resamples the sessions of every `num_shards`-th subject.

        Writes `signal.f32` (all samples of its sessions, devices * channels, float32) and the tables of recordings,
        sessions and windows.

        Raises:
            DataError: if the tables are wrong, or a label is not a class; all problems in one message.
        """
        index = self.index(root)
        for name, path in self._tables().items():
            out.input(f"table:{name}", sha256_file(inside(root, path)))
        made = Made()
        with out.open("signal.f32") as file:
            for subject, listed in index.input.load(index.subjects[shard::num_shards], index.channels):
                with Scratch(out.folder) as scratch:
                    usable = [u for own in listed for u in self._check(*own, index, scratch, made)]
                    clocks = [
                        self._session(name, part, index, scratch, file, made)
                        for name, part in self._sessions(subject, usable, made.recordings)
                    ]
                if subject in index.intervals:
                    made.intervals += _used(subject, index.intervals[subject], clocks)
        refuse(made.problems)
        made.write(out)
        about = {
            "shard": shard,
            "num_shards": num_shards,
            "devices": index.devices,
            "channels": index.channels,
            "order": list(index.names.values()) if index.names else [],
            "splits": index.splits,
            "not_chosen": sum(r.subject not in set(index.subjects) for r in index.input.recordings),
        }
        out.json("shard.json", about)

    def index(self, root: Path) -> Index:
        """Lists recordings, devices, channels and labels; see `prepare` for errors."""
        c = self.config
        listing: RecordingTable | LongTable
        if c.table is not None:
            listing = RecordingTable(root, c.table, columns=c.columns, unit=c.time_unit, hz=c.recorded_hz)
        else:
            listing = LongTable(
                root, str(c.long_table), columns=c.columns, wide=c.wide, unit=c.time_unit, hz=c.recorded_hz
            )
        subjects = sorted({r.subject for r in listing.recordings})
        found = sorted({r.device for r in listing.recordings})
        unknown = [f"devices: {d!r} has no recording.{nearest(d, found)}" for d in c.devices if d not in found]
        devices = c.devices or (c.wide.devices if c.wide else tuple(found))
        if c.missing_devices == "mask":
            if c.min_devices > len(devices):
                unknown.append(f"min_devices is {c.min_devices}, there are only {len(devices)}: {', '.join(devices)}")
            if len(devices) > _MOST_MASKED:
                unknown.append(f"missing_devices: mask is for at most {_MOST_MASKED} devices, not {len(devices)}")
        refuse(unknown)
        names = label_names(root, c.label_names) if c.label_names else None
        intervals = read_intervals(root, c.labels, c.time_unit, subjects) if c.labels else {}
        refuse(name_intervals(intervals, names, c.classes, c.labels or ""))
        return Index(
            listing,
            subjects[: c.limit_subjects],
            devices,
            c.channels or listing.channels(),
            names,
            intervals,
            _splits(listing.recordings) if c.columns.split else {},
        )

    def _check(
        self, recording: Recording, chunks: Iterator[Samples], index: Index, scratch: Scratch, made: Made
    ) -> list[Usable]:
        """The parts of a recording between its pauses, none if it cannot be used; its row of the table in any case."""
        c = self.config
        row: Row = {name: getattr(recording, name) for name in ("id", "subject", "device", "where")}
        row["sha256"] = index.input.digest(recording)
        if recording.device not in index.devices:
            row |= {"outcome": "left_out", "reason": "other_device", "detail": "not named in devices"}
            made.recordings.append(row)
            return []
        labels = Labels(index.names, c.classes, recording.where)
        how: Any = {"channels": index.channels, "hz": c.sampling_hz, "max_gap": c.max_gap_seconds, "wear": c.wear}
        try:
            parts, about = usable_parts(recording, chunks, labels, scratch, **how)
        except BadRecording as bad:
            made.recordings.append({**row, "outcome": "failed", "reason": bad.reason, "detail": bad.detail})
            return []
        made.problems += labels.problems()
        made.recordings.append({**row, **about, "outcome": "kept", "reason": "", "detail": ""})
        return parts

    def _sessions(self, subject: str, usable: list[Usable], rows: list[Row]) -> list[tuple[str, list[Usable]]]:
        """Name and recordings of the sessions of a subject; what cannot be used is noted in its row."""
        by_id = {row["id"]: row for row in rows}
        for name, detail in (refused := collisions(usable)).items():
            by_id[name].update(outcome="failed", reason="overlapping_recordings", detail=detail)
        usable = [u for u in usable if u.recording.id not in refused]
        if never_meet(usable):
            detail = "no two devices overlap: " + "; ".join(f"{u.recording.id} {shown(u.span)}" for u in usable[:5])
            for u in usable:
                by_id[u.recording.id].update(outcome="left_out", reason="clocks_without_overlap", detail=detail)
            return []
        found = sessions(subject, usable)
        for name, part in found:
            for u in part:
                by_id[u.recording.id]["sessions"].append(name)
        return found

    def _session(
        self, name: str, part: list[Usable], index: Index, scratch: Scratch, file: BinaryIO, made: Made
    ) -> Clock:
        """Writes a session on one clock, and notes its windows and what else it holds."""
        c = self.config
        about = {"session": name, "subject": part[0].recording.subject}
        axes = self._compared_axes(part, index)
        clock = clock_of(part, index.devices, c.sampling_hz)
        if axes and c.clocks.correct:
            measured = measured_lengths(clock, axes, scratch, c.max_gap_seconds)
            part = self._compared(about, part, measured.by_device(index.devices), made)
            clock = clock_of(part, index.devices, c.sampling_hz)
        is_measured = bool(axes) and not c.clocks.correct
        passing = Lengths(clock, axes, scratch) if is_measured and all(u.is_whole for u in part) else None
        codes, sums = write_session(
            clock, len(index.channels), file, max_gap=c.max_gap_seconds, seen=passing.add if passing else None
        )
        if is_measured:
            measured = passing or measured_lengths(clock, axes, scratch, c.max_gap_seconds)
            self._compared(about, part, measured.by_device(index.devices), made)
        beyond = self._windows(about, part, clock, codes, index, made)
        row = {"start_seconds": clock.origin, "num_samples": clock.length, "windows_beyond_limit": beyond}
        made.sessions.append({**about, **row, **sums.row()})
        return clock

    def _compared_axes(self, part: list[Usable], index: Index) -> list[int]:
        """Channels x, y, z of the motion that clocks are compared by; none where there is nothing to compare."""
        if not self.config.clocks.compare or self.config.wide is not None:  # columns of one table have one clock
            return []
        devices = {u.recording.device for u in part}
        found: list[int] = vectors(list(index.channels))[:1].ravel().tolist() if len(devices) > 1 else []
        return found

    def _compared(self, about: Row, part: list[Usable], measured: Mapping[str, Rows], made: Made) -> list[Usable]:
        """A session's recordings on one clock, as far as that is asked for; a device whose clock is unclear fails."""
        c = self.config
        found, clocks = compared(part, measured, c.clocks, hz=c.sampling_hz, max_residual=c.window_seconds / 2)
        made.clocks += [{**about, **row} for row in clocks]
        unclear = {row["device"]: row for row in clocks if row["outcome"] == "unclear" and c.clocks.correct}
        for row in made.recordings:
            if row["device"] in unclear and any(u.recording.id == row["id"] for u in part):
                clock = unclear[row["device"]]
                detail = (
                    f"its clock is {clock['residual_seconds']:.3g} s off the line that describes it best beside "
                    f"{clock['reference']}; more than half a window ({c.window_seconds / 2:g} s)"
                )
                row.update(outcome="failed", reason="clock_unclear", detail=detail)
        return [u for u in found if u.recording.device not in unclear]

    def _windows(
        self, about: Row, part: list[Usable], clock: Clock, codes: np.ndarray, index: Index, made: Made
    ) -> int:
        """Notes the windows of a session, and the account of its devices; how many lie beyond the limit."""
        c = self.config
        if about["subject"] in index.intervals:
            labels, names = interval_labels(index.intervals[about["subject"]], clock)
        else:
            labels, names = sample_labels(clock)
        first = starts(clock.length, self.size, self.step, anchor=clock.anchor)
        chosen = first
        if c.limit_seconds is not None:
            chosen = first[first + self.size <= clock.anchor + round(c.limit_seconds * clock.hz)]
        worst = gravest(codes, chosen, self.size)
        windows = window_table(
            **about,
            seconds=clock.origin + chosen / clock.hz,
            codes=codes,
            first=chosen,
            worst=worst,
            size=self.size,
            labels=labels,
            names=names,
            purity=c.label_purity,
            devices=index.devices,
            min_devices=c.min_devices if c.missing_devices == "mask" else None,
        )
        made.windows.append(windows)
        made.accounts.append(of_devices(worst, (windows["reason"] == "").to_numpy(), index.devices))
        return len(first) - len(chosen)

    def merge(self, root: Path, shards: Sequence[Artifact], out: ArtifactWriter) -> None:
        """Joins the shards: `signal.npy`, samples, meta, figures, and what became of recordings and windows.

        Raises:
            DataError: if the shards do not belong together, or the subjects cannot be divided.
        """
        parts = [shard.json("shard.json") for shard in shards]
        refuse_mismatch(parts)
        about = parts[0]
        recordings = pl.concat([s.table("recordings.parquet") for s in shards]).sort("id")
        windows = pl.concat([s.table("windows.parquet") for s in shards]).sort("id")
        sessions = placed([s.table("sessions.parquet") for s in shards])
        intervals = pl.concat([s.table("intervals.parquet") for s in shards])
        recordings = with_fate(recordings, windows, self.size / self.config.sampling_hz)
        flags, labels = self.config.wear.leave_out, self.config.labels or ""
        fates = account_of_all(recordings, windows, intervals, out, flags=flags, labels=labels)
        out.quarantine += [Quarantined(*fate[1:]) for fate in fates]  # type: ignore[arg-type]
        by_all = accounts(windows, [s.table("accounts.parquet") for s in shards])
        out.table("accounts.parquet", by_all)
        account_of_limits(recordings, windows, sessions, about["not_chosen"], out)
        kept = windows.filter(reason="")
        splits = self._divided(kept["subject"].unique().to_list(), about["splits"])
        stored = sessions.join(kept.select("session").unique(), on="session", how="semi", maintain_order="left")
        stored = stored.with_columns(position=stored["num_samples"].cum_sum() - stored["num_samples"])
        width = (len(about["devices"]), len(about["channels"]))
        with out.open("signal.npy") as file:
            write_signal(stored, [s.path("signal.f32") for s in shards], width[0] * width[1], file)
        trained = [subject for subject, part in splits.items() if part == "train"]
        mean, std = statistics(stored.filter(pl.col("subject").is_in(trained)), width)
        is_masked = self.config.missing_devices == "mask"
        seconds = self.size / self.config.sampling_hz
        samples = samples_table(kept, stored, splits, seconds, with_devices=is_masked)
        out.table("samples.parquet", samples)
        out.table("sessions.parquet", stored.select("session", "subject", "start_seconds", "num_samples", "position"))
        out.table("recordings.parquet", recordings)
        clocks = pl.concat([s.table("clocks.parquet") for s in shards]).sort("session", "device")
        out.table("clocks.parquet", clocks)
        found = set(samples["label"].drop_nulls())
        order = [name for name in dict.fromkeys(about["order"]) if name in found] or sorted(found)
        classes = self.config.classes or tuple(order)
        facts = {
            "devices": about["devices"],
            "channels": about["channels"],
            "sampling_hz": self.config.sampling_hz,
            "window_seconds": self.size / self.config.sampling_hz,
            "window_samples": self.size,
            "overlap": self.config.overlap,
            "channel_mean": mean.tolist(),
            "channel_std": std.tolist(),
        }
        if is_masked:
            facts |= {"missing_devices": "mask", "min_devices": self.config.min_devices}
        cautions = [text for text in (clocks_differ(clocks), *units_differ(recordings)) if text]
        if cautions:
            facts["caution"] = cautions[0] if len(cautions) == 1 else cautions
        out.json("meta.json", asdict(Meta("wearable", "wearable", "classification", classes, "subject", facts)))
        signal = np.load(out.folder / "signal.npy", mmap_mode="r") if len(samples) else np.zeros((0, 0))
        sheets = figures(samples, signal, classes, facts)
        _write_figures([*sheets, *account_figures(by_all, noted(recordings)), *clock_figures(clocks)], out)

    def _divided(self, subjects: list[str], given: dict[str, str]) -> dict[str, str]:
        if not subjects or given:
            return {subject: given.get(subject, "train") for subject in subjects}
        return group_split(subjects, self.config.split)

    def open(self, artifact: Artifact) -> WindowData:
        values = artifact.json("meta.json")
        return WindowData(artifact, Meta(**{**values, "classes": tuple(values["classes"])}))


def build(config: Config) -> Wearable:
    return Wearable(config)


def for_new_data(config: Config, table: str) -> Config:
    """Settings that prepare a new table, laid out as the training data but without labels, in one part.

    Args:
        table: its name, relative to the root it will be prepared with.
    """
    c = config.columns
    session = tuple(name for name in c.session if name != c.label)
    columns = c.model_copy(update={"label": None, "split": None, "session": session})
    place = {"table": table} if config.table is not None else {"long_table": table}
    kept = config.model_dump(
        include={"name", "time_unit", "recorded_hz", "devices", "channels", "sampling_hz", "clocks", "wear"}
        | {"max_gap_seconds", "window_seconds", "overlap", "missing_devices", "min_devices"}
    )
    return Config(**kept, **place, columns=columns, wide=config.wide, split=GroupSplit(test=0))


def draft(table: Path) -> dict[str, Any]:
    """A recipe for a table of recordings (or a folder with recordings.csv) or a long table, from its columns.

    Raises:
        DataError: if it cannot be told what the columns are.
    """
    source = drafted(table)
    labelled = "labels" in source or "label" in source.get("columns", {})
    recipe: dict[str, Any] = {
        "description": f"An encoder pretrained on the windows of {table.name}"
        + (", and a classifier of activities for held-out subjects." if labelled else "."),
        "domain": "wearable",
        "data": {"source": {"name": "wearable", **source, "window_seconds": 4.0}, "budget": 0.01},
        "pretrain": {"backbone": "cnn1d", "views": "signal", "learner": "joint_embedding", "fit": {"epochs": 30}},
    }
    quick: dict[str, Any] = {"data.source.limit_seconds": 120, "pretrain.fit.epochs": 1}
    if labelled:
        recipe |= {"finetune": {"finetuner": "full", "fit": {"epochs": 10}}}
        recipe |= {"evaluate": {"evaluators": ["classification", "knn"]}}
        quick["finetune.fit.epochs"] = 2
    return {**recipe, "quick": quick}


def _used(subject: str, given: Intervals, clocks: Sequence[Clock]) -> list[Row]:
    """Intervals of labels of a subject, and whether a session meets them."""
    used = np.zeros(len(given.rows), bool)
    for clock in clocks:
        used |= meets(given, clock)
    columns = zip(given.rows, given.label, used.tolist(), strict=True)
    return [{"subject": subject, "row": row, "label": label, "used": use} for row, label, use in columns]


def _splits(recordings: Sequence[Recording]) -> dict[str, str]:
    parts: dict[str, set[str]] = {}
    for recording in recordings:
        parts.setdefault(recording.subject, set()).add(recording.split or "train")
    refuse_leak(parts, "subject")
    if not any("train" in found for found in parts.values()):
        raise DataError("the split column puts no subject into train; nothing could be learned from.")
    return {subject: next(iter(found)) for subject, found in sorted(parts.items())}


def _write_figures(sheets: Sequence[Sheet], out: ArtifactWriter) -> None:
    for sheet in sheets:
        out.bytes(sheet.file, sheet.content)
    out.json("figures.json", [{"file": s.file, "title": s.title, "caption": s.caption} for s in sheets])
