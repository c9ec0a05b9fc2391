"""A log in shards: the events of its files as records of numbers, with the ids that the numbers stand for.

A shard has `users.parquet` (id, events) and `items.parquet` (id), sorted; `events/N.bin`, the records of file N of the
log, in its order; `faults.parquet`, the first rows with each problem and what they hold; and `shard.json`.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

import numpy as np
import polars as pl

from appssl.errors import DataError
from appssl.ops.interactions.event_tables import Columns, Judging, read_events
from appssl.ops.interactions.notes import LISTED
from appssl.ops.interactions.numbers import Seen, joined
from appssl.ops.interactions.partitions import chunks, scratch

if TYPE_CHECKING:
    from appssl.artifact import Artifact, ArtifactWriter

PROBLEM, LOW, OTHER_KIND = 0x0F, 0x10, 0x20  # bits of `flags`: number of the problem, below min_rating, other kind
_FAULTS = {"file": pl.Int64, "row": pl.Int64, "seen": pl.String}


def record_type(columns: Columns) -> np.dtype:
    """user, item (uint32), time (int64 Unix seconds), flags (uint8), and weight and session where the log has them."""
    fields = [("user", "<u4"), ("item", "<u4"), ("time", "<i8"), ("flags", "u1")]
    fields += [("weight", "<f4")] if columns.weight else []
    fields += [("session", "<u8")] if columns.session else []
    return np.dtype(fields)


def write_shard(
    files: Sequence[tuple[int, Path]], columns: Columns, judging: Judging, about: dict[str, Any], out: ArtifactWriter
) -> None:
    """Writes the events of files (number, path) as a shard; `about` goes into `shard.json`."""
    kind = record_type(columns)
    seen = {what: Seen() for what in ("user", "item")}
    ids = {what: of.categories for what, of in seen.items()}
    faults, rows = [pl.DataFrame(schema=_FAULTS)], {}
    with scratch(out.folder) as folder:
        for number, path in files:
            with (folder / str(number)).open("wb") as raw:
                found, rows[number] = _write_raw(read_events(path, columns, judging, ids=ids), kind, seen, raw)
            faults.append(found.select(pl.lit(number, pl.Int64).alias("file"), "row", "seen"))
        tables = {what: of.sorted() for what, of in seen.items()}
        events = np.zeros(len(tables["user"][0]) + 1, dtype=np.int64)
        for number, _ in files:
            with out.open(f"events/{number:05d}.bin") as file:
                for records in chunks(folder / str(number), kind):
                    for what, (_, order) in tables.items():
                        records[what] = order[records[what]]
                    events += np.bincount(records["user"], minlength=len(events))
                    file.write(records.data)
    out.table("users.parquet", pl.DataFrame({"id": tables["user"][0], "events": events[:-1]}))
    out.table("items.parquet", pl.DataFrame({"id": tables["item"][0]}))
    out.table("faults.parquet", pl.concat(faults))
    out.json("shard.json", {**about, "rows": {str(number): count for number, count in rows.items()}})


def _write_raw(
    blocks: Iterator[pl.DataFrame], kind: np.dtype, seen: Mapping[str, Seen], file: BinaryIO
) -> tuple[pl.DataFrame, int]:
    """Writes records whose users and items are categories; returns the first faults, and the number of rows."""
    faults, count = [pl.DataFrame(schema={"row": pl.Int64, "seen": pl.String})], 0
    listed = np.zeros(PROBLEM + 1, dtype=np.int64)
    for block in blocks:
        records = np.zeros(len(block), dtype=kind)
        problem = block["problem"].to_numpy()
        for what in ("user", "item"):
            records[what] = seen[what].codes(block[what])
        records["time"] = block["timestamp"].fill_null(0).to_numpy()
        records["flags"] = problem + block["low"].to_numpy() * LOW + block["other_kind"].to_numpy() * OTHER_KIND
        for name in kind.names[4:] if kind.names else ():
            records[name] = block[name].fill_null(0).to_numpy()
        file.write(records.data)
        for number in np.flatnonzero(np.bincount(problem)[1:]) + 1:
            rows = np.flatnonzero(problem == number)[: LISTED - listed[number]]
            listed[number] += len(rows)
            faults.append(pl.DataFrame({"row": count + 1 + rows, "seen": block["seen"].gather(rows)}))
        count += len(block)
    return pl.concat(faults), count


class Log:
    """The log as all shards hold it. Rows are counted from 0 over all files, in the order of their names.

    Attributes:
        users, items: ids, sorted, (id); users also `events`. kind: of the records. num_rows: of all files.
    """

    def __init__(self, shards: Sequence[Artifact], columns: Columns, names: Sequence[str]) -> None:
        self.kind, self._names = record_type(columns), names
        tables = [shard.table("users.parquet") for shard in shards]
        users, self._user_numbers = joined([table["id"] for table in tables])
        self.items, self._item_numbers = joined([shard.table("items.parquet")["id"] for shard in shards])
        events = np.zeros(len(users), dtype=np.int64)
        for table, numbers in zip(tables, self._user_numbers, strict=True):
            events[numbers[:-1]] += table["events"].to_numpy()
        self.users, self.events = users, events
        held = {int(n): (place, rows) for place, shard in enumerate(shards) for n, rows in _rows(shard).items()}
        if sorted(held) != list(range(len(names))):
            raise DataError("the files of the log changed while its shards were prepared. Prepare all shards again.")
        self._shard = [held[number][0] for number in range(len(names))]
        self._paths = [shards[s].path(f"events/{n:05d}.bin") for n, s in enumerate(self._shard)]
        self._starts = np.cumsum([0, *(held[number][1] for number in range(len(names)))]).tolist()
        self.num_rows = self._starts[-1]
        self.num_times = sum(len(times) for times in self.times())
        seen = pl.concat([shard.table("faults.parquet") for shard in shards])
        self._seen = {(file, row): text for file, row, text in seen.iter_rows()}

    def chunks(self) -> Iterator[tuple[int, np.ndarray]]:
        """(first row, records), users and items numbered; their count where the row has none."""
        for number, path in enumerate(self._paths):
            first = self._starts[number]
            for records in chunks(path, self.kind):
                records["user"] = self._user_numbers[self._shard[number]][records["user"]]
                records["item"] = self._item_numbers[self._shard[number]][records["item"]]
                yield first, records
                first += len(records)

    def times(self) -> Iterator[np.ndarray]:
        """Times (N,) int64 after 1970 of all rows, whatever else is wrong with them."""
        for path in self._paths:
            for records in chunks(path, self.kind):
                yield records["time"][records["time"] > 0]

    def told(self, row: int) -> tuple[str, str, str]:
        """Name, place and content of a row, as the quarantine lists it."""
        number = bisect_right(self._starts, row) - 1
        inner = row - self._starts[number]
        with self._paths[number].open("rb") as file:
            file.seek(inner * self.kind.itemsize)
            record = np.frombuffer(file.read(self.kind.itemsize), dtype=self.kind)[0]
        shard = self._shard[number]
        user = _name(self.users, self._user_numbers[shard][record["user"]])
        item = _name(self.items, self._item_numbers[shard][record["item"]])
        seen = self._seen.get((number, inner + 1), str(record["time"]))
        where, name = f"{self._names[number]} row {inner + 1}", str(inner + 1)
        return (
            name if len(self._names) == 1 else f"{self._names[number]}:{name}",
            where,
            (f"user {user}, item {item}, value {seen}"),
        )


def _rows(shard: Artifact) -> dict[str, int]:
    return dict(shard.json("shard.json")["rows"])


def _name(ids: pl.Series, number: int) -> str:
    return str(ids[int(number)]) if number < len(ids) else "(none)"
