"""Linear probe: a linear classifier on features of the frozen encoder.

Source: the protocol of Chen et al., SimCLR, ICML 2020, arXiv 2002.05709, appendix B.6; standardized features by a batch
normalization without learned scale as in He et al., MAE, arXiv 2111.06377, appendix A.1. Deviations: none.
"""

from typing import Literal

import torch
from pydantic import Field
from torch import nn

from appssl.contracts import Batch, Context, Step
from appssl.ops.classify import Classifier, class_weights, weighted_cross_entropy
from appssl.settings import Settings


class Config(Settings):
    name: Literal["linear_probe"] = "linear_probe"
    features: Literal["every_epoch", "once"] = Field(
        "every_epoch",
        description="of the encoder: of other augmented views in every epoch; or once, of samples as they are, so that "
        "training takes little longer with a large encoder",
    )
    standardize: bool = Field(True, description="standardize features over the batch (running statistics at test time)")
    label_smoothing: float = Field(0.0, ge=0, lt=1, description="share of the target spread over all classes")
    class_weight: Literal["none", "balanced"] = Field("none", description="weight of classes in the loss")


class LinearProbe(nn.Module):
    """The backbone never changes: no gradient, evaluation mode also while training."""

    is_mean_over_samples = True

    def __init__(self, config: Config, context: Context) -> None:
        super().__init__()
        width, num_classes = int(context.backbone.num_features), len(context.meta.classes)  # type: ignore[arg-type]
        self.backbone = context.backbone.requires_grad_(False)
        norm = nn.BatchNorm1d(width, affine=False) if config.standardize else nn.Identity()
        self.head = nn.Sequential(norm, nn.Linear(width, num_classes))
        self.smoothing = config.label_smoothing
        self.register_buffer("class_weight", class_weights(context.facts, config.class_weight, num_classes))

    def train(self, mode: bool = True) -> "LinearProbe":
        super().train(mode)
        self.backbone.eval()
        return self

    def forward(self, batch: Batch) -> Step:
        with torch.no_grad():
            features = self.backbone(batch["input"])
        logits = self.head(features)
        loss = weighted_cross_entropy(
            logits,
            batch["target"],
            sample_weight=batch["weight"],
            class_weight=self.class_weight,  # type: ignore[arg-type]
            smoothing=self.smoothing,
        )
        return Step(loss, {"accuracy": (logits.argmax(1) == batch["target"]).float().mean()})

    def export(self) -> nn.Module:
        return Classifier(self.backbone, self.head)


def build(config: Config, context: Context) -> LinearProbe:
    return LinearProbe(config, context)
