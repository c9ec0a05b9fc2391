"""As many samples of every slide, subject or class: each value of a column has an equal part of the epoch.

Example i is of value i mod G, in the order of their names. Within a value every row comes once before one comes again,
in another order in every epoch. An epoch has as many examples as there are training rows.
Source: common practice for slides of very different size, as in class-balanced sampling (Kang et al., ICLR 2020, arXiv
1910.09217, equation 1 with q = 0). Deviations: rows are drawn without replacement, and values take turns.
"""

from collections.abc import Mapping
from functools import lru_cache
from typing import Any, Literal

import numpy as np
import polars as pl
from pydantic import Field

from appssl.contracts import Batch, PreparedData, Views
from appssl.errors import DataError
from appssl.ops.random import rng_for
from appssl.ops.rows import batch_of_views, training_rows
from appssl.settings import Settings, nearest

_ORDERS = 2**63  # streams of the orders within values; above the numbers of rows, below that of an epoch's order


class Config(Settings):
    name: Literal["balanced"] = "balanced"
    by: str = Field("group", description="column of the prepared samples whose values get equal parts: group, slide_id")


class Balanced:
    def __init__(self, data: PreparedData, views: Views, members: list[np.ndarray]) -> None:
        self.data, self.views, self.members = data, views, members
        self.facts: Mapping[str, Any] = {}
        self._order = lru_cache(maxsize=2 * len(members))(self._order_of_value)

    def __len__(self) -> int:
        return sum(map(len, self.members))

    def batch(self, indices: np.ndarray, *, seed: int, epoch: int) -> Batch:
        rows = np.array([self._row(int(index), seed, epoch) for index in indices], dtype=np.int64)
        return batch_of_views(self.data, rows, self.views, seed=seed, epoch=epoch)

    def _row(self, index: int, seed: int, epoch: int) -> int:
        turn, value = divmod(index, len(self.members))
        order = self._order(seed, epoch, value)
        return int(order[turn % len(order)])

    def _order_of_value(self, seed: int, epoch: int, value: int) -> np.ndarray:
        return rng_for(seed, epoch, _ORDERS + value).permutation(self.members[value])

    def __getstate__(self) -> dict[str, Any]:
        return {"data": self.data, "views": self.views, "members": self.members}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__init__(**state)  # type: ignore[misc]  # caches do not travel to workers


def build(config: Config, data: PreparedData, views: Views) -> Balanced:
    """
    Raises:
        DataError: if the data has no such column, or rows have no value in it.
    """
    if config.by not in data.samples.columns:
        raise DataError(
            f"sampler balanced: the samples have no column {config.by}.{nearest(config.by, data.samples.columns)}"
        )
    values = data.samples[config.by].gather(training_rows(data.samples))
    if values.null_count():
        raise DataError(
            f"sampler balanced: {values.null_count()} training samples have no {config.by}; use another column."
        )
    table = pl.DataFrame({"row": training_rows(data.samples), "value": values.cast(pl.String)})
    groups = table.group_by("value", maintain_order=True).agg("row").sort("value")
    return Balanced(data, views, [np.array(rows, dtype=np.int64) for rows in groups["row"].to_list()])
