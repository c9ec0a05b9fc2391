"""Blocks of windows of one person, for learners that compare windows of the same person: {index, views, block}.

An example is a block: the windows of a person in an order of their own in every epoch, cut into equal parts of at most
`windows`. Every training window is in one block of an epoch. With `fit.batch_size` B a step sees B blocks, and `block`
(sum of their windows,) int64 says which of them a row belongs to.
Source: batches of ColloSSL, Jain et al., IMWUT 6(1), 2022, arXiv 2202.00758, section 4. Deviations: blocks of all
persons come in random order, and none is left incomplete.
"""

from collections.abc import Mapping
from functools import lru_cache
from typing import Any, Literal

import numpy as np
import polars as pl
import torch
from pydantic import Field

from appssl.contracts import Batch, PreparedData, Views
from appssl.errors import DataError
from appssl.ops.mmd import mmd2
from appssl.ops.random import rng_for
from appssl.ops.rows import batch_of_views, training_rows
from appssl.ops.signals.channels import vectors
from appssl.settings import Settings

_ORDERS = 2**63  # streams of the orders within persons; above the numbers of rows, below that of an epoch's order
_LEAST = 2  # windows of a block: one has no other to be compared with


class Config(Settings):
    name: Literal["one_person"] = "one_person"
    windows: int = Field(512, ge=2, description="most windows of a block")
    device_distances: bool = Field(
        False, description="read all training data before training, for learners that select devices beforehand"
    )


class OnePerson:
    def __init__(self, config: Config, data: PreparedData, views: Views, members: list[np.ndarray]) -> None:
        self.config, self.data, self.views, self.members = config, data, views, members
        self.facts: Mapping[str, Any] = {}
        if config.device_distances:
            self.facts = {"device_distances": self._device_distances()}
        self._blocks = [
            (person, part) for person, rows in enumerate(members) for part in range(-(-len(rows) // config.windows))
        ]
        self._order = lru_cache(maxsize=4)(self._order_of_person)

    def __len__(self) -> int:
        return len(self._blocks)

    def batch(self, indices: np.ndarray, *, seed: int, epoch: int) -> Batch:
        parts = [self._rows(int(index), seed, epoch) for index in indices]
        made = batch_of_views(self.data, np.concatenate(parts), self.views, seed=seed, epoch=epoch)
        block = np.repeat(np.arange(len(parts)), [len(part) for part in parts])
        return {**made, "block": torch.from_numpy(block)}

    def _rows(self, index: int, seed: int, epoch: int) -> np.ndarray:
        person, part = self._blocks[index]
        count = -(-len(self.members[person]) // self.config.windows)
        return np.array_split(self._order(seed, epoch, person), count)[part]

    def _order_of_person(self, seed: int, epoch: int, person: int) -> np.ndarray:
        return rng_for(seed, epoch, _ORDERS + person).permutation(self.members[person])

    def _device_distances(self) -> list[list[float]]:
        """Discrepancy of the acceleration of each two devices, mean over blocks of all persons in the data's order."""
        found = vectors(self.data.meta.facts.get("channels", []))
        if not len(found):
            raise DataError("sampler one_person: device_distances needs channels x, y, z, such as acc_x, acc_y, acc_z.")
        blocks = []
        for rows in self.members:
            for part in np.array_split(rows, -(-len(rows) // self.config.windows)):
                made = batch_of_views(self.data, part, self.views, seed=0, epoch=0)["views"]
                norms = torch.stack(made)[:, :, found[0]].float().norm(dim=2)
                blocks.append(torch.stack([mmd2(anchor, norms) for anchor in norms]))
        mean: list[list[float]] = torch.stack(blocks).double().mean(0).tolist()
        return mean

    def __getstate__(self) -> dict[str, Any]:
        return {
            "config": self.config.model_copy(update={"device_distances": False}),
            "data": self.data,
            "views": self.views,
            "members": self.members,
        }

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__init__(**state)  # type: ignore[misc]  # caches do not travel to workers


def build(config: Config, data: PreparedData, views: Views) -> OnePerson:
    """
    Raises:
        DataError: if a person has a single training window.
    """
    rows = training_rows(data.samples)
    table = pl.DataFrame({"row": rows, "group": data.samples["group"].gather(rows)})
    groups = table.group_by("group", maintain_order=True).agg("row").sort("group")
    short = groups.filter(pl.col("row").list.len() < _LEAST)["group"].to_list()
    if short:
        raise DataError(f"sampler one_person: {', '.join(short[:5])} has a single training window; two are needed.")
    return OnePerson(config, data, views, [np.array(found, np.int64) for found in groups["row"].to_list()])
