"""Whole bags as examples, for multiple-instance learning: {index, input, mask, target}, B bags of L tiles each.

A bag with more tiles than `tiles_per_bag` is seen by another random part in every epoch; a smaller one is filled up
with zeros where `mask` is false.
Source: common practice, as in Ilse et al., ICML 2018, arXiv 1802.04712 (one bag a step). Deviations: bags of limited
size, so that several fit into a step.
"""

from collections.abc import Mapping
from typing import Any, Literal

import numpy as np
import polars as pl
import torch
from pydantic import Field

from appssl.contracts import Batch, PreparedData, Views
from appssl.ops.bags import BagIndex, index_bags, some
from appssl.ops.random import rng_for
from appssl.settings import Settings


class Config(Settings):
    name: Literal["bags"] = "bags"
    tiles_per_bag: int = Field(64, ge=1, description="most tiles of a bag in a step")


class Bags:
    def __init__(self, config: Config, data: PreparedData, views: Views, bags: BagIndex) -> None:
        self.config, self.data, self.views, self.bags = config, data, views, bags
        counts = np.bincount(bags.targets, minlength=len(data.meta.classes))
        self.facts: Mapping[str, Any] = {"class_counts": counts.tolist()}

    def __len__(self) -> int:
        return len(self.bags)

    @property
    def rows(self) -> np.ndarray:
        """(N,) int64: all tiles of all bags."""
        return self.bags.rows

    def batch(self, indices: np.ndarray, *, seed: int, epoch: int) -> Batch:
        """`index` is the first row of each bag; `input` (B, L, ...), `mask` (B, L), `target` (B,)."""
        limit = self.config.tiles_per_bag
        chosen = [some(self.bags.of(bag), limit, rng_for(seed, epoch, len(self.data.samples) + bag)) for bag in indices]
        longest = max(len(rows) for rows in chosen)
        tiles = torch.zeros(len(chosen), longest, *self.views.input_shape)
        mask = torch.zeros(len(chosen), longest, dtype=torch.bool)
        for number, rows in enumerate(chosen):
            made = [self.views.augment(self.data.read(int(row)), rng_for(seed, epoch, int(row))) for row in rows]
            tiles[number, : len(rows)] = torch.stack(made)
            mask[number, : len(rows)] = True
        first = self.bags.rows[self.bags.offsets[indices]]
        return {
            "index": torch.from_numpy(first),
            "input": tiles,
            "mask": mask,
            "target": torch.from_numpy(self.bags.targets[indices]),
        }


def build(config: Config, data: PreparedData, views: Views) -> Bags:
    train = data.samples.filter(pl.col("split") == "train")
    return Bags(config, data, views, index_bags(train, data.meta.facts, data.meta.classes))
