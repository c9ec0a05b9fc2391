"""What becomes of events: the count of every reason, and its first rows."""

from dataclasses import dataclass, field
from typing import Literal

import numpy as np

from appssl.ops.interactions.log import Log
from appssl.ops.interactions.notes import LISTED, Notes


@dataclass
class Fate:
    outcome: Literal["failed", "left_out"]
    count: int = 0
    rows: np.ndarray = field(default_factory=lambda: np.zeros(0, dtype=np.int64))


class Fates:
    """Counts and first rows of each reason, in the order in which reasons are first named."""

    def __init__(self) -> None:
        self.of: dict[str, Fate] = {}

    def add(self, outcome: Literal["failed", "left_out"], reason: str, rows: np.ndarray) -> None:
        """Takes rows (N,) of the log, in any order; no row may come twice."""
        fate = self.of.setdefault(reason, Fate(outcome))
        fate.count += len(rows)
        first = rows if len(rows) <= LISTED else np.partition(rows, LISTED)[:LISTED]
        fate.rows = np.sort(np.concatenate([fate.rows, first.astype(np.int64)]))[:LISTED]

    def told(self) -> str:
        found = [f"{fate.count} {reason}" for reason, fate in self._ordered() if fate.count]
        return ", ".join(found)

    def note(self, log: Log, kept: int, notes: Notes) -> None:
        """Notes the counts of events and the first rows of each reason."""
        notes.count("events", "kept", kept)
        for reason, fate in self._ordered():
            notes.count("events", fate.outcome, fate.count, reason)
            more = f" (first {LISTED} of {fate.count} are listed)" if fate.count > LISTED else ""
            for row in fate.rows.tolist():
                item, where, detail = log.told(row)
                notes.row("event", item, where, fate.outcome, reason, detail + more)

    def _ordered(self) -> list[tuple[str, Fate]]:
        """What failed by name, then what was left out in the order of the steps."""
        failed = sorted((reason, fate) for reason, fate in self.of.items() if fate.outcome == "failed")
        return [*failed, *((reason, fate) for reason, fate in self.of.items() if fate.outcome == "left_out")]
