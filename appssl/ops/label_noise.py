"""Wrong labels at stated rates, for experiments in which the truth must be known.

    symmetric:   a label of class c becomes, with probability rate_c, one of the other K - 1 classes, each as likely
    asymmetric:  a label of class c becomes, with probability rate_c, the class that c is taken for; by default c + 1

The rate is that of wrong labels: the class itself is never drawn (Patrini et al., CVPR 2017, arXiv 1609.03683, and Han
et al., NeurIPS 2018, arXiv 1804.06872, use both kinds; others draw among all K, so that rate (K - 1) / K are wrong).
Whether a label is changed and into what are hashes of (seed, id): they do not depend on the other images, and at a
higher rate the same labels are wrong and more.
"""

from collections.abc import Sequence
from typing import Literal

import polars as pl
from pydantic import Field, model_validator

from appssl.errors import DataError
from appssl.ops.images.selection import hash_order
from appssl.settings import Settings, nearest


class LabelNoise(Settings):
    """Wrong labels that are planted in the training part; `true_label` then holds what was there."""

    kind: Literal["symmetric", "asymmetric"] = Field(
        "symmetric", description="into any other class, or into one that it is taken for"
    )
    rate: float = Field(0.0, ge=0, le=1, description="share of wrong labels in every class that `rates` does not name")
    rates: dict[str, float] = Field({}, description="class: its own share of wrong labels")
    taken_for: dict[str, str] = Field(
        {},
        description="class: what it becomes, when asymmetric; classes not named keep their labels; "
        "empty: each becomes the next one in the order of classes",
    )
    seed: int = Field(0, ge=0, description="chooses which labels are wrong; not the seed of the run")

    @model_validator(mode="after")
    def _sound(self) -> "LabelNoise":
        if wrong := [name for name, rate in self.rates.items() if not 0 <= rate <= 1]:
            raise ValueError(f"rates lie in 0..1; see {', '.join(wrong)}")
        if self.taken_for and self.kind == "symmetric":
            raise ValueError("taken_for is of asymmetric noise; set kind: asymmetric")
        if wrong := [name for name, other in self.taken_for.items() if name == other]:
            raise ValueError(f"taken_for takes a class for itself: {', '.join(wrong)}")
        if not self.rate and not any(self.rates.values()):
            raise ValueError("nothing would be wrong: give rate or rates above 0")
        return self


def with_wrong_labels(units: pl.DataFrame, noise: LabelNoise, classes: Sequence[str]) -> pl.DataFrame:
    """Training rows with wrong labels; what was the label is their `true_label`, where no truth is known.

    Args:
        units: id, split, label, true_label. Rows without label and of other parts stay as they are.
    Raises:
        DataError: if the settings name a class that there is not, or there is one class only.
    """
    named = {*noise.rates, *noise.taken_for, *noise.taken_for.values()}
    unknown = sorted(named - set(classes))
    if unknown:
        raise DataError(f"data.source.noise names {unknown[0]!r}, which is no class.{nearest(unknown[0], classes)}")
    if len(classes) < 2:
        raise DataError("data.source.noise: with fewer than two classes no label can be wrong.")
    is_open = (pl.col("split") == "train") & pl.col("label").is_not_null()
    ids, labels = units["id"].to_list(), units["label"].to_list()
    touched = units.select(is_open.alias("open"))["open"].to_list()
    new = [
        noisy_label(name, label, noise, classes) if may else label
        for name, label, may in zip(ids, labels, touched, strict=True)
    ]
    truth = pl.when(is_open).then(pl.coalesce("true_label", "label")).otherwise("true_label")
    return units.with_columns(true_label=truth, label=pl.Series("label", new, dtype=pl.String))


def noisy_label(name: str, label: str, noise: LabelNoise, classes: Sequence[str]) -> str:
    """The label that an image called `name` gets in place of `label`; mostly the same."""
    if _uniform(f"{noise.seed}/wrong/{name}") >= noise.rates.get(label, noise.rate):
        return label
    if noise.kind == "symmetric":
        others = [other for other in classes if other != label]
        return others[int(_uniform(f"{noise.seed}/into/{name}") * len(others))]
    if noise.taken_for:
        return noise.taken_for.get(label, label)
    return classes[(classes.index(label) + 1) % len(classes)]


def _uniform(text: str) -> float:
    """In [0, 1), from 53 bits of a hash."""
    return (int.from_bytes(hash_order(text)[:8]) >> 11) * 2.0**-53
