"""Joint embedding: backbone and projector shared by all views, an objective on the projections.

Source: Chen et al., SimCLR, ICML 2020, arXiv 2002.05709, section 2.1 (projection head) and appendix B.9 (batch
normalization in it). Deviations: all views pass the networks as one batch, so their normalization is shared.
"""

from typing import Literal

import torch
from pydantic import Field
from torch import nn

from appssl import registry
from appssl.contracts import Batch, Context, Objective, Progress, Step
from appssl.registry import Method
from appssl.settings import Settings


class Config(Settings):
    name: Literal["joint_embedding"] = "joint_embedding"
    objective: Method("objectives") = Field("ntxent", description="loss on the projections")  # type: ignore[valid-type]
    projector_hidden: int = Field(512, ge=1, description="width of the projector's hidden layer")
    projector_out: int = Field(128, ge=1, description="width of the projections that the objective sees")


class JointEmbedding(nn.Module):
    def __init__(self, backbone: nn.Module, projector: nn.Module, objective: Objective) -> None:
        super().__init__()
        self.backbone = backbone
        self.projector = projector
        self.objective = objective

    def forward(self, batch: Batch) -> Step:
        """Loss of `views`, each (B, *input_shape)."""
        views = batch["views"]
        projections = self.projector(self.backbone(torch.cat(views))).chunk(len(views))
        loss = self.objective(*projections)
        return Step(loss.total, {f"loss_{name}": term for name, term in loss.terms.items()})

    def after_update(self, progress: Progress) -> None:
        if hasattr(self.objective, "after_update"):
            self.objective.after_update(progress)

    def export(self) -> nn.Module:
        return self.backbone


def build(config: Config, context: Context) -> JointEmbedding:
    width = int(context.backbone.num_features)  # type: ignore[arg-type]
    projector = nn.Sequential(
        nn.Linear(width, config.projector_hidden, bias=False),
        nn.BatchNorm1d(config.projector_hidden),
        nn.ReLU(inplace=True),
        nn.Linear(config.projector_hidden, config.projector_out),
    )
    return JointEmbedding(context.backbone, projector, registry.build("objectives", config.objective))
