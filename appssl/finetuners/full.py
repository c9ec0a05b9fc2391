"""Full fine-tuning: encoder and a classifier trained together; from scratch when the encoder is new.

The first blocks of an encoder can stay as they are (`frozen_blocks`), and the classifier can have a hidden layer.
Source: common practice, as in Chen et al., SimCLR, ICML 2020, arXiv 2002.05709, appendix B.7. Deviations: none.
"""

from typing import Any, Literal

from pydantic import Field
from torch import nn

from appssl.contracts import Batch, Context, Step
from appssl.errors import SettingsError
from appssl.ops.classify import Classifier, class_weights, slower_encoder, weighted_cross_entropy
from appssl.settings import Settings


class Config(Settings):
    name: Literal["full"] = "full"
    backbone_lr_scale: float = Field(1.0, ge=0, description="learning rate of the encoder / that of the classifier")
    dropout: float = Field(0.0, ge=0, lt=1, description="dropout on the features before the classifier")
    frozen_blocks: int = Field(0, ge=0, description="first blocks of the encoder that are not trained")
    hidden: int | None = Field(None, ge=1, description="width of a hidden layer of the classifier; null: linear")
    label_smoothing: float = Field(0.0, ge=0, lt=1, description="share of the target spread over all classes")
    class_weight: Literal["none", "balanced"] = Field("none", description="weight of classes in the loss")


class Full(nn.Module):
    is_mean_over_samples = True

    def __init__(self, config: Config, context: Context) -> None:
        super().__init__()
        width, num_classes = int(context.backbone.num_features), len(context.meta.classes)  # type: ignore[arg-type]
        self.backbone = context.backbone.requires_grad_(True)
        self._frozen = _first_blocks(self.backbone, config.frozen_blocks)
        for block in self._frozen:
            block.requires_grad_(False)
        hidden = [] if config.hidden is None else [nn.Linear(width, config.hidden), nn.ReLU()]
        last = nn.Linear(config.hidden or width, num_classes)
        self.head = nn.Sequential(nn.Dropout(config.dropout), *hidden, last)
        self.smoothing = config.label_smoothing
        self.backbone_lr_scale = config.backbone_lr_scale
        self.register_buffer("class_weight", class_weights(context.facts, config.class_weight, num_classes))

    def train(self, mode: bool = True) -> "Full":
        """Frozen blocks stay in evaluation mode, so that running statistics stay too."""
        super().train(mode)
        for block in self._frozen:
            block.eval()
        return self

    def param_groups(self) -> list[dict[str, Any]]:
        return slower_encoder([self.backbone], [self.head], self.backbone_lr_scale)

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


def _first_blocks(backbone: nn.Module, count: int) -> list[nn.Module]:
    blocks = list(getattr(backbone, "blocks", []))
    if count >= max(1, len(blocks)) and count > 0:
        has = f"has {len(blocks)} blocks" if blocks else "is not made of blocks"
        raise SettingsError(
            f"finetuner.frozen_blocks is {count}, but this encoder {has}; at least one is trained. To train none, use "
            "finetuner: linear_probe."
        )
    return blocks[:count]


def build(config: Config, context: Context) -> Full:
    return Full(config, context)
