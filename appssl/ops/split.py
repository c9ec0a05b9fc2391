"""Splits that keep groups whole: a patient, subject or user is in one part only."""

import hashlib
from collections.abc import Mapping, Sequence

from pydantic import Field, model_validator

from appssl.errors import DataError
from appssl.settings import Settings


class GroupSplit(Settings):
    """How groups (patients, subjects) are divided into train, val and test."""

    test: float = Field(0.25, ge=0, lt=1, description="share of the groups for the test part")
    val: float = Field(0.0, ge=0, lt=1, description="share of the groups for the validation part")
    seed: int = Field(0, ge=0, description="seed of the division; not the seed of the run")
    test_groups: tuple[str, ...] = Field((), description="name the test groups instead of drawing them")

    @model_validator(mode="after")
    def _room_for_training(self) -> "GroupSplit":
        if self.test + self.val >= 1:
            raise ValueError("test + val must be below 1, nothing is left for training")
        return self


def group_split(groups: Sequence[str], config: GroupSplit) -> dict[str, str]:
    """Part (train, val, test) of each group.

    The order of groups is by SHA-256 of (seed, name): it depends neither on the order of the input nor on a library's
    random numbers. A part with a share above 0 gets at least one group.

    Raises:
        DataError: if there are too few groups, or a named test group does not exist.
    """
    distinct = sorted(set(groups))
    unknown = sorted(set(config.test_groups) - set(distinct))
    if unknown:
        raise DataError(
            f"split.test_groups names unknown groups: {', '.join(unknown)}. Known: {', '.join(distinct[:20])}."
        )
    order = sorted(distinct, key=lambda g: hashlib.sha256(f"{config.seed}/{g}".encode()).digest())
    test = list(config.test_groups) or order[: _count(config.test, len(order))]
    rest = [g for g in order if g not in set(test)]
    val = rest[: _count(config.val, len(order))]
    if len(rest) - len(val) < 1:
        raise DataError(
            f"{len(distinct)} group(s) ({', '.join(distinct[:5])}) cannot be divided into test {config.test:g} and val "
            f"{config.val:g} with something left for training. Add groups, or set split.test and split.val to 0."
        )
    return {g: "test" if g in set(test) else "val" if g in set(val) else "train" for g in distinct}


def _count(share: float, num_groups: int) -> int:
    return max(1, round(share * num_groups)) if share > 0 else 0


def refuse_leak(parts_of_group: Mapping[str, set[str]], what: str) -> None:
    """Raises DataError if a group is in more than one part, with the offending groups."""
    leaking = {g: p for g, p in parts_of_group.items() if len(p) > 1}
    if leaking:
        shown = "; ".join(f"{g} in {', '.join(sorted(p))}" for g, p in sorted(leaking.items())[:10])
        raise DataError(
            f"the split leaks: {len(leaking)} {what}(s) are in more than one part: {shown}. Correct the split column."
        )
