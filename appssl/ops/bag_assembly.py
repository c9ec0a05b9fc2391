"""Bags of single images or of the labelled points of a region, with known classes of their members."""

import hashlib

import numpy as np
import polars as pl
from pydantic import Field

from appssl.ops.random import rng_for
from appssl.settings import Settings

NEGATIVE, POSITIVE = CLASSES = ("negative", "positive")


class Assembly(Settings):
    """How bags are put together of single images: as many negative as positive ones, no image twice."""

    positive: tuple[str, ...] = Field(min_length=1, description="classes of images that make a bag positive")
    length: int = Field(100, ge=2, description="images of a bag")
    positive_ratio: float = Field(0.1, gt=0, le=1, description="share of positive images in a positive bag")
    within_groups: bool = Field(False, description="a bag has images of one group (patient) only")
    most: int | None = Field(None, ge=2, description="at most this many bags of a part or group")
    seed: int = Field(0, ge=0, description="chooses the images; not the seed of the run")


class Regions(Settings):
    """Squares of a slide as bags of the labelled points in them; a region is positive if one of its points is."""

    size_um: float = Field(1000, gt=0, description="side of a region, um")
    positive: tuple[str, ...] = Field(min_length=1, description="labels of points that make a region positive")


def in_regions(samples: pl.DataFrame, slides: pl.DataFrame, how: Regions) -> pl.DataFrame:
    """Point tiles with `region` (str), `label` (of the region) and `true_label` (of the point); null for other tiles.

    Args:
        samples: tiles with slide_id, kind, label, and x, y of their corner, level-0 pixels. slides: slide_id, mpp_x,
            mpp_y.
    """
    cell = {
        axis: (pl.col(axis) * pl.col(f"mpp_{axis}") / how.size_um).floor().cast(pl.Int64).cast(pl.String)
        for axis in "xy"
    }
    is_positive = pl.col("label").is_in(how.positive)
    is_point = (pl.col("kind") == "point") & pl.col("label").is_not_null()
    region = pl.when(is_point).then(pl.col("slide_id") + "/row" + cell["y"] + "/column" + cell["x"])
    named = samples.join(slides.select("slide_id", "mpp_x", "mpp_y"), on="slide_id", how="left", maintain_order="left")
    return (
        named.with_columns(region=region)
        .with_columns(
            true_label=pl.when(is_point).then(_class(is_positive)),
            label=pl.when(is_point).then(_class(is_positive.any().over("region"))),
        )
        .drop("mpp_x", "mpp_y")
    )


def _class(is_positive: pl.Expr) -> pl.Expr:
    return pl.when(is_positive).then(pl.lit(POSITIVE)).otherwise(pl.lit(NEGATIVE))


def assembled(units: pl.DataFrame, how: Assembly) -> pl.DataFrame:
    """Images with columns `bag` (str), `label` (of the bag) and `true_label` (of the image); null for those left over.

    Args:
        units: rows with `id`, `split`, `group`, and the class of each image in `label`.
    """
    where = ["split", "group"] if how.within_groups else ["split"]
    members = []
    for key, part in units.filter(pl.col("label").is_not_null()).group_by(where):
        ids, labels = part.sort("id").select("id", "label")
        found = labels.is_in(how.positive).to_numpy()
        bags = _bags(ids.to_numpy()[found], ids.to_numpy()[~found], how, "/".join(map(str, key)))
        members += [(name, bag, kind) for bag, kind, names in bags for name in names]
    in_bags = pl.DataFrame(members, schema={"id": pl.String, "bag": pl.String, "_label": pl.String}, orient="row")
    is_positive = pl.col("label").is_in(how.positive)
    return (
        units.join(in_bags, on="id", how="left", maintain_order="left")
        .with_columns(label="_label", true_label=pl.when(pl.col("bag").is_not_null()).then(_class(is_positive)))
        .drop("_label")
    )


def _bags(positive: np.ndarray, negative: np.ndarray, how: Assembly, where: str) -> list[tuple[str, str, np.ndarray]]:
    """(name, label, ids) of the bags of one part: pairs of a positive and a negative one until images run out."""
    in_bag = max(1, round(how.positive_ratio * how.length))
    rng = rng_for(how.seed, 0, int.from_bytes(hashlib.sha256(where.encode()).digest()[:7]))
    positive, negative = rng.permutation(positive), rng.permutation(negative)
    num_pairs = min(len(positive) // in_bag, len(negative) // (2 * how.length - in_bag))
    if how.most is not None:
        num_pairs = min(num_pairs, how.most // 2)
    found = []
    for pair in range(num_pairs):
        others = negative[pair * (2 * how.length - in_bag) : (pair + 1) * (2 * how.length - in_bag)]
        own = np.concatenate([positive[pair * in_bag : (pair + 1) * in_bag], others[: how.length - in_bag]])
        found.append((f"{where}/positive{pair:05}", POSITIVE, own))
        found.append((f"{where}/negative{pair:05}", NEGATIVE, others[how.length - in_bag :]))
    return found
