"""iSogCLR: a contrastive loss with a temperature of its own for every sample, learned with the network.

Both views of a sample are anchors and each other's positive; negatives are both views of the other samples in the
batch. The loss, the state of each sample and the source are those of `ops/individual_temperatures.py`; this learner
adds backbone and projector. With temperature_lr 0 it is SogCLR.
Source: Qiu et al., Not All Semantics are Created Equal, ICML 2023, arXiv 2305.11965. Deviations: as there. Across
processes negatives are those of all of them.
"""

from typing import Literal

import torch
from pydantic import Field
from torch import Tensor, nn

from appssl.contracts import Batch, Context, Progress, Step
from appssl.errors import DataError, SettingsError
from appssl.ops.contrastive import unit_views
from appssl.ops.distributed import gather
from appssl.ops.heads import mlp
from appssl.ops.individual_temperatures import IndividualTemperatures, Temperatures

_NUM_VIEWS = 2


class Config(Temperatures):
    name: Literal["isogclr"] = "isogclr"
    projector_hidden: int = Field(512, ge=1, description="width of the projector's hidden layer")
    projector_out: int = Field(128, ge=1, description="width of the projections that are compared")


class ISogCLR(IndividualTemperatures):
    largest_index: Tensor

    def __init__(self, config: Config, backbone: nn.Module, num_rows: int) -> None:
        """
        Args:
            num_rows: of the prepared table; `index` of a batch is below it.
        """
        super().__init__(config, num_rows)
        self.backbone = backbone
        width = int(backbone.num_features)  # type: ignore[arg-type]
        self.projector = mlp(width, config.projector_hidden, config.projector_out)
        self.register_buffer("largest_index", torch.zeros((), dtype=torch.int64))

    def forward(self, batch: Batch) -> Step:
        """Loss of two `views`, each (B, *input_shape), of the samples `index` (B,)."""
        projections = self.projector(self.backbone(torch.cat(batch["views"]))).chunk(_NUM_VIEWS)
        views = unit_views("learners/isogclr", projections)
        return Step(*self.of_views(views, self._rows(batch["index"])))

    def _rows(self, index: Tensor) -> Tensor:
        """The index, cut to the rows there are: `after_update` reports it, without a host read in every step."""
        self.largest_index = torch.maximum(self.largest_index, gather(index).max())
        return index.clamp(max=len(self.temperature) - 1)

    def after_update(self, progress: Progress) -> None:
        """
        Raises:
            DataError: if a batch had an index that there is no state for; looked for after the first step, at the end
                of each epoch and of training.
        """
        if progress.step in (1, progress.num_steps) or progress.step % progress.steps_per_epoch == 0:
            largest, size = int(self.largest_index), len(self.temperature)
            if largest >= size:
                raise DataError(
                    f"learners/isogclr keeps a temperature for each of {size} rows, but a batch had index {largest}. "
                    'Whoever builds the learner must give the rows of the prepared table as Context.facts["num_rows"].'
                )

    def export(self) -> nn.Module:
        return self.backbone


def build(config: Config, context: Context) -> ISogCLR:
    """
    Raises:
        SettingsError: if there are not two views.
    """
    if context.num_views != _NUM_VIEWS:
        raise SettingsError(
            f"learners/isogclr compares two views of a sample, the views make {context.num_views}. "
            "Set num_views of the views to 2."
        )
    num_rows = int(context.facts.get("num_rows", context.num_samples))
    return ISogCLR(config, context.backbone, num_rows)
