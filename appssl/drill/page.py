"""What a drill found, as text for the terminal and as a page."""

import os
import platform
from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path

from appssl.drill.expecting import NOT_TRIED
from appssl.drill.harness import Drill
from appssl.drill.kills import EQUAL, Kill
from appssl.version import __version__

_KILLS = ("trial", "domain", "target", "signal", "moment", "while", "attempts", "outcome")


def table(found: Drill) -> str:
    """All rows as aligned text, and what to do about those that were not as expected."""
    blocks = [_aligned([_KILLS, *map(_cells, found.kills)])] if found.kills else []
    if found.faults:
        faults = [(row.name, row.outcome, f"{row.seconds:.0f} s", _one_line(row.detail)) for row in found.faults]
        blocks.append(_aligned([("fault", "outcome", "took", ""), *faults]))
    return "\n\n".join([*blocks, summary(found)])


def summary(found: Drill) -> str:
    equal = sum(row.outcome == EQUAL for row in found.kills)
    late = sum(row.moment is None for row in found.kills)
    good = sum(row.outcome not in (NOT_TRIED,) and row.as_expected for row in found.faults)
    skipped = sum(row.outcome == NOT_TRIED for row in found.faults)
    parts = [f"{equal} of {len(found.kills)} kills ended with equal digests"] if found.kills else []
    parts += [f"{late} of these came after the run had ended"] if late else []
    parts += [f"{good} of {len(found.faults)} faults as expected"] if found.faults else []
    parts += [f"{skipped} not tried here"] if skipped else []
    return f"{'; '.join(parts)} (seed {found.seed})"


def page(found: Drill, *, date: str) -> str:
    """The drill as Markdown: where and when, counts, faults, and every row that was not as expected."""
    where = f"{platform.system()} {platform.machine()}, {os.cpu_count()} cores, Python {platform.python_version()}"
    text = [
        "# Drill",
        "Runs that are killed at a random moment and started again have to end with the digests of a run that nothing "
        "disturbed; every other fault has one expected outcome. Written by `appssl doctor --drill --write`, which "
        "repeats all of it on your machine or cluster.",
        f"{date}, appssl {__version__}, profile {Path(found.profile).name}, {where}: {summary(found)}.",
    ]
    if found.kills:
        text += ["## Kills", *(_counts(found.kills, what) for what in ("domain", "target", "signal"))]
    if found.faults:
        text += ["## Faults", _markdown(("fault", "expected", "outcome"), _faults(found))]
    if unexpected := found.unexpected:
        text += ["## Not as expected", *(_told(row) for row in unexpected)]
    return "\n\n".join(text) + "\n"


def _faults(found: Drill) -> list[tuple[str, ...]]:
    said = {NOT_TRIED: "{0.outcome}: {0.detail}"}
    return [(row.name, row.expected, said.get(row.outcome, "{0.outcome}").format(row)) for row in found.faults]


def _counts(kills: Sequence[Kill], what: str) -> str:
    total, equal = Counter(), Counter()  # type: ignore[var-annotated]
    for row in kills:
        total[getattr(row, what)] += 1
        equal[getattr(row, what)] += row.outcome == EQUAL
    rows = [(name, str(count), str(equal[name])) for name, count in sorted(total.items())]
    return _markdown((what, "kills", "equal"), rows)


def _told(row: object) -> str:
    values = row.plain()  # type: ignore[attr-defined]
    head = ", ".join(f"{key} {value}" for key, value in values.items() if key != "detail")
    return f"- {head}\n\n```text\n{values['detail']}\n```"


def _markdown(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join(f"| {' | '.join(_one_line(cell).replace('|', '/') for cell in line)} |" for line in lines)


def _cells(row: Kill) -> tuple[str, ...]:
    moment = "-" if row.moment is None else f"{row.moment:.1f} s"
    outcome = f"{row.outcome}  {_one_line(row.detail)}" if row.detail else row.outcome
    return str(row.trial), row.domain, row.target, row.signal, moment, row.stage, str(row.attempts), outcome


def _aligned(lines: Sequence[Sequence[str]]) -> str:
    widths = [max(len(line[column]) for line in lines) for column in range(len(lines[0]) - 1)]
    rows = ("  ".join([*map(str.ljust, line, widths), line[-1]]).rstrip() for line in lines)
    return "\n".join(rows)


def _one_line(text: str) -> str:
    return " ".join(text.split())[:160]
