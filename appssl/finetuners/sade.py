"""SADE: three experts on one encoder for long-tailed labels, good at frequent, at all and at rare classes.

With logits v_1, v_2, v_3 of the experts, prior pi_c = n_c / sum n of the training labels, and the inverse prior pi^-,
the same values given out in reversed order of frequency:

    L = CE(v_1, y) + CE(v_2 + log pi, y) + CE(v_3 + log pi - lambda log pi^-, y)

The adjustments are there in training only, so softmax(v_i) models the training prior, equal classes, and rare classes.
The exported classifier mixes the logits with softmax(omega): equal parts, until `adapt` finds weights for unlabelled
inputs of the distribution that the model is used on (`evaluate.adapt`; `ops/expert_aggregation.py` says how).

Source: Zhang et al., SADE, NeurIPS 2022, arXiv 2107.09249. Official code: Vanint/SADE-AgnosticLT, MIT.
Deviations: experts share the whole encoder, and each has a hidden layer of its own before its cosine classifier, where
the paper has the last stages of the network once for each expert; so any encoder serves. Every class needs training
samples: the log of an absent class would decide the adjustments of the most frequent one.
"""

from collections.abc import Sequence
from typing import Any, Literal

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional

from appssl.contracts import Batch, Context, Step
from appssl.errors import DataError
from appssl.ops.classify import slower_encoder
from appssl.ops.expert_aggregation import aggregate_experts, mix_experts
from appssl.settings import Settings

EXPERTS = ("head", "uniform", "tail")
_EPSILON = 1e-9  # inside logs of priors, as in the official code
_SMALLEST_NORM = 1e-8  # of features and class weights: an all-zero feature has equal logits


class Config(Settings):
    name: Literal["sade"] = "sade"
    tail_strength: float = Field(2.0, ge=0, description="weight of the inverse prior in the third loss, lambda")
    hidden: int = Field(128, ge=1, description="width of the hidden layer of each expert")
    cosine_scale: float = Field(30.0, gt=0, description="logits are this times the cosine of feature and class weight")
    backbone_lr_scale: float = Field(1.0, ge=0, description="learning rate of the encoder / that of the experts")


class Expert(nn.Module):
    """(B, F) -> (B, K): a hidden layer, then scaled cosines with the weights of the classes."""

    def __init__(self, width: int, hidden: int, num_classes: int, scale: float) -> None:
        super().__init__()
        self.own = nn.Linear(width, hidden)
        self.weight = nn.Parameter(nn.Linear(hidden, num_classes, bias=False).weight.detach())
        self.scale = scale

    def forward(self, features: Tensor) -> Tensor:
        own = functional.relu(self.own(features)).float()
        return self.scale * functional.linear(_unit(own), _unit(self.weight.float()))


class SADE(nn.Module):
    is_mean_over_samples = True
    adjustments: Tensor
    omega: Tensor

    def __init__(self, config: Config, context: Context) -> None:
        super().__init__()
        classes, width = context.meta.classes, int(context.backbone.num_features)  # type: ignore[arg-type]
        counts = torch.tensor(_counts(context.facts["class_counts"], classes), dtype=torch.float64)
        self.backbone = context.backbone.requires_grad_(True)
        self.experts = nn.ModuleList(Expert(width, config.hidden, len(classes), config.cosine_scale) for _ in EXPERTS)
        self.backbone_lr_scale = config.backbone_lr_scale
        self.register_buffer("adjustments", logit_adjustments(counts, config.tail_strength).float())
        self.register_buffer("omega", torch.zeros(len(EXPERTS)))

    def param_groups(self) -> list[dict[str, Any]]:
        return slower_encoder([self.backbone], [self.experts], self.backbone_lr_scale)

    def forward(self, batch: Batch) -> Step:
        features = self.backbone(batch["input"])
        logits = torch.stack([expert(features) for expert in self.experts])
        losses = expert_losses(logits, batch["target"], self.adjustments, sample_weight=batch["weight"])
        right = logits.detach().mean(0).argmax(1) == batch["target"]
        terms = {f"loss_{name}": loss for name, loss in zip(EXPERTS, losses.detach(), strict=True)}
        return Step(losses.sum(), {**terms, "accuracy": right.float().mean()})

    def export(self) -> nn.Module:
        return ExpertClassifier(self.backbone, self.experts, self.omega)


class ExpertClassifier(nn.Module):
    """Backbone, experts and the weights of their mixture: (B, *input_shape) -> (B, K) logits."""

    omega: Tensor

    def __init__(self, backbone: nn.Module, experts: nn.ModuleList, omega: Tensor) -> None:
        super().__init__()
        self.backbone, self.experts = backbone, experts
        self.register_buffer("omega", omega)

    def forward(self, inputs: Tensor) -> Tensor:
        return self.classify(self.backbone(inputs))

    def expert_logits(self, features: Tensor) -> Tensor:
        """Logits (3, B, K) of the single experts from features (B, F): what `aggregate_experts` needs."""
        return torch.stack([expert(features) for expert in self.experts])

    def classify(self, features: Tensor) -> Tensor:
        """Logits (B, K) of the mixture, from features (B, F)."""
        return mix_experts(self.expert_logits(features), self.omega)

    def bag_probabilities(self, features: Tensor) -> Tensor:
        """Probabilities (K,) of a bag: the mean of those of its rows, from their features (L, F)."""
        return self.classify(features).softmax(1).mean(0)

    def mix(self, omega: Tensor) -> None:
        """Sets the weights of the experts to softmax(omega), omega (3,)."""
        self.omega.copy_(omega)

    def adapt(self, passes: Sequence[tuple[Tensor, Tensor]]) -> dict[str, Any]:
        """Weighs the experts for unlabelled inputs, of which `passes` are logits as `aggregate_experts` takes them."""
        found = aggregate_experts(passes)
        self.mix(found.omega)
        weights = dict(zip(EXPERTS, found.weights.tolist(), strict=True))
        return {"weights": weights, "stability": list(found.stability), "stopped_early": found.stopped_early}


def inverse_prior(prior: Tensor) -> Tensor:
    """The values of the prior (K,) in reversed ranking: the rarest class gets that of the most frequent one.

    Classes as frequent as each other are ranked by their number.
    """
    order = prior.argsort(stable=True)
    inverse = torch.empty_like(prior)
    inverse[order] = prior[order.flip(0)]
    return inverse


def logit_adjustments(counts: Tensor, tail_strength: float) -> Tensor:
    """What is added to the logits of the three experts in training, (3, K); counts (K,) float of the classes, > 0."""
    prior = counts / counts.sum()
    log_prior, log_inverse = (prior + _EPSILON).log(), (inverse_prior(prior) + _EPSILON).log()
    return torch.stack([torch.zeros_like(prior), log_prior, log_prior - tail_strength * log_inverse])


def expert_losses(logits: Tensor, target: Tensor, adjustments: Tensor, *, sample_weight: Tensor) -> Tensor:
    """Losses (3,), each sum_b w_b CE_b / B.

    Args:
        logits: (3, B, K). target: (B,) int64. adjustments: (3, K). sample_weight: (B,).
    Returns:
        float32 or better.
    """
    dtype = torch.promote_types(logits.dtype, torch.float32)
    adjusted = (logits.to(dtype) + adjustments.to(dtype)[:, None]).log_softmax(2)
    picked = adjusted.gather(2, target.expand(len(logits), -1)[:, :, None])[:, :, 0]  # (3, B)
    return -(picked * sample_weight).mean(1)


def _unit(vectors: Tensor) -> Tensor:
    return functional.normalize(vectors, dim=1, eps=_SMALLEST_NORM)


def _counts(counts: Sequence[float], classes: tuple[str, ...]) -> list[float]:
    absent = [name for name, count in zip(classes, counts, strict=True) if count <= 0]
    if absent:
        raise DataError(
            f"finetuner sade needs training samples of every class; there are none of {', '.join(absent[:10])}. Leave "
            "these classes out of the data, or loosen what removes their samples."
        )
    return list(counts)


def build(config: Config, context: Context) -> SADE:
    return SADE(config, context)
