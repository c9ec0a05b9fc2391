"""What classifiers share: the exported network, and the weighted loss."""

from collections.abc import Mapping, Sequence
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional


class Classifier(nn.Module):
    """Backbone and head: (B, *input_shape) -> (B, K) logits."""

    def __init__(self, backbone: nn.Module, head: nn.Module) -> None:
        super().__init__()
        self.backbone = backbone
        self.head = head

    def forward(self, inputs: Tensor) -> Tensor:
        return self.classify(self.backbone(inputs))

    def classify(self, features: Tensor) -> Tensor:
        """Logits (B, K) from features (B, F)."""
        logits: Tensor = self.head(features)
        return logits

    def bag_probabilities(self, features: Tensor) -> Tensor:
        """Probabilities (K,) of a bag: the mean of those of its rows, from their features (L, F)."""
        return self.classify(features).softmax(1).mean(0)


def slower_encoder(encoders: Sequence[nn.Module], others: Sequence[nn.Module], lr_scale: float) -> list[dict[str, Any]]:
    """Parameters for the optimizer in two groups: those of encoders learn at `lr_scale` times the rate of the others'.

    What is frozen is in no group.
    """
    groups = ((encoders, lr_scale), (others, 1.0))
    return [
        {"params": [p for module in modules for p in module.parameters() if p.requires_grad], "lr_scale": scale}
        for modules, scale in groups
    ]


def class_weights(facts: Mapping[str, Any], how: Literal["none", "balanced"], num_classes: int) -> Tensor:
    """Weights (K,) of classes, mean 1 over samples: all 1, or inverse to the class's count; 0 for an absent class."""
    if how == "none":
        return torch.ones(num_classes)
    counts = torch.tensor(_counts(facts), dtype=torch.float64)
    present = counts > 0
    inverse = torch.where(present, counts.sum() / (present.sum() * counts.clamp(min=1e-12)), 0.0)
    return inverse.float()


def _counts(facts: Mapping[str, Any]) -> Sequence[float]:
    return facts["class_counts"]


def weighted_cross_entropy(
    logits: Tensor, target: Tensor, *, sample_weight: Tensor, class_weight: Tensor, smoothing: float
) -> Tensor:
    """Scalar sum(w_i CE_i) / B, w = sample weight times class weight; the mean for weights 1.

    Args:
        logits: (B, K). target: (B,) int64. sample_weight: (B,). class_weight: (K,). smoothing: label smoothing.
    """
    losses = functional.cross_entropy(logits.float(), target, reduction="none", label_smoothing=smoothing)
    return (losses * sample_weight * class_weight[target]).mean()
