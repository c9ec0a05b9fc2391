"""Views of an item: its feature tokens with some fields masked and some tokens dropped.

Source: Yao et al., Self-supervised learning for large-scale item recommendations, CIKM 2021, arXiv 2007.12865, section
3.2, random feature masking with complementary masks, then dropout on multi-valued features. Deviations: the masked
fields are drawn at random; the paper's correlated masking by mutual information is a method of its own.
"""

from typing import Any, Literal

import numpy as np
import torch
from pydantic import Field
from torch import Tensor

from appssl.contracts import Meta
from appssl.errors import DataError
from appssl.settings import Settings


class Config(Settings):
    name: Literal["item_features"] = "item_features"
    mask: float = Field(
        0.5, ge=0, le=1, description="share of the fields masked in the first view; the others in the second"
    )
    complementary: bool = Field(True, description="second view masks exactly the other fields; false: an own draw")
    dropout: float = Field(0.2, ge=0, lt=1, description="probability that a token of a multi-valued field is dropped")


class ItemFeatures:
    """Views of (L,) int64 tokens; 0 is missing."""

    num_views = 2

    def __init__(self, config: Config, fields: list[dict[str, Any]]) -> None:
        self.config = config
        self.input_shape = (sum(field["length"] for field in fields),)
        self._num_fields = len(fields)
        self._field_of = np.concatenate([np.full(f["length"], n) for n, f in enumerate(fields)])
        self._multi = np.concatenate([np.full(f["length"], f["length"] > 1) for f in fields])

    def views(self, sample: Any, rng: np.random.Generator) -> list[Tensor]:
        first = self._mask(rng)
        second = ~first if self.config.complementary else self._mask(rng)
        return [self._view(sample, hidden, rng) for hidden in (first, second)]

    def augment(self, sample: Any, rng: np.random.Generator) -> Tensor:
        return self._view(sample, np.zeros(self._num_fields, dtype=bool), rng)

    def plain(self, sample: Any) -> Tensor:
        return torch.from_numpy(np.asarray(sample, dtype=np.int64).copy())

    def _mask(self, rng: np.random.Generator) -> np.ndarray:
        """Which fields are hidden: a fixed share of them, at least one and not all when there are two or more."""
        count = round(self.config.mask * self._num_fields)
        count = min(max(count, 1), self._num_fields - 1) if self._num_fields > 1 and 0 < self.config.mask < 1 else count
        hidden = np.zeros(self._num_fields, dtype=bool)
        hidden[rng.permutation(self._num_fields)[:count]] = True
        return hidden

    def _view(self, sample: Any, hidden: np.ndarray, rng: np.random.Generator) -> Tensor:
        dropped = self._multi & (rng.random(len(self._field_of)) < self.config.dropout)
        return torch.from_numpy(np.where(hidden[self._field_of] | dropped, 0, np.asarray(sample, dtype=np.int64)))


def build(config: Config, meta: Meta) -> ItemFeatures:
    """
    Raises:
        DataError: if the data are not items with feature tokens.
    """
    if not meta.facts.get("fields"):
        raise DataError(
            f"views/item_features needs items with features; the data of source {meta.source} have none. "
            "Name feature columns in data.source (categorical, multi, numeric, patterns)."
        )
    return ItemFeatures(config, meta.facts["fields"])
