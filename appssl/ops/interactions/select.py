"""Which events of a log are used: row by row, then user by user, then the k-core by counting.

Memory holds a number for every user and item, and the events of one part of the users.
"""

import hashlib
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import polars as pl

from appssl.errors import DataError
from appssl.ops.interactions.event_tables import ANOTHER_UNIT, PROBLEMS, usual_times
from appssl.ops.interactions.fates import Fates
from appssl.ops.interactions.log import LOW, OTHER_KIND, PROBLEM, Log
from appssl.ops.interactions.partitions import Partitions, ordered_by, pair, ranges
from appssl.ops.interactions.statistics import counted


@dataclass(frozen=True)
class Rules:
    """What an event, a user and an item must be to stay. items: ids that are known, or None where all are taken."""

    min_user: int
    min_item: int
    limit_users: int | None = None
    max_user_events: int | None = None
    items: pl.Series | None = None


@dataclass
class Selected:
    """Events that are used, in parts of users sorted by user and item, and how many each user and item of the log has.

    Records have user, item (uint32, of the log), time, row (int64), and weight and session where the log has them.
    """

    parts: Partitions
    users: np.ndarray
    items: np.ndarray
    fates: Fates

    @property
    def count(self) -> int:
        return int(self.users.sum())


def select(log: Log, rules: Rules, where: str, folder: Path) -> Selected:
    """Events that are used; `folder` takes files in between, `where` is told of times.

    Raises:
        DataError: if times are in milliseconds, no event is left, or a single user.
    """
    fates = Fates()
    usual = _usual_times(log, where)
    extra = [(name, log.kind[name]) for name in log.kind.names[4:]] if log.kind.names else []
    kind = np.dtype([("user", "<u4"), ("item", "<u4"), ("time", "<i8"), ("row", "<i8"), *extra])
    part_of = ranges(log.events)
    parts = Partitions(folder / "users", kind, int(part_of.max(initial=0)) + 1)
    steps = _steps(log, rules, usual)
    for first, records in log.chunks():
        _take(first, records, usual, steps, fates, parts, part_of)
    users, items = (np.zeros(len(of), dtype=np.int64) for of in (log.users, log.items))
    for number in range(parts.count):
        records = _first_events(parts.read(number), rules.max_user_events, fates)
        parts.replace(number, records)
        np.add.at(users, records["user"], 1)
        np.add.at(items, records["item"], 1)
    selected = Selected(parts, users, items, fates)
    _core(selected, rules)
    _refuse_nothing(selected, log)
    return selected


def _usual_times(log: Log, where: str) -> tuple[float, float]:
    known = log.num_times
    if not known:
        return 0.0, float("inf")
    low, high = counted(log.times, [(known - 1) // 2, known // 2])
    return usual_times((low + high) / 2, where)


Step = tuple[str, Callable[[np.ndarray], np.ndarray]]


def _steps(log: Log, rules: Rules, usual: tuple[float, float]) -> list[Step]:
    """Reasons to leave out single events, in order, with what tells those that stay."""
    steps: list[Step] = []
    if rules.limit_users is not None:
        chosen = _chosen_users(log, rules.limit_users, usual)
        steps.append(("user not in the limit", lambda records: chosen[records["user"]]))
    if rules.items is not None:
        known = log.items.is_in(rules.items.implode()).to_numpy()
        steps.append(("item not in the item table", lambda records: known[records["item"]]))
    for reason, bit in (("event of another kind", OTHER_KIND), ("rating below min_rating", LOW)):
        steps.append((reason, partial(_without, bit)))
    return steps


def _without(bit: int, records: np.ndarray) -> np.ndarray:
    return (records["flags"] & bit) == 0


def _chosen_users(log: Log, limit: int, usual: tuple[float, float]) -> np.ndarray:
    """Users (bool) of the limit: the first by the hash of their id, of those with an event without a problem."""
    present = np.zeros(len(log.users), dtype=bool)
    for _, records in log.chunks():
        present[records["user"][_problems(records, usual) == 0]] = True
    names = log.users.filter(pl.Series(present)).to_list()
    order = sorted(range(len(names)), key=lambda number: hashlib.sha256(names[number].encode()).digest())
    chosen = np.zeros(len(present), dtype=bool)
    chosen[np.flatnonzero(present)[order[:limit]]] = True
    return chosen


def _problems(records: np.ndarray, usual: tuple[float, float]) -> np.ndarray:
    """Number of the problem (N,) uint8 of each record, with the unit of its time judged by that of the log."""
    problem, time = records["flags"] & PROBLEM, records["time"]
    foreign = ((time < usual[0]) | (time > usual[1])) & (time > 0) & ((problem == 0) | (problem > ANOTHER_UNIT))
    problem[foreign] = ANOTHER_UNIT
    return problem


def _take(
    first: int,
    records: np.ndarray,
    usual: tuple[float, float],
    steps: list[Step],
    fates: Fates,
    parts: Partitions,
    part_of: np.ndarray,
) -> None:
    """Judges records one by one; those that stay go to the part of their user."""
    problem = _problems(records, usual)
    for number in (np.flatnonzero(np.bincount(problem)[1:]) + 1).tolist():
        fates.add("failed", PROBLEMS[number], first + np.flatnonzero(problem == number))
    rows = np.flatnonzero(problem == 0)
    records = records.take(rows)
    for reason, stays in steps:
        staying = stays(records)
        fates.add("left_out", reason, first + rows[~staying])
        rows, records = rows[staying], records.compress(staying)
    taken = np.empty(len(rows), dtype=parts.kind)
    for name in (name for name in parts.kind.names or () if name != "row"):
        taken[name] = records[name]
    taken["row"] = first + rows
    parts.add(taken, part_of[taken["user"]])


def _first_events(records: np.ndarray, most: int | None, fates: Fates) -> np.ndarray:
    """The first event of every user and item, sorted by these, and of each user the `most` latest ones."""
    keys = pair(records["user"], records["item"])
    records = records.take(ordered_by(keys, records["time"]))  # rows come in order, and stay so at the same time
    first = np.ones(len(records), dtype=bool)
    first[1:] = (records["user"][1:] != records["user"][:-1]) | (records["item"][1:] != records["item"][:-1])
    fates.add("left_out", "repeated event", records["row"][~first])
    records = records.compress(first)
    if most is not None:
        latest = _from_the_end(records) < most
        fates.add("left_out", "user has more than max_user_events", records["row"][~latest])
        records = records.compress(latest)
    return records


def _from_the_end(records: np.ndarray) -> np.ndarray:
    """Place (N,) of each event among those of its user, 0 for the latest; records sorted by user."""
    order = ordered_by(records["user"], records["time"], records["item"])
    users = records["user"][order]
    ends = np.searchsorted(users, users, side="right")
    place = np.empty(len(records), dtype=np.int64)
    place[order] = ends - 1 - np.arange(len(records))
    return place


def _core(selected: Selected, rules: Rules) -> None:
    """Leaves the largest part in which every user and item has enough events, by passes that count.

    Each pass drops the events of all users and items that have too few; what is left at the end does not depend on the
    order in which they go.
    """
    parts, users, items = selected.parts, selected.users, selected.items
    selected.fates.add("left_out", "too few events (k-core)", np.zeros(0, dtype=np.int64))
    while True:
        few_users, few_items = (users > 0) & (users < rules.min_user), (items > 0) & (items < rules.min_item)
        if not (few_users.any() or few_items.any()):
            return
        for number in range(parts.count):
            records = parts.read(number)
            gone = few_users[records["user"]] | few_items[records["item"]]
            if not gone.any():
                continue
            left = records.compress(gone)
            np.subtract.at(users, left["user"], 1)
            np.subtract.at(items, left["item"], 1)
            selected.fates.add("left_out", "too few events (k-core)", left["row"])
            parts.replace(number, records.compress(~gone))


def _refuse_nothing(selected: Selected, log: Log) -> None:
    if selected.count == 0:
        raise DataError(
            f"no event is left of {log.num_rows}: {selected.fates.told()}. "
            "Lower min_user, min_item or min_rating, or check the item ids."
        )
    if np.count_nonzero(selected.users) < 2:
        raise DataError("the log holds a single user after selection; a ranking needs two or more. Add users.")
