"""Every training row once an epoch: {index, views}. What pretraining uses unless a recipe says otherwise."""

from collections.abc import Mapping
from typing import Any, Literal

import numpy as np

from appssl.contracts import Batch, PreparedData, Views
from appssl.ops.rows import batch_of_views, training_rows
from appssl.settings import Settings


class Config(Settings):
    name: Literal["uniform"] = "uniform"


class Uniform:
    def __init__(self, data: PreparedData, rows: np.ndarray, views: Views) -> None:
        self.data, self.rows, self.views = data, rows, views
        self.facts: Mapping[str, Any] = {}

    def __len__(self) -> int:
        return len(self.rows)

    def batch(self, indices: np.ndarray, *, seed: int, epoch: int) -> Batch:
        return batch_of_views(self.data, self.rows[indices], self.views, seed=seed, epoch=epoch)


def build(config: Config, data: PreparedData, views: Views) -> Uniform:
    return Uniform(data, training_rows(data.samples), views)
