"""Images of balanced classes cut down to a long tail, to measure what is made for one.

Images are listed, checked and resized as sources/webnoisy states. Of the training images of class c, in the order of
`class_names`, n_c = floor(most * ratio^(-c / (C - 1))) are kept (at least one), chosen by hash of their ids. The test
part has a tail of its own, forwards or backwards, or stays as it is. What is cut is in the quarantine as `long_tail`.

Source: count rule of Cao et al., LDAM, NeurIPS 2019, arXiv 1906.07413; shifted test parts as in Zhang et al., SADE,
NeurIPS 2022, arXiv 2107.09249. Deviations: chosen by hash; images without a label are left alone.
"""

from typing import Literal

import polars as pl
from pydantic import Field, model_validator

from appssl.ops.images.selection import hash_order
from appssl.settings import Settings
from appssl.sources import webnoisy


class Tail(Settings):
    ratio: float = Field(100.0, ge=1, description="images of the first class / those of the last")
    most: int | None = Field(None, ge=1, description="images of the first class; null: those of the smallest class")


class Config(webnoisy.Config):
    name: Literal["long_tail"] = "long_tail"  # type: ignore[assignment]
    train: Tail = Field(Tail(), description="tail of the training part, by given label")
    test: Tail = Field(Tail(ratio=1.0), description="tail of the test part, by true label")
    backward: bool = Field(False, description="the test part's last class is its most frequent one")

    @model_validator(mode="after")
    def _named(self) -> "Config":
        if not self.class_names:
            raise ValueError("class_names are needed: the tail falls in their order")
        return self


class LongTail(webnoisy.WebNoisy):
    config: Config

    def used(self, units: pl.DataFrame) -> pl.DataFrame:
        classes = self.config.class_names
        cut = _cut(units, "train", ("label",), classes, self.config.train)
        cut += _cut(
            units, "test", ("true_label", "label"), classes[:: -1 if self.config.backward else 1], self.config.test
        )
        gone = pl.col("id").is_in(cut)
        return units.with_columns(
            outcome=pl.when(gone).then(pl.lit("left_out")).otherwise("outcome"),
            reason=pl.when(gone).then(pl.lit("long_tail")).otherwise("reason"),
            detail=pl.when(gone).then(pl.lit("beyond the number of images of its class")).otherwise("detail"),
        )


def tail_counts(num_classes: int, most: int, ratio: float) -> list[int]:
    """floor(most * ratio^(-c / (C - 1))) for c = 0..C-1, at least 1."""
    last = max(num_classes - 1, 1)
    return [max(1, int(most * (1 / ratio) ** (c / last))) for c in range(num_classes)]


def _cut(units: pl.DataFrame, split: str, columns: tuple[str, ...], classes: tuple[str, ...], tail: Tail) -> list[str]:
    """Ids of kept images of a part that its tail has no place for."""
    if tail.ratio == 1 and tail.most is None:
        return []
    part = units.filter((pl.col("outcome") == "kept") & (pl.col("split") == split))
    part = part.with_columns(of=pl.coalesce(*columns))
    members = {name: part.filter(pl.col("of") == name)["id"].to_list() for name in classes}
    most = tail.most or min(map(len, members.values()))
    gone: list[str] = []
    for name, count in zip(classes, tail_counts(len(classes), most, tail.ratio), strict=True):
        gone += sorted(members[name], key=lambda one: hash_order(f"long_tail/{one}"))[count:]
    return gone


def build(config: Config) -> LongTail:
    return LongTail(config)
