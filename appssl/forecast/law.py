"""From what a stage took on a share of the data, and for some steps, to what it takes on all data and for all steps.

The law is a line in both: cost = fixed + a * share of the inputs + b * optimizer steps. Two shares and two numbers of
steps tell the parts apart; a cost does not fall where data or steps grow.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from appssl.forecast.measuring import Cost

_NOISE = 0.05  # relative; a smaller growth of memory is none


@dataclass(frozen=True)
class Point:
    """A cost that was measured on a share of the inputs, in (0, 1], and for a number of steps, 0 without training."""

    share: float
    steps: int
    cost: Cost


@dataclass(frozen=True)
class Foreseen:
    """Of one job: seconds, CPU seconds, peak memory and bytes on disk."""

    seconds: float
    cpu_seconds: float
    memory: float
    size: float

    def plain(self) -> dict[str, Any]:
        return {
            "seconds": self.seconds,
            "cpu_seconds": self.cpu_seconds,
            "memory": round(self.memory),
            "bytes": round(self.size),
        }


def extrapolate(points: Sequence[Point], *, share: float, steps: int = 0) -> Foreseen:
    """The cost at a share and a number of steps.

    Args:
        points: the last one is the base: all is said from there. Others may differ from it in share or in steps; where
            none differs in share, all but the start of the process is taken to grow with the data, memory excepted. A
            share of 0 tells what nothing takes, and nothing of memory: that may be a unit's, however many there are.
    """
    base = points[-1]
    fewer = next((p for p in points[:-1] if p.share == base.share and p.steps != base.steps), None)
    beside = fewer or base  # what is compared with another share, after the same steps
    other = next((p for p in points[:-1] if p.share != base.share and p.steps == beside.steps), None)

    def grown(value: Callable[[Cost], float], fixed: float) -> float:
        known = value(base.cost)
        per_step = _slope(known - value(fewer.cost), base.steps - fewer.steps) if fewer else 0.0
        if other is not None:
            per_share = _slope(value(beside.cost) - value(other.cost), base.share - other.share)
        else:
            per_share = max(0.0, known - per_step * base.steps - fixed) / base.share
        return known + per_step * (steps - base.steps) + per_share * (share - base.share)

    more = next((p for p in reversed(points[:-1]) if p.share not in (0.0, base.share)), None)
    return Foreseen(
        seconds=grown(lambda cost: cost.seconds, base.cost.start),
        cpu_seconds=grown(lambda cost: cost.cpu_seconds, min(base.cost.start, base.cost.cpu_seconds)),
        memory=_memory(base, beside, more, share),
        size=grown(lambda cost: cost.size, base.cost.size if base.steps else 0.0),  # weights do not grow with data
    )


def _slope(rise: float, run: float) -> float:
    return max(0.0, rise / run)


def _memory(base: Point, beside: Point, other: Point | None, share: float) -> float:
    """What is only mapped from files can be given back by the system, and does not grow in this account."""
    if other is None:
        return base.cost.memory
    rise = beside.cost.own_memory - other.cost.own_memory
    if abs(rise) <= _NOISE * beside.cost.own_memory:
        return base.cost.memory
    return base.cost.memory + _slope(rise, base.share - other.share) * max(0.0, share - base.share)
