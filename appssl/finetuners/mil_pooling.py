"""Multiple-instance learning by pooling: the mean or the maximum over a bag's tiles, then a linear classifier.

    mean: logits = W mean_k f_k + b          max: logits_c = max_k (W f_k + b)_c

Both are trained with the cross-entropy of the bag's label. Source: the baselines of Ilse et al., Attention-based Deep
Multiple Instance Learning, ICML 2018, arXiv 1802.04712, section 2.2. Deviations: any number of classes; each class has
its maximum.
"""

from typing import Any, Literal

from pydantic import Field, model_validator
from torch import Tensor, nn

from appssl import registry
from appssl.contracts import Batch, Context, Examples, PreparedData, Step, Views
from appssl.ops.classify import Classifier, class_weights, slower_encoder, weighted_cross_entropy
from appssl.ops.pooling import features_of_bags, masked_max, masked_mean
from appssl.registry import Method
from appssl.settings import Settings


class Config(Settings):
    name: Literal["mil_pooling"] = "mil_pooling"
    sampler: Method("samplers") = Field("bags", description="how many tiles of a bag are seen")  # type: ignore[valid-type]
    pooling: Literal["mean", "max"] = Field("mean", description="over features (mean) or over scores of tiles (max)")
    freeze: bool = Field(False, description="keep the encoder as it is; large slides need this")
    features: Literal["every_epoch", "once"] = Field(
        "every_epoch",
        description="of the encoder: of other augmented views in every epoch; or if it is frozen once, of tiles as "
        "they are",
    )
    backbone_lr_scale: float = Field(1.0, ge=0, description="learning rate of the encoder / that of the classifier")
    class_weight: Literal["none", "balanced"] = Field("none", description="weight of classes of bags in the loss")

    @model_validator(mode="after")
    def _frozen(self) -> "Config":
        if self.features == "once" and not self.freeze:
            raise ValueError("features: once is for an encoder that stays as it is: set freeze: true")
        return self


class MILPooling(nn.Module):
    is_mean_over_samples = True

    def __init__(self, config: Config, context: Context) -> None:
        super().__init__()
        width, num_classes = int(context.backbone.num_features), len(context.meta.classes)  # type: ignore[arg-type]
        self.backbone = context.backbone.requires_grad_(not config.freeze)
        self.frozen = config.freeze
        self.head = nn.Linear(width, num_classes)
        self.pooling = config.pooling
        self.backbone_lr_scale = config.backbone_lr_scale
        self.register_buffer("class_weight", class_weights(context.facts, config.class_weight, num_classes))

    def param_groups(self) -> list[dict[str, Any]]:
        return slower_encoder([self.backbone], [self.head], self.backbone_lr_scale)

    def train(self, mode: bool = True) -> "MILPooling":
        super().train(mode)
        if self.frozen:
            self.backbone.eval()
        return self

    def forward(self, batch: Batch) -> Step:
        """Loss of `input` (B, L, ...) with `mask` (B, L) and labels of bags `target` (B,)."""
        features = features_of_bags(self.backbone, batch["input"], batch["mask"])
        logits = pooled_logits(self.head, features, batch["mask"], self.pooling)
        loss = weighted_cross_entropy(
            logits,
            batch["target"],
            sample_weight=logits.new_ones(len(logits)),
            class_weight=self.class_weight,  # type: ignore[arg-type]
            smoothing=0.0,
        )
        return Step(loss, {"accuracy": (logits.argmax(1) == batch["target"]).float().mean()})

    def export(self) -> nn.Module:
        return PoolingClassifier(self.backbone, self.head, self.pooling)


def pooled_logits(head: nn.Module, features: Tensor, mask: Tensor, how: Literal["mean", "max"]) -> Tensor:
    """Logits (B, K) of bags from features (B, L, F) and mask (B, L)."""
    logits: Tensor = head(masked_mean(features, mask)) if how == "mean" else masked_max(head(features), mask)
    return logits


class PoolingClassifier(Classifier):
    """Of a tile: it is taken for a bag of its own."""

    def __init__(self, backbone: nn.Module, head: nn.Module, pooling: Literal["mean", "max"]) -> None:
        super().__init__(backbone, head)
        self.pooling = pooling

    def bag_probabilities(self, features: Tensor) -> Tensor:
        """Probabilities (K,) of one bag from the features (L, F) of its tiles."""
        mask = features.new_ones(1, len(features)).bool()
        return pooled_logits(self.head, features[None], mask, self.pooling)[0].softmax(0)


def examples(config: Config, data: PreparedData, views: Views, seed: int) -> Examples:
    found: Examples = registry.build("samplers", config.sampler, data, views)
    return found


def build(config: Config, context: Context) -> MILPooling:
    return MILPooling(config, context)
