"""BYOL: the online network predicts what a slowly following target network makes of another view; no negatives.

With p_v = predictor(projector(backbone(x_v))) of the online networks and z'_w those of the target without predictor,

    loss = sum over both directions (v, w) of  2 - 2 mean_i cos(p_v, z'_w),      no gradient through z'

    target <- m target + (1 - m) online after each step,    m = 1 - (1 - m_0) (cos(pi k / K) + 1) / 2

Source: Grill et al., BYOL, NeurIPS 2020, arXiv 2006.07733, equation 2 and section 3.2. Deviations: no LARS optimizer;
with more than two views, twice the mean over ordered pairs, which for two is the sum of both directions. Each view
passes the networks alone, as in the paper, so that batch normalization does not mix views; it is of each process.
"""

from typing import Literal

import torch
from pydantic import Field
from torch import nn

from appssl.contracts import Batch, Context, Progress, Step
from appssl.errors import SettingsError
from appssl.ops.ema import cosine_momentum, follow, teacher_of
from appssl.ops.heads import mlp
from appssl.ops.predictions import mean_cosine_of_pairs
from appssl.settings import Settings


class Config(Settings):
    name: Literal["byol"] = "byol"
    momentum: float = Field(0.996, ge=0, le=1, description="of the target network at the first step, rising to 1; m_0")
    projector_hidden: int = Field(4096, ge=1, description="width of the hidden layer of the projector")
    projector_out: int = Field(256, ge=1, description="width of projections and predictions")
    predictor_hidden: int = Field(4096, ge=1, description="width of the hidden layer of the predictor")


class BYOL(nn.Module):
    is_mean_over_samples = True

    def __init__(self, config: Config, backbone: nn.Module) -> None:
        super().__init__()
        self.config = config
        self.backbone = backbone
        width = int(backbone.num_features)  # type: ignore[arg-type]
        self.projector = mlp(width, config.projector_hidden, config.projector_out)
        self.predictor = mlp(config.projector_out, config.predictor_hidden, config.projector_out)
        self.target_backbone = teacher_of(backbone)
        self.target_projector = teacher_of(self.projector)

    def forward(self, batch: Batch) -> Step:
        """Loss of `views`, each (B, *input_shape)."""
        views = batch["views"]
        predictions = [self.predictor(self.projector(self.backbone(view))) for view in views]
        with torch.no_grad():
            targets = [self.target_projector(self.target_backbone(view)) for view in views]
        cosine = mean_cosine_of_pairs(predictions, targets)
        return Step(2 * (2 - 2 * cosine), {"cosine": cosine.detach()})

    def after_update(self, progress: Progress) -> None:
        momentum = cosine_momentum(self.config.momentum, progress.step - 1, progress.num_steps)
        follow(self.target_backbone, self.backbone, momentum)
        follow(self.target_projector, self.projector, momentum)

    def export(self) -> nn.Module:
        return self.backbone


def build(config: Config, context: Context) -> BYOL:
    """
    Raises:
        SettingsError: if there is only one view.
    """
    if context.num_views < 2:
        raise SettingsError("learners/byol needs two or more views: set num_views of the views to 2.")
    return BYOL(config, context.backbone)
