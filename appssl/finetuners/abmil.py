"""ABMIL: multiple-instance learning with gated attention over the tiles of a bag.

    a_k = softmax_k( w^T ( tanh(V f_k) * sigmoid(U f_k) ) ),   z = sum_k a_k f_k,   logits = W z + b

Source: Ilse et al., Attention-based Deep Multiple Instance Learning, ICML 2018, arXiv 1802.04712, equations 7 to 9.
Deviations: softmax over any number of classes instead of one sigmoid; V and U have no bias, as in the equations.
"""

from typing import Literal

import torch
from pydantic import Field
from torch import Tensor, nn

from appssl import registry
from appssl.contracts import Batch, Context, Examples, PreparedData, Step, Views
from appssl.ops.bag_classifier import BagClassifier, BagSettings
from appssl.ops.classify import Classifier
from appssl.ops.pooling import features_of_bags
from appssl.registry import Method


class Config(BagSettings):
    name: Literal["abmil"] = "abmil"
    sampler: Method("samplers") = Field("bags", description="how many tiles of a bag are seen")  # type: ignore[valid-type]
    attention_dim: int = Field(128, ge=1, description="width of the attention's hidden layer, L in the paper")
    gated: bool = Field(True, description="with the sigmoid gate of equation 9; false: equation 8")


class GatedAttention(nn.Module):
    def __init__(self, width: int, hidden: int, *, gated: bool) -> None:
        super().__init__()
        self.content = nn.Linear(width, hidden, bias=False)  # V
        self.gate = nn.Linear(width, hidden, bias=False) if gated else None  # U
        self.score = nn.Linear(hidden, 1, bias=False)  # w

    def forward(self, features: Tensor, mask: Tensor) -> Tensor:
        """Weights (B, L) of the present tiles, which sum to 1; features (B, L, F), mask (B, L) bool."""
        hidden = self.content(features).tanh()
        if self.gate is not None:
            hidden = hidden * self.gate(features).sigmoid()
        scores = self.score(hidden).squeeze(-1).float()
        return scores.masked_fill(~mask, -torch.inf).softmax(dim=1)


class ABMIL(BagClassifier):
    def __init__(self, config: Config, context: Context) -> None:
        super().__init__(config, context)
        self.attention = GatedAttention(self.width, config.attention_dim, gated=config.gated)
        self.head = nn.Linear(self.width, self.num_classes)

    def forward(self, batch: Batch) -> Step:
        """Loss of `input` (B, L, ...) with `mask` (B, L) and labels of bags `target` (B,)."""
        features = features_of_bags(self.backbone, batch["input"], batch["mask"])
        logits, _ = attended(self.attention, self.head, features, batch["mask"])
        return Step(*self.loss_and_metrics(logits, batch["target"]))

    def export(self) -> nn.Module:
        return AttentionClassifier(self.backbone, self.attention, self.head)


def attended(attention: nn.Module, head: nn.Module, features: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
    """Logits (B, K) of bags and weights (B, L) of their tiles, from features (B, L, F) and mask (B, L)."""
    weights = attention(features, mask)
    return head((weights.unsqueeze(-1).to(features.dtype) * features).sum(1)), weights


class AttentionClassifier(Classifier):
    """Of a tile: it is taken for a bag of its own."""

    def __init__(self, backbone: nn.Module, attention: nn.Module, head: nn.Module) -> None:
        super().__init__(backbone, head)
        self.attention = attention

    def bag_probabilities(self, features: Tensor) -> Tensor:
        """Probabilities (K,) of one bag from the features (L, F) of its tiles."""
        mask = features.new_ones(1, len(features)).bool()
        return attended(self.attention, self.head, features[None], mask)[0][0].softmax(0)


def examples(config: Config, data: PreparedData, views: Views, seed: int) -> Examples:
    found: Examples = registry.build("samplers", config.sampler, data, views)
    return found


def build(config: Config, context: Context) -> ABMIL:
    return ABMIL(config, context)
