"""Multiple-instance learning by pooling: the mean or the maximum over a bag's tiles, then a linear classifier.

    mean: logits = W mean_k f_k + b          max: logits_c = max_k (W f_k + b)_c

Both are trained with the cross-entropy of the bag's label. Source: the baselines of Ilse et al., Attention-based Deep
Multiple Instance Learning, ICML 2018, arXiv 1802.04712, section 2.2. Deviations: any number of classes; each class has
its maximum.
"""

from typing import Literal

from pydantic import Field
from torch import Tensor, nn

from appssl import registry
from appssl.contracts import Batch, Context, Examples, PreparedData, Step, Views
from appssl.ops.bag_classifier import BagClassifier, BagSettings
from appssl.ops.classify import Classifier
from appssl.ops.pooling import features_of_bags, masked_max, masked_mean
from appssl.registry import Method


class Config(BagSettings):
    name: Literal["mil_pooling"] = "mil_pooling"
    sampler: Method("samplers") = Field("bags", description="how many tiles of a bag are seen")  # type: ignore[valid-type]
    pooling: Literal["mean", "max"] = Field("mean", description="over features (mean) or over scores of tiles (max)")


class MILPooling(BagClassifier):
    def __init__(self, config: Config, context: Context) -> None:
        super().__init__(config, context)
        self.head = nn.Linear(self.width, self.num_classes)
        self.pooling = config.pooling

    def forward(self, batch: Batch) -> Step:
        """Loss of `input` (B, L, ...) with `mask` (B, L) and labels of bags `target` (B,)."""
        features = features_of_bags(self.backbone, batch["input"], batch["mask"])
        logits = pooled_logits(self.head, features, batch["mask"], self.pooling)
        return Step(*self.loss_and_metrics(logits, batch["target"]))

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
