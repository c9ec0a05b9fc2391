"""Rows of prepared samples that are trained on, and their views as a batch."""

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import polars as pl
import torch

from appssl.errors import DataError
from appssl.ops.images.level_views import level_views
from appssl.ops.random import rng_for


def training_rows(samples: pl.DataFrame) -> np.ndarray:
    """Rows of the training part, (N,) int64, labelled or not.

    Raises:
        DataError: if there is none.
    """
    rows = samples.filter(pl.col("split") == "train")["index"].to_numpy().astype(np.int64)
    if len(rows) == 0:
        raise DataError("there are no training samples.")
    return rows


def raw_samples(data: Any, rows: np.ndarray) -> Iterator[Any]:
    """Raw samples of rows (B,) int64 of prepared data, in their order: read at once where the data can, else singly."""
    return iter(data.read_many(rows)) if hasattr(data, "read_many") else (data.read(int(row)) for row in rows)


def batch_of_views(data: Any, rows: np.ndarray, views: Any, *, seed: int, epoch: int) -> dict[str, Any]:
    """{index, views} of rows (B,) int64 of prepared data; views as `contracts.Views`: tensors, or `Renderable`.

    Rows are read in their order in the data, where neighbours lie side by side on disk, whatever their order here.
    """
    make, together = _ways(views)
    made: list[Any] = [None] * len(rows)
    order = np.argsort(rows, kind="stable")
    for place, sample in zip(order, raw_samples(data, rows[order]), strict=True):
        made[place] = make(sample, rng_for(seed, epoch, int(rows[place])))
    return {"index": torch.from_numpy(rows), "views": together(made)}


def _ways(views: Any) -> tuple[Callable[[Any, np.random.Generator], Any], Callable[[list[Any]], Any]]:
    """How something is made of a sample and its generator, and a batch's views of what was made."""
    if is_rendered_later(views):
        return lambda *drawn: drawn, lambda made: views.drawn(*zip(*made, strict=True))
    if hasattr(views, "levels"):
        return views.levels, lambda made: level_views(made, views.standardize)
    return views.views, lambda made: [torch.stack(view) for view in zip(*made, strict=True)]


def is_rendered_later(views: Any) -> bool:
    """Whether batches of these views are `contracts.Renderable`, for the training's device."""
    return getattr(views, "render", "loader") == "device"


def rendered(batch: dict[str, Any]) -> dict[str, Any]:
    """The batch with its views as tensors, computed where the batch is if they were not yet."""
    views: Any = batch.get("views")
    return {**batch, "views": views.render()} if hasattr(views, "render") else batch
