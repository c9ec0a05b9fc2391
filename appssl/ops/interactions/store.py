"""Selected events as columns on disk: train, validation and test behind each other, each sorted by time.

    events/user.npy, item.npy, timestamp.npy (N,) int64, weight.npy (N,) float32, session.npy (N,) int32

At one time events are in the order of users and items, so the bytes depend on the events only: neither on the files
they came in, nor on the order of rows, nor on the parts that are held in memory.
"""

from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import numpy as np
from pydantic import Field

from appssl.errors import DataError
from appssl.ops.interactions import partitions
from appssl.ops.interactions.duplicates import SetHashes
from appssl.ops.interactions.partitions import Partitions, ordered_by, pair
from appssl.ops.interactions.select import Selected
from appssl.ops.interactions.sessions import labelled_sessions, sessions_by_gap
from appssl.ops.interactions.statistics import time_cuts
from appssl.settings import Settings

if TYPE_CHECKING:
    from appssl.artifact import ArtifactWriter

PARTS = ("train", "val", "test")
_SAMPLED = 1 << 20  # times that say where the log is divided to be sorted


class Split(Settings):
    """How events are divided into train, validation and test."""

    kind: Literal["time", "last"] = Field(
        "time",
        description="time: at two moments, the same for everybody; last: the last event of each user is the test, the "
        "one before it validation (none with val_share 0): it trains on events later than those it is tested on",
    )


@dataclass(frozen=True)
class Dividing:
    """How events are divided, and how long a user pauses between sessions (seconds; None: no sessions by time)."""

    kind: Literal["time", "last"]
    train_share: float
    val_share: float
    session_gap: float | None = None


@dataclass
class Stored:
    """What was written.

    Attributes:
        counts: events of each part. cuts: seconds at which validation and test begin, of a split in time.
        users, items: (number, 3) int64 events of each in every part. kept_users, kept_items: of the log, bool.
        hashes: of the sets of items of users. num_sessions: of all users, or None without sessions.
        columns: name -> file of the artifact.
    """

    counts: tuple[int, int, int]
    cuts: tuple[int, int] | None
    users: np.ndarray
    items: np.ndarray
    kept_users: np.ndarray
    kept_items: np.ndarray
    hashes: SetHashes
    num_sessions: int | None
    columns: dict[str, Path]

    def blocks(self, part: int, *names: str) -> Iterator[tuple[np.ndarray, ...]]:
        """Columns of a part, a block of events at a time."""
        begin = sum(self.counts[:part])
        columns = [np.load(self.columns[name], mmap_mode="r") for name in names]
        for start in range(begin, begin + self.counts[part], partitions.RECORDS_READ):
            stop = min(start + partitions.RECORDS_READ, begin + self.counts[part])
            yield tuple(np.array(column[start:stop]) for column in columns)


def write_events(selected: Selected, dividing: Dividing, folder: Path, out: "ArtifactWriter") -> Stored:
    """Writes the events of a selection, users and items numbered anew; its files are used up.

    Raises:
        DataError: if the train or the test part is empty.
    """
    kept = {"user": selected.users > 0, "item": selected.items > 0}
    numbers = {what: (np.cumsum(of) - 1).astype(np.uint32) for what, of in kept.items()}
    borders = _borders(selected)
    names = selected.parts.kind.names or ()
    with_sessions = "session" in names or dividing.session_gap is not None
    kind = [("user", "<u4"), ("item", "<u4"), ("time", "<i8"), ("part", "u1")]
    kind += [("weight", "<f4")] if "weight" in names else []
    kind += [("session", "<i4")] if with_sessions else []
    buckets = Partitions(folder / "times", np.dtype(kind), len(PARTS) * (len(borders) + 1))
    hashes, num_sessions = SetHashes(int(kept["user"].sum()), int(kept["item"].sum())), 0
    sizes = np.zeros(len(PARTS), dtype=np.int64)
    for number in range(selected.parts.count):
        records = selected.parts.take(number)
        for what in ("user", "item"):
            records[what] = numbers[what][records[what]]
        hashes.add(records["user"], records["item"])
        found = _placed(records, dividing, buckets.kind)
        if with_sessions:
            num_sessions += len(np.unique(pair(found["user"], found["session"].astype(np.uint32))))
        sizes += np.bincount(found["part"], minlength=len(PARTS))
        buckets.add(found, found["part"] * np.uint16(len(borders) + 1) + _bin(borders, found["time"]))
    columns = _write(buckets, selected.count, out)
    counts, cuts = _parts(columns["timestamp"], sizes, dividing)
    stored = Stored(
        counts, cuts, _zeros(kept["user"]), _zeros(kept["item"]), kept["user"], kept["item"], hashes,
        num_sessions if with_sessions else None, columns,
    )  # fmt: skip
    for part in range(len(PARTS)):
        for users, items in stored.blocks(part, "user", "item"):
            np.add.at(stored.users[:, part], users, 1)
            np.add.at(stored.items[:, part], items, 1)
    return stored


def _zeros(kept: np.ndarray) -> np.ndarray:
    return np.zeros((int(kept.sum()), len(PARTS)), dtype=np.int64)


def _borders(selected: Selected) -> np.ndarray:
    """Times that divide the log into pieces of about equal size, by a sample: what is written does not depend on it."""
    stride = max(1, selected.count // _SAMPLED)
    # A copy: a view would hold the whole part in memory.
    samples = [selected.parts.read(number)["time"][::stride].copy() for number in range(selected.parts.count)]
    times = np.sort(np.concatenate(samples))
    pieces = -(-selected.count // partitions.EVENTS_AT_ONCE)
    return np.unique(times[[len(times) * piece // pieces for piece in range(1, pieces)]])


def _bin(borders: np.ndarray, times: np.ndarray) -> np.ndarray:
    return np.searchsorted(borders, times, side="right").astype(np.uint16)


def _placed(records: np.ndarray, dividing: Dividing, kind: np.dtype) -> np.ndarray:
    """Records of some users with their part (0 where time decides) and session."""
    found = np.zeros(len(records), dtype=kind)
    for name in ("user", "item", "time", *(["weight"] if "weight" in (kind.names or ()) else [])):
        found[name] = records[name]
    in_order = None
    if dividing.kind == "last" or "session" in (kind.names or ()):
        in_order = ordered_by(records["user"], records["time"], records["item"])
    if in_order is None or not len(found):
        return found
    found, users = found.take(in_order), records["user"].take(in_order)
    if dividing.kind == "last":
        found["part"] = last_parts(users, with_val=dividing.val_share > 0)
    if dividing.session_gap is not None:
        found["session"] = sessions_by_gap(users, found["time"], dividing.session_gap)
    elif "session" in (kind.names or ()):
        found["session"] = labelled_sessions(users, records["session"][in_order])
    return found


def last_parts(users: np.ndarray, *, with_val: bool) -> np.ndarray:
    """Part (N,) uint8 of each event: the user's last is 2, the one before 1 if there are three or more, others 0.

    Args:
        users: (N,) sorted, events of each in order of time. A user with a single event is trained on.
    """
    ends, starts = np.searchsorted(users, users, side="right"), np.searchsorted(users, users)
    place, count = ends - 1 - np.arange(len(users)), ends - starts
    part = np.zeros(len(users), dtype=np.uint8)
    part[(place == 0) & (count >= 2)] = 2
    if with_val:
        part[(place == 1) & (count >= 3)] = 1
    return part


def _write(buckets: Partitions, count: int, out: "ArtifactWriter") -> dict[str, Path]:
    """Writes all columns, bucket after bucket, each sorted; returns their files."""
    kinds = {"user": "<i8", "item": "<i8", "timestamp": "<i8"}
    kinds |= {
        name: kind for name, kind in (("weight", "<f4"), ("session", "<i4")) if name in (buckets.kind.names or ())
    }
    with ExitStack() as stack:
        files = {name: stack.enter_context(out.open(f"events/{name}.npy")) for name in kinds}
        for name, file in files.items():
            header = {"descr": kinds[name], "fortran_order": False, "shape": (count,)}
            np.lib.format.write_array_header_1_0(file, header)
        for number in range(buckets.count):
            records = buckets.take(number)
            records = records.take(ordered_by(records["time"], pair(records["user"], records["item"])))
            for name, file in files.items():
                column = records["time" if name == "timestamp" else name]
                file.write(column.astype(kinds[name]).data)
    return {name: out.folder / f"events/{name}.npy" for name in kinds}


def _parts(path: Path, sizes: np.ndarray, dividing: Dividing) -> tuple[tuple[int, int, int], tuple[int, int] | None]:
    """Events of each part, and the cuts of a split in time."""
    cuts = None
    if dividing.kind == "time":
        times = np.load(path, mmap_mode="r")
        cuts = time_cuts(times, dividing.train_share, dividing.val_share)
        first, second = (int(np.searchsorted(times, cut)) for cut in cuts)
        sizes = np.array([first, second - first, len(times) - second])
    empty = [PARTS[number] for number in (0, 2) if not sizes[number]]
    if empty:
        why = "too many events share one time" if dividing.kind == "time" else "no user has two events"
        told = f"the {' and '.join(empty)} part is empty: {why}."
        raise DataError(f"{told} Check the timestamps, or change train_share and val_share.")
    return (int(sizes[0]), int(sizes[1]), int(sizes[2])), cuts
