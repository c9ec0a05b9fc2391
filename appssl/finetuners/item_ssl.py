"""Item SSL: two-tower retrieval, and beside it a task without labels on items drawn uniformly from the catalogue.

    L = L_retrieval + alpha L_self
    L_self = -1/N sum_i log( exp(s(z_i, z_i') / tau) / sum_j exp(s(z_i, z_j') / tau) )

z and z' are the item tower's vectors of two views of an item that hide complementary features
(`ops/interactions/item_masks.py`). Items of the log follow a power law; the N items of L_self do not, so rare ones are
trained too. The item's number is a feature like the others: where it is hidden its embedding adds nothing, as for a
cold item. It determines every other feature, so correlated masking hides it in the first view (but for ties): L_self
trains it to match the content.

What the paper compares with, as settings: random masks (`masking: random`); value dropout alone (`masking: none`);
spread-out regularization (`masking: none, dropout: 0`, where both views are the item itself); feature dropout, the
features of the labelled items dropped in L_retrieval (`alpha: 0, feature_dropout: 0.2`); items as in the log
(`ssl_items: log`). With `contrast: isogclr` every item has a temperature of its own; with `dcl` the positive is not in
the denominator. Both have negatives of both views, in both directions. The gradient of isogclr is that of the others
times about 2 tau: choose alpha by it, and compare with one temperature, `item_temperatures.temperature_lr: 0`.

What is drawn depends on (seed, epoch, first event of the batch) only; each process and micro-batch has its own items
and mask, so an item that two processes draw is a negative of itself.
Source: Yao et al., Self-supervised learning for large-scale item recommendations, CIKM 2021, arXiv 2007.12865, sections
3.1 to 3.3 (alpha is that of the paper). Deviations: a hidden feature is the zero vector, not a learned one; the
catalogue is that of training: what appears later, or is never met there, must not be looked at; both towers H and G are
the item tower; features dropped from labelled items stay in the histories of users.
"""

from typing import Any, Literal

import numpy as np
import torch
from pydantic import Field
from torch import Tensor

from appssl.contracts import Batch, Context, PreparedData, Step, Views
from appssl.errors import DataError
from appssl.finetuners import retrieval
from appssl.objectives.dcl import dcl
from appssl.objectives.one_way_ntxent import one_way_nt_xent
from appssl.ops.contrastive import unit_views
from appssl.ops.individual_temperatures import IndividualTemperatures, Temperatures
from appssl.ops.interactions.item_masks import ItemMasks, Masking, nearest_features
from appssl.ops.interactions.mutual_information import field_codes, mutual_information
from appssl.ops.random import rng_for

_DRAWS = 2**62  # streams of what is drawn for a batch; above the numbers of events, below those that others use


class Config(retrieval.Config):
    name: Literal["item_ssl"] = "item_ssl"  # type: ignore[assignment]
    alpha: float = Field(0.1, ge=0, description="weight of the task without labels; 0: retrieval alone")
    contrast: Literal["ntxent", "dcl", "isogclr"] = Field(
        "ntxent", description="loss of that task: ntxent in one direction, as published"
    )
    ssl_temperature: float = Field(0.07, gt=0, description="tau of ntxent and dcl in that task")
    item_temperatures: Temperatures = Field(Temperatures(), description="of isogclr: a temperature for each item")
    ssl_batch: int = Field(512, ge=2, description="items of that task in a batch, N; all where training has fewer")
    ssl_items: Literal["uniform", "log"] = Field(
        "uniform", description="how they are drawn, none twice; log: by their training events"
    )
    masking: Masking = Field("correlated", description="how features are hidden in the two views")
    dropout: float = Field(0.1, ge=0, lt=1, description="probability that a token of a multi-valued field is dropped")
    feature_dropout: float = Field(
        0.0, ge=0, lt=1, description="probability that a feature of a labelled item is hidden; a baseline"
    )


class WithCatalogue(retrieval.Interactions):
    """Training events, and for each batch of them items of the catalogue.

    `views`: two tensors (N, L + 1) int64 of tokens, and in the last column the item's number + 1, 0 where it is hidden.
    `mask`: (B, L + 1) bool, False where such a column of the labelled items is dropped.
    """

    def __init__(self, config: Config, data: Any) -> None:
        """
        Raises:
            DataError: if training has fewer than two items, or there are fewer than two features to mask.
        """
        super().__init__(config, data)
        self.config = config
        self.catalogue = np.flatnonzero(data.popularity > 0)
        counts = data.popularity[self.catalogue]
        self._share = counts / counts.sum() if config.ssl_items == "log" else None
        self._tokens = np.column_stack([data.tokens[self.catalogue], self.catalogue + 1])
        width = self._tokens.shape[1]
        fields = list(data.meta.facts["fields"])
        if config.item_ids:
            fields.append({"name": "item", "start": width - 1, "length": 1})
        self.masks = ItemMasks(
            fields, width, masking=config.masking, dropout=config.dropout, nearest=self._nearest(fields)
        )

    def _nearest(self, fields: list[dict[str, Any]]) -> np.ndarray | None:
        if not self.config.alpha:
            return None
        if len(self.catalogue) < 2:
            raise DataError(f"finetuner item_ssl compares items; training has {len(self.catalogue)}.")
        if self.config.masking != "none" and len(fields) < 2:
            raise DataError(
                f"finetuner item_ssl: masking {self.config.masking} needs two or more features, the items have one. "
                "Name more in data.source, set item_ids to true, or masking to none."
            )
        if self.config.masking != "correlated":
            return None
        return nearest_features(mutual_information(field_codes(self._tokens, fields)))

    def batch(self, indices: np.ndarray, *, seed: int, epoch: int) -> Batch:
        batch = super().batch(indices, seed=seed, epoch=epoch)
        rng = rng_for(seed, epoch, _DRAWS + int(indices[0]))
        if self.config.feature_dropout:
            dropped = rng.random((len(indices), len(self.masks.fields))) < self.config.feature_dropout
            batch["mask"] = torch.from_numpy(~self.masks.columns(dropped))
        if self.config.alpha:
            size = min(self.config.ssl_batch, len(self.catalogue))
            chosen = rng.choice(len(self.catalogue), size, replace=False, p=self._share)
            batch["views"] = [torch.from_numpy(view) for view in self.masks.views(self._tokens[chosen], rng)]
        return batch


def examples(config: Config, data: PreparedData, views: Views, seed: int) -> WithCatalogue:
    return WithCatalogue(config, data)


class ItemSSL(retrieval.Retrieval):
    def __init__(self, config: Config, context: Context) -> None:
        super().__init__(config, context)
        self.config = config
        own = config.item_temperatures if config.alpha and config.contrast == "isogclr" else None
        self.item_temperatures = IndividualTemperatures(own, self.num_items) if own is not None else None

    def forward(self, batch: Batch) -> Step:
        main = self.match(batch, self._labelled(batch))
        if "views" not in batch:
            return main
        loss, metrics = self._contrast(batch["views"])
        parts = {"loss_main": main.loss.detach(), "loss_self": loss.detach()}
        metrics = {**main.metrics, **{f"item_{name}": value for name, value in metrics.items()}, **parts}
        return Step(main.loss + self.config.alpha * loss, metrics)

    def _labelled(self, batch: Batch) -> Tensor:
        """Unit vectors (B, D) of the items of the log, without features that are dropped."""
        items = batch["target"]
        if "mask" not in batch:
            return self.items(items)
        mask = batch["mask"]
        return self.item_vectors(self.tokens[items] * mask[:, :-1], items, mask[:, -1])

    def _contrast(self, views: list[Tensor]) -> tuple[Tensor, dict[str, Tensor]]:
        """Loss of two views (N, L + 1) of the same items, and metrics."""
        both = torch.cat(views)
        found = self.item_vectors(both[:, :-1], (both[:, -1] - 1).clamp(min=0), both[:, -1] > 0).chunk(2)
        if self.item_temperatures is not None:
            numbers = torch.maximum(views[0][:, -1], views[1][:, -1]) - 1  # hidden in one view at most
            return self.item_temperatures.of_views(unit_views("finetuners/item_ssl", found), numbers)
        if self.config.contrast == "dcl":
            return dcl(*found, temperature=self.config.ssl_temperature)[0], {}
        return one_way_nt_xent(*found, temperature=self.config.ssl_temperature), {}


def build(config: Config, context: Context) -> ItemSSL:
    return ItemSSL(config, context)
