"""What became of inputs: counts for the accounts, and rows for the quarantine, until a source hands them on."""

from dataclasses import dataclass, field
from typing import Literal

Outcome = Literal["kept", "left_out", "failed"]
LISTED = 1000  # rows of one reason that are listed one by one; the account counts all


@dataclass
class Notes:
    """
    Attributes:
        counts: (what, outcome, reason, number), as `contracts.Account` adds them up; no reason where it is kept.
        rows: fields of `contracts.Quarantined`.
    """

    counts: list[tuple[str, Outcome, str, int]] = field(default_factory=list)
    rows: list[dict[str, str]] = field(default_factory=list)

    def count(self, what: str, outcome: Outcome, number: int, reason: str = "") -> None:
        if number or outcome == "kept":
            self.counts.append((what, outcome, reason, number))

    def row(self, what: str, item: str, where: str, outcome: Outcome, reason: str, detail: str) -> None:
        found = {"what": what, "item": item, "where": where, "outcome": outcome, "reason": reason, "detail": detail}
        self.rows.append(found)
