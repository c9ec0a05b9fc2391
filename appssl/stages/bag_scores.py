"""Scores of rows and bags (slides) from the features of rows."""

from collections.abc import Mapping
from itertools import pairwise
from typing import Any

import numpy as np
import polars as pl
import torch

from appssl.contracts import PreparedData


def bag_column(facts: Mapping[str, Any], samples: pl.DataFrame) -> str | None:
    """The column that names bags, for a model that was trained on bags; None where new data has none."""
    names = [facts["bag"], "slide_id"] if "bag" in facts else []  # regions of labelled points: of new data, the slides
    return next((name for name in names if name in samples.columns), None)


def bag_probabilities(model: Any, features: np.ndarray, offsets: np.ndarray) -> np.ndarray:
    """(G, K) float64; features (N, F) float32 of the rows of all bags, bag g at offsets[g] .. offsets[g + 1]."""
    model = model.cpu().eval()
    with torch.inference_mode():
        found = [
            model.bag_probabilities(torch.from_numpy(features[first:last])).double().numpy()
            for first, last in pairwise(offsets)
        ]
    return np.stack(found)


def class_logits(model: Any, features: np.ndarray) -> np.ndarray:
    """(N, K) float32 from features (N, F)."""
    model = model.cpu().eval()
    with torch.inference_mode():
        found: np.ndarray = model.classify(torch.from_numpy(features)).float().numpy()
    return found


def in_bags(data: PreparedData, column: str) -> tuple[pl.DataFrame, np.ndarray]:
    """Samples sorted by bag and index, and where the bags begin and end among them (G + 1,) int64."""
    table = data.samples.sort(column, "index")
    sizes = table.group_by(column, maintain_order=True).len()["len"].to_numpy()
    return table, np.concatenate([[0], sizes.cumsum()]).astype(np.int64)
