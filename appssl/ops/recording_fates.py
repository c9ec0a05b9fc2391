"""What became of recordings, windows and intervals of labels that are not used, one line each."""

from collections.abc import Collection, Iterator
from typing import NamedTuple

import polars as pl

_FLAGS = ("non_wear", "saturated")  # of samples, which are left out or only flagged


class Fate(NamedTuple):
    """Fields as of contracts.Quarantined; `account` is where it counts, None for samples, which are not counted."""

    account: str | None
    what: str
    item: str
    where: str
    outcome: str
    reason: str
    detail: str


def with_fate(recordings: pl.DataFrame, windows: pl.DataFrame, window_seconds: float) -> pl.DataFrame:
    """The recordings; those that were read but gave no window are left out, with the reason."""
    useful = set(windows.filter(reason="")["session"])
    rows = recordings.to_dicts()
    for row in rows:
        own = row["sessions"] or []
        if row["outcome"] != "kept" or useful.intersection(own):
            continue
        reasons = windows.filter(pl.col("session").is_in(own))["reason"].value_counts(sort=True).rows()
        row.update(outcome="left_out", reason="no_window")
        if reasons:
            row["detail"] = "all windows were left out: " + ", ".join(f"{count} {name}" for name, count in reasons)
        else:
            row["detail"] = f"its sessions are shorter than a window of {window_seconds:g} s"
    return pl.DataFrame(rows, schema=recordings.schema)


def of_recordings(recordings: pl.DataFrame, flags: Collection[str]) -> Iterator[Fate]:
    """Recordings that are not used, and samples of the others that are not used as they are.

    Args:
        flags: columns of `ops.signal_quality.QUALITY` whose samples are left out.
    """
    for row in recordings.iter_rows(named=True):
        name, where = row["id"], row["where"]
        if row["outcome"] != "kept":
            yield Fate("recordings", "recording", name, where, row["outcome"], row["reason"], row["detail"])
        for reason, column, text in (
            ("time_repeated", "repeated", "averaged"),
            ("nan", "nan", "not used"),
            ("pause", "pauses", "another part after each"),
            ("non_wear", "non_wear", "without motion, taken as not worn"),
            ("saturated", "saturated", "at the limit of the sensor"),
        ):
            if row[column] and (column not in _FLAGS or column in flags):
                yield Fate(None, "samples", name, where, "left_out", reason, f"{row[column]}; {text}")


def of_windows(windows: pl.DataFrame) -> Iterator[Fate]:
    for row in windows.filter(pl.col("reason") != "").iter_rows(named=True):
        where = f"session {row['session']} at {row['start_seconds']:.3f} s"
        yield Fate("windows", "window", row["id"], where, "left_out", row["reason"], row["detail"])


def of_intervals(intervals: pl.DataFrame, table: str) -> Iterator[Fate]:
    """Intervals that no usable recording meets."""
    for row in intervals.filter(~pl.col("used")).sort("row").iter_rows(named=True):
        name, detail = f"row {row['row']}", f"{row['label']}: no usable recording of {row['subject']} then"
        yield Fate("label intervals", "label", name, f"{table} {name}", "left_out", "no_recording", detail)
