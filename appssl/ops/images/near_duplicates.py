"""Images that show nearly the same by their perceptual hash: in groups, and those that leak from one part to another.

A near-duplicate in another part is a leak. As with equal pixels, the copy in test stays before that in val before that
in train. Within a part nothing is left out: that is for a person to decide, who finds the groups in a table.
"""

import numpy as np
import polars as pl

from appssl.errors import DataError
from appssl.ops.images.perceptual_hash import near_pairs
from appssl.ops.images.selection import PRIORITY
from appssl.ops.images.semantic_duplicates import joined


def groups(units: pl.DataFrame, distance: int) -> pl.DataFrame:
    """Kept images with a near-duplicate: group (its smallest id), id, split, label, bits by which it differs from that.

    Args:
        units: with id, split, label, outcome and hash (UInt64, null for images that show nothing).
        distance: bits that hashes of near-duplicates may differ in, directly or through others.
    """
    kept = units.filter((pl.col("outcome") == "kept") & pl.col("hash").is_not_null())
    hashes = kept["hash"].unique().sort()
    root = np.arange(len(hashes))
    i, j = near_pairs(hashes.to_numpy(), distance=distance)
    root = joined(root, i, j) if len(i) else root
    grouped = kept.join(pl.DataFrame({"hash": hashes, "root": root}), on="hash")
    grouped = grouped.filter(pl.len().over("root") > 1).sort("id")
    first = pl.col("hash").first().over("root")
    bits = pl.Series(
        "bits", np.bitwise_count(grouped["hash"].to_numpy() ^ grouped.select(first).to_series().to_numpy())
    )
    shown = grouped.select(pl.col("id").first().over("root").alias("group"), "id", "split", "label")
    return shown.with_columns(bits.cast(pl.Int64)).sort("group", "id")


def leave_out_leaks(units: pl.DataFrame, distance: int) -> pl.DataFrame:
    """Marks kept images with a near-duplicate in a part that comes before theirs; `copy_of` is then the id of that."""
    found = _leaks(units, distance)
    marked = units.join(found, on="id", how="left", maintain_order="left")
    is_leak = pl.col("keeper").is_not_null()
    detail = pl.format(
        "near-duplicate of {} ({} of 64 bits differ; {} and {}, labels {} and {})",
        "keeper", "bits", "split", "keeper_split",
        pl.col("label").fill_null("none"), pl.col("keeper_label").fill_null("none"),
    )  # fmt: skip
    return marked.with_columns(
        outcome=pl.when(is_leak).then(pl.lit("left_out")).otherwise("outcome"),
        reason=pl.when(is_leak).then(pl.lit("near_duplicate_across_splits")).otherwise("reason"),
        detail=pl.when(is_leak).then(detail).otherwise("detail"),
        copy_of=pl.when(is_leak).then("keeper").otherwise("copy_of"),
    ).drop("keeper", "bits", "keeper_split", "keeper_label")


def refuse_leaks(units: pl.DataFrame, distance: int) -> None:
    """
    Raises:
        DataError: if a kept image has a near-duplicate in another part; the first ones are named.
    """
    found = _leaks(units, distance).sort("bits", "id")
    if len(found):
        shown = [f"{name} ({bits} bits from {keeper}, {split})" for name, keeper, bits, split, _ in found.iter_rows()]
        raise DataError(
            f"{len(found)} image(s) have a near-duplicate in another part: {'; '.join(shown[:5])}. Leave them out "
            "(data.source.near_duplicates: leave_out), or divide by a group that holds copies together (columns.group)."
        )


def _leaks(units: pl.DataFrame, distance: int) -> pl.DataFrame:
    """id, keeper (the nearest image of a part before its own), bits, keeper_split, keeper_label."""
    kept = units.filter((pl.col("outcome") == "kept") & pl.col("hash").is_not_null())
    kept = kept.select("id", "split", "label", "hash", priority=pl.col("split").replace_strict(PRIORITY))
    hashes = kept["hash"].unique().sort().to_numpy()
    i, j = near_pairs(hashes, distance=distance)
    every = np.arange(len(hashes))
    left, right = hashes[np.concatenate([i, j, every])], hashes[np.concatenate([j, i, every])]
    near = pl.DataFrame({"hash": left, "other": right, "bits": np.bitwise_count(left ^ right).astype(np.int64)})
    keepers = (
        kept.select(keeper="id", keeper_split="split", keeper_label="label", other="hash", before="priority")
        .sort("keeper")
        .unique(["other", "before"], keep="first", maintain_order=True)
    )
    pairs = kept.join(near, on="hash").join(keepers, on="other").filter(pl.col("before") < pl.col("priority"))
    nearest = pairs.sort("id", "bits", "before", "keeper").unique("id", keep="first", maintain_order=True)
    return nearest.select("id", "keeper", "bits", "keeper_split", "keeper_label")
