"""Splits that keep groups whole: a patient, subject or user is in one part only."""

import hashlib
from collections.abc import Mapping, Sequence
from typing import Any, Literal

from pydantic import Field, field_validator, model_validator

from appssl.errors import DataError
from appssl.settings import Settings


class GroupSplit(Settings):
    """How groups (patients, subjects) are divided into train, val and test."""

    test: float = Field(0.25, ge=0, lt=1, description="share of the groups for the test part")
    val: float = Field(0.0, ge=0, lt=1, description="share of the groups for the validation part")
    seed: int = Field(0, ge=0, description="seed of the division; not the seed of the run")
    test_groups: tuple[str, ...] = Field((), description="name the test groups instead of drawing them")
    folds: int | Literal["all"] | None = Field(
        None, description="cross-validation: the test part is one of so many folds, 2 or more; all: a fold per group"
    )
    fold: int | None = Field(None, ge=0, description="which fold; null: the seed of the run modulo folds")

    @field_validator("folds", mode="before")
    @classmethod
    def _possible(cls, value: Any) -> Any:
        if value in (None, "all") or (type(value) is int and value >= 2):  # a bool is no number of folds
            return value
        raise ValueError("folds must be a whole number, 2 or more, or all")

    @model_validator(mode="after")
    def _room_for_training(self) -> "GroupSplit":
        if self.test + self.val >= 1:
            raise ValueError("test + val must be below 1, nothing is left for training")
        if self.folds is not None and self.test_groups:
            raise ValueError("give either folds or test_groups")
        if self.fold is not None and self.folds != "all" and self.fold >= (self.folds or 0):
            raise ValueError("fold must be below folds")
        return self


def group_split(
    groups: Sequence[str], config: GroupSplit, strata: Mapping[str, str | None] | None = None
) -> dict[str, str]:
    """Part (train, val, test) of each group.

    The order of groups is by SHA-256 of (seed, name): it depends neither on the order of the input nor on a library's
    random numbers. A part with a share above 0 gets at least one group. Folds are dealt out in that order; with `folds:
    all` there are as many as groups, and `fold` counts modulo that number, which a seed does not know.

    Args:
        strata: a label of each group; folds then have equal parts of every label, as far as that is possible.
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
    if config.folds is not None:
        test = _fold(order, config, strata or {})
    else:
        test = list(config.test_groups) or order[: _count(config.test, len(order))]
    rest = [g for g in order if g not in set(test)]
    val = rest[: _count(config.val, len(order))]
    if len(rest) - len(val) < 1:
        share = f"fold {config.fold or 0}" if config.folds is not None else f"{config.test:g}"
        raise DataError(
            f"{len(distinct)} group(s) ({', '.join(distinct[:5])}) cannot be divided into test {share} and val "
            f"{config.val:g} with something left for training. Add groups, or set split.test and split.val to 0."
        )
    return {g: "test" if g in set(test) else "val" if g in set(val) else "train" for g in distinct}


def _fold(order: Sequence[str], config: GroupSplit, strata: Mapping[str, str | None]) -> list[str]:
    assert config.folds is not None
    if config.folds == "all":
        return [order[(config.fold or 0) % len(order)]] if order else []
    if config.folds > len(order):
        raise DataError(f"split.folds is {config.folds}, and there are only {len(order)} group(s). Set it lower.")
    dealt = sorted(order, key=lambda group: strata.get(group) or "")  # stable: by hash within a label
    return dealt[config.fold or 0 :: config.folds]


def fold_of_seed(split: dict[str, Any], seed: int) -> dict[str, Any]:
    """Settings of a `GroupSplit`, as plain values, with the fold of a run where none is named."""
    folds = split.get("folds")
    if folds is None or split.get("fold") is not None:
        return split
    return {**split, "fold": seed if folds == "all" else seed % folds}


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
