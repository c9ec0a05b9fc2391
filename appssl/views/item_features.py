"""Views of an item: its feature tokens, some features masked and tokens dropped (`ops/interactions/item_masks.py`).

Masks are drawn for each item. `masking: correlated` needs the mutual information of the features, which views do not
know, and the paper draws one mask for a batch: both come from `sampler: one_mask`.

Source: Yao et al., Self-supervised learning for large-scale item recommendations, CIKM 2021, arXiv 2007.12865, section
3.2. Deviations: without that sampler each item has a mask of its own, and what is hidden helps to tell items apart.
"""

from typing import Any, Literal

import numpy as np
import torch
from pydantic import Field
from torch import Tensor

from appssl.contracts import Meta
from appssl.errors import DataError, SettingsError
from appssl.ops.interactions.item_masks import ItemMasks, Masking
from appssl.settings import Settings


class Config(Settings):
    name: Literal["item_features"] = "item_features"
    masking: Masking = Field("random", description="how masked fields are chosen; correlated needs sampler one_mask")
    mask: float = Field(
        0.5, ge=0, le=1, description="random: share of the fields masked in the first view; the others in the second"
    )
    complementary: bool = Field(
        True, description="random: the second view masks exactly the other fields; false: an own draw"
    )
    dropout: float = Field(0.2, ge=0, lt=1, description="probability that a token of a multi-valued field is dropped")


class ItemFeatures:
    """Views of (L,) int64 tokens; 0 is missing."""

    num_views = 2

    def __init__(self, config: Config, fields: list[dict[str, Any]]) -> None:
        width = sum(field["length"] for field in fields)
        self.input_shape = (width,)
        self.masks = ItemMasks(
            fields,
            width,
            masking=config.masking,
            share=config.mask,
            complementary=config.complementary,
            dropout=config.dropout,
        )

    def views(self, sample: Any, rng: np.random.Generator) -> list[Tensor]:
        """
        Raises:
            SettingsError: if masking is correlated.
        """
        if self.masks.masking == "correlated":
            raise SettingsError(
                "views/item_features: masking correlated masks the same fields of all items of a batch; "
                "set pretrain.sampler to one_mask, or masking to random."
            )
        return [torch.from_numpy(view) for view in self.masks.views(np.asarray(sample, dtype=np.int64), rng)]

    def augment(self, sample: Any, rng: np.random.Generator) -> Tensor:
        return torch.from_numpy(self.masks.hide(np.asarray(sample, dtype=np.int64), self.masks.nothing, rng))

    def plain(self, sample: Any) -> Tensor:
        return torch.from_numpy(np.asarray(sample, dtype=np.int64).copy())


def build(config: Config, meta: Meta) -> ItemFeatures:
    """
    Raises:
        DataError: if the data are not items with feature tokens, or masking is correlated and there is one feature.
    """
    fields = meta.facts.get("fields")
    if not fields:
        raise DataError(
            f"views/item_features needs items with features; the data of source {meta.source} have none. "
            "Name feature columns in data.source (categorical, multi, numeric, patterns)."
        )
    if config.masking == "correlated" and len(fields) < 2:
        raise DataError(
            "views/item_features: masking correlated needs two or more features; the items have one. "
            "Name more in data.source, or set masking to none."
        )
    return ItemFeatures(config, fields)
