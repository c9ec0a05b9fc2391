"""Bags of samples for multiple-instance learning: which rows make up a bag, its label, and pooled scores.

In `samples` a bag is named by the column that `meta.facts["bag"]` names (slides, regions); the `label` of its rows is
that of the bag, and `true_label` that of the row itself where it is known, for evaluation only.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import polars as pl

from appssl.errors import DataError


@dataclass(frozen=True)
class BagIndex:
    """Bags in order of their names; `rows` holds those of bag b at offsets[b] .. offsets[b + 1].

    Attributes:
        names: (G,) str. targets: (G,) int64 class numbers. groups: (G,) str: what must not cross a split. rows: (N,)
        int64. offsets: (G + 1,) int64.
    """

    names: np.ndarray
    targets: np.ndarray
    groups: np.ndarray
    rows: np.ndarray
    offsets: np.ndarray

    def __len__(self) -> int:
        return len(self.names)

    def of(self, bag: int) -> np.ndarray:
        """Rows of a bag, (L,) int64."""
        return self.rows[self.offsets[bag] : self.offsets[bag + 1]]

    @property
    def bag_of_position(self) -> np.ndarray:
        """Bag number (N,) int64 of every entry of `rows`."""
        return np.repeat(np.arange(len(self)), np.diff(self.offsets))


def index_bags(samples: pl.DataFrame, facts: Mapping[str, Any], classes: Sequence[str]) -> BagIndex:
    """Bags of labelled rows; rows without a label are in no bag.

    Args:
        samples: rows of one part. facts: those of the data's meta. classes: names in the order of their numbers.
    Raises:
        DataError: if the data has no bags, or a bag has two labels or two groups; all such bags in one message.
    """
    column = facts.get("bag")
    if column is None:
        raise DataError("the data has no bags: set data.source.slide_labels, or use a source that makes bags.")
    table = samples.filter(pl.col("label").is_not_null() & pl.col(column).is_not_null()).sort(column, "index")
    if table.is_empty():
        raise DataError("no bag of this part has a label. Give labels of slides, or change the split.")
    found = table.group_by(column, maintain_order=True).agg(
        pl.col("label").unique().sort(), pl.col("group").unique().sort(), pl.len()
    )
    problems = [
        f"{column} {name!r} has {what}s {', '.join(values)}"
        for what in ("label", "group")
        for name, values in found.select(column, what).iter_rows()
        if len(values) > 1
    ]
    if problems:
        raise DataError("a bag has one label and one group: " + "; ".join(problems[:20]) + ".")
    number = {name: n for n, name in enumerate(classes)}
    return BagIndex(
        names=found[column].to_numpy(),
        targets=np.array([number[label[0]] for label in found["label"]], dtype=np.int64),
        groups=found["group"].list.first().to_numpy(),
        rows=table["index"].to_numpy().astype(np.int64),
        offsets=np.concatenate([[0], found["len"].to_numpy().cumsum()]).astype(np.int64),
    )


def some(rows: np.ndarray, count: int, rng: np.random.Generator) -> np.ndarray:
    """At most `count` of the rows of a bag (L,), drawn without replacement, in their order."""
    if len(rows) <= count:
        return rows
    return rows[np.sort(rng.choice(len(rows), count, replace=False))]
