"""A classifier of bags while it is trained: an encoder of tiles, which may be frozen, and what pools their features.

Methods say how logits come from features; all else of multiple-instance learning with labels of bags is here.
"""

from typing import TYPE_CHECKING, Any, Literal, Self

from pydantic import Field, model_validator
from torch import Tensor, nn

from appssl.ops.classify import class_weights, slower_encoder, weighted_cross_entropy
from appssl.settings import Settings

if TYPE_CHECKING:
    from appssl.contracts import Context


class BagSettings(Settings):
    freeze: bool = Field(False, description="keep the encoder as it is; large slides need this")
    features: Literal["every_epoch", "once"] = Field(
        "every_epoch",
        description="of the encoder: of other augmented views in every epoch; or if it is frozen once, of tiles as "
        "they are",
    )
    backbone_lr_scale: float = Field(1.0, ge=0, description="learning rate of the encoder / that of the rest")
    class_weight: Literal["none", "balanced"] = Field("none", description="weight of classes of bags in the loss")

    @model_validator(mode="after")
    def _frozen(self) -> Self:
        if self.features == "once" and not self.freeze:
            raise ValueError("features: once is for an encoder that stays as it is: set freeze: true")
        return self


class BagClassifier(nn.Module):
    is_mean_over_samples = True

    def __init__(self, settings: BagSettings, context: "Context") -> None:
        super().__init__()
        self.width = int(context.backbone.num_features)  # type: ignore[arg-type]
        self.num_classes = len(context.meta.classes)
        self.backbone = context.backbone.requires_grad_(not settings.freeze)
        self.frozen = settings.freeze
        self.backbone_lr_scale = settings.backbone_lr_scale
        weight = class_weights(context.facts, settings.class_weight, self.num_classes)
        self.register_buffer("class_weight", weight)

    def loss_and_metrics(self, logits: Tensor, target: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        """Mean cross-entropy of bags, from logits (B, K) and labels (B,) int64; and their accuracy."""
        loss = weighted_cross_entropy(
            logits,
            target,
            sample_weight=logits.new_ones(len(logits)),
            class_weight=self.class_weight,  # type: ignore[arg-type]
            smoothing=0.0,
        )
        return loss, {"accuracy": (logits.argmax(1) == target).float().mean()}

    def param_groups(self) -> list[dict[str, Any]]:
        others = [module for name, module in self.named_children() if name != "backbone"]
        return slower_encoder([self.backbone], others, self.backbone_lr_scale)

    def train(self, mode: bool = True) -> Self:
        super().train(mode)
        if self.frozen:
            self.backbone.eval()
        return self
