"""Every training item once an epoch, the same features masked in all items of a batch: {index, views}.

For `views: item_features`. A mask is drawn for a batch, as in the paper: with one for each item, which features are
there would tell a positive from most negatives. It is also what `masking: correlated` needs: the mutual information of
the features is that of the training items. What is drawn depends on (seed, epoch, first item of the batch) only; a
process, and a micro-batch, has a mask of its own.

Source: Yao et al., Self-supervised learning for large-scale item recommendations, CIKM 2021, arXiv 2007.12865, sections
3.2 and 3.3. Deviations: none.
"""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any, Literal

import numpy as np
import torch

from appssl.contracts import Batch, PreparedData, Views
from appssl.errors import SettingsError
from appssl.ops.interactions.item_masks import ItemMasks, nearest_features
from appssl.ops.interactions.mutual_information import field_codes, mutual_information
from appssl.ops.random import rng_for
from appssl.ops.rows import training_rows
from appssl.settings import Settings

_MASKS = 2**62  # streams of masks; above the numbers of items, below those that other samplers use


class Config(Settings):
    name: Literal["one_mask"] = "one_mask"


class OneMask:
    is_drawn_by_batch = True

    def __init__(self, tokens: np.ndarray, rows: np.ndarray, masks: ItemMasks) -> None:
        """
        Args:
            tokens: (num_items, L) int64. rows: items that are trained on.
        """
        self.tokens, self.rows, self.masks = tokens, rows, masks
        self.facts: Mapping[str, Any] = {}

    def __len__(self) -> int:
        return len(self.rows)

    def batch(self, indices: np.ndarray, *, seed: int, epoch: int) -> Batch:
        rows = self.rows[indices]
        rng = rng_for(seed, epoch, _MASKS + int(rows[0]))
        views = self.masks.views(np.asarray(self.tokens[rows], dtype=np.int64), rng)
        return {"index": torch.from_numpy(rows), "views": [torch.from_numpy(view) for view in views]}


def build(config: Config, data: PreparedData, views: Views) -> OneMask:
    """
    Raises:
        SettingsError: if the views mask no features. DataError: if there are no training items.
    """
    masks = getattr(views, "masks", None)
    if not isinstance(masks, ItemMasks):
        raise SettingsError("pretrain.sampler one_mask draws the masks of views item_features; set pretrain.views.")
    rows = training_rows(data.samples)
    tokens = data.tokens  # type: ignore[attr-defined]
    if masks.masking == "correlated":
        information = mutual_information(field_codes(tokens[rows], masks.fields))
        masks = replace(masks, nearest=nearest_features(information))
    return OneMask(tokens, rows, masks)
