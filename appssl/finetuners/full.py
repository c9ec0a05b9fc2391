"""Full fine-tuning: encoder and a linear classifier trained together; from scratch when the encoder is new.

Source: common practice, as in Chen et al., SimCLR, ICML 2020, arXiv 2002.05709, appendix B.7. Deviations: none.
"""

from typing import Any, Literal

from pydantic import Field
from torch import nn

from appssl.contracts import Batch, Context, Step
from appssl.ops.classify import Classifier, class_weights, weighted_cross_entropy
from appssl.settings import Settings


class Config(Settings):
    name: Literal["full"] = "full"
    backbone_lr_scale: float = Field(1.0, ge=0, description="learning rate of the encoder / that of the classifier")
    dropout: float = Field(0.0, ge=0, lt=1, description="dropout on the features before the classifier")
    label_smoothing: float = Field(0.0, ge=0, lt=1, description="share of the target spread over all classes")
    class_weight: Literal["none", "balanced"] = Field("none", description="weight of classes in the loss")


class Full(nn.Module):
    def __init__(self, config: Config, context: Context) -> None:
        super().__init__()
        width, num_classes = int(context.backbone.num_features), len(context.meta.classes)  # type: ignore[arg-type]
        self.backbone = context.backbone.requires_grad_(True)
        self.head = nn.Sequential(nn.Dropout(config.dropout), nn.Linear(width, num_classes))
        self.smoothing = config.label_smoothing
        self.backbone_lr_scale = config.backbone_lr_scale
        self.register_buffer("class_weight", class_weights(context.facts, config.class_weight, num_classes))

    def param_groups(self) -> list[dict[str, Any]]:
        return [
            {"params": list(self.backbone.parameters()), "lr_scale": self.backbone_lr_scale},
            {"params": list(self.head.parameters()), "lr_scale": 1.0},
        ]

    def forward(self, batch: Batch) -> Step:
        logits = self.head(self.backbone(batch["input"]))
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


def build(config: Config, context: Context) -> Full:
    return Full(config, context)
