"""Which rows of the prepared table a stage sees, and the class numbers of labels."""

import hashlib
from itertools import groupby
from operator import itemgetter

import numpy as np
import polars as pl

from appssl.contracts import PreparedData
from appssl.errors import DataError


def class_numbers(labels: pl.Series, classes: tuple[str, ...]) -> np.ndarray:
    """(N,) int64 class numbers, -1 where the label is null.

    Raises:
        DataError: if a label is in no class list.
    """
    known = {name: number for number, name in enumerate(classes)}
    unknown = sorted(set(labels.drop_nulls().unique().to_list()) - known.keys())
    if unknown:
        raise DataError(f"labels in no class list: {', '.join(map(str, unknown[:10]))}. Classes: {', '.join(classes)}.")
    return np.array([known.get(label, -1) for label in labels.to_list()], dtype=np.int64)


def evaluation_table(data: PreparedData, split: str = "test") -> pl.DataFrame:
    """Samples of a part whose target is known: columns of `samples`, and `target_label`: truth if there is any."""
    table = data.samples.with_columns(target_label=pl.coalesce("true_label", "label"))
    known = table.filter((pl.col("split") == split) & pl.col("target_label").is_in(list(data.meta.classes)))
    if known.is_empty():
        raise DataError(
            f"no labelled samples in the {split} part, nothing can be measured. Give labels or change the split."
        )
    return known


def take_fraction(table: pl.DataFrame, fraction: float, seed: int) -> pl.DataFrame:
    """A share of the rows of every class (column `label`), at least one each, by hash of (seed, id).

    A smaller fraction with the same seed is a subset of a larger one, whatever the order of rows.
    """
    if fraction >= 1:
        return table
    keyed = sorted(
        zip(table["label"].to_list(), table["id"].to_list(), table["index"].to_list(), strict=True),
        key=lambda row: (row[0], hashlib.sha256(f"{seed}/{row[1]}".encode()).digest()),
    )
    taken: list[int] = []
    for _, rows in groupby(keyed, key=itemgetter(0)):
        of_class = [index for _, _, index in rows]
        taken += of_class[: max(1, round(fraction * len(of_class)))]
    return table.filter(pl.col("index").is_in(taken)).sort("index")
