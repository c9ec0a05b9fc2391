"""Single images with known classes, assembled into bags for multiple-instance learning.

Images are listed, checked and resized as sources/webnoisy states. Then as many positive as negative bags are put
together of each part: a positive one holds a stated share of images of the positive classes, a negative one none. What
is trained on is the label of the bag; the class of the image is `true_label`, for evaluation only. Images that are left
over are in the quarantine as `not_in_a_bag`.
"""

from typing import Any, Literal

import polars as pl
from pydantic import Field

from appssl.errors import DataError
from appssl.ops.bag_assembly import CLASSES, Assembly, assembled
from appssl.sources import webnoisy


class Config(webnoisy.Config):
    name: Literal["image_bags"] = "image_bags"  # type: ignore[assignment]
    bags: Assembly = Field(description="how bags are put together")


class ImageBags(webnoisy.WebNoisy):
    domain = "wsi"
    extra_columns = ("bag",)
    config: Config

    def used(self, units: pl.DataFrame) -> pl.DataFrame:
        """
        Raises:
            DataError: if a positive class is none of the classes, or no bag can be made for training.
        """
        how = self.config.bags
        unknown = sorted(set(how.positive) - set(units["label"].drop_nulls()))
        if unknown:
            raise DataError(f"data.source.bags.positive: no image has the class {', '.join(unknown)}.")
        kept = assembled(units.filter(pl.col("outcome") == "kept"), how)
        if kept.filter(split="train")["bag"].null_count() == len(kept.filter(split="train")):
            raise DataError(
                f"no bag of {how.length} images can be made of the training part. Set bags.length lower, or another "
                "bags.positive_ratio."
            )
        left_over = pl.col("bag").is_null()
        kept = kept.with_columns(
            outcome=pl.when(left_over).then(pl.lit("left_out")).otherwise("outcome"),
            reason=pl.when(left_over).then(pl.lit("not_in_a_bag")).otherwise("reason"),
            detail=pl.when(left_over)
            .then(pl.lit("bags are of equal length, and no image is used twice"))
            .otherwise("detail"),
        )
        if not how.within_groups:  # what is resampled in intervals, and not divided, is then the bag
            kept = kept.with_columns(group=pl.coalesce("bag", "group"))
        others = units.filter(pl.col("outcome") != "kept").with_columns(bag=pl.lit(None, pl.String))
        return pl.concat([kept.select(others.columns), others]).sort("unit")

    def classes(self, named: Any) -> tuple[str, ...]:
        return CLASSES

    def facts(self) -> dict[str, Any]:
        return {"bag": "bag"}


def build(config: Config) -> ImageBags:
    return ImageBags(config)
