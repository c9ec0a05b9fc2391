"""What became of recordings, windows and intervals of labels that are not used, one line each, and their counts."""

from __future__ import annotations

from collections.abc import Collection, Iterator
from typing import TYPE_CHECKING, NamedTuple

import polars as pl

if TYPE_CHECKING:
    from appssl.artifact import ArtifactWriter

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


def account_of_all(
    recordings: pl.DataFrame,
    windows: pl.DataFrame,
    intervals: pl.DataFrame,
    out: ArtifactWriter,
    *,
    flags: Collection[str],
    labels: str,
) -> list[Fate]:
    """Counts all in the accounts of `out`; returns what is not kept.

    Args:
        flags: as of `of_recordings`. labels: name of the table of intervals.
    """
    out.account("recordings").keep(int((recordings["outcome"] == "kept").sum()))
    out.account("windows").keep(int((windows["reason"] == "").sum()))
    if len(intervals):
        out.account("label intervals").keep(int(intervals["used"].sum()))
    fates = [*of_recordings(recordings, flags), *of_windows(windows), *of_intervals(intervals, labels)]
    for fate in fates:
        if fate.account is not None:
            account = out.account(fate.account)
            (account.fail if fate.outcome == "failed" else account.leave_out)(fate.reason)
    return fates


def account_of_limits(
    recordings: pl.DataFrame, windows: pl.DataFrame, sessions: pl.DataFrame, not_chosen: int, out: ArtifactWriter
) -> None:
    """What the limits did not take, which is a choice and no quarantine."""
    beyond = int(sessions["windows_beyond_limit"].sum())
    for what, left, used, limit in (
        ("listed recordings", not_chosen, len(recordings), "limit_subjects"),
        ("listed windows", beyond, len(windows), "limit_seconds"),
    ):
        if left:
            out.account(what).keep(used)
            out.account(what).leave_out(f"not chosen by {limit}", left)
