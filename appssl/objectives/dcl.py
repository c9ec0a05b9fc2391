"""DCL, and DCLW with weighted positives: the contrastive loss without the positive in its denominator.

    L_i^k = -w_i s(z_i^1, z_i^2) / tau + log U_i^k,    U_i^k = sum_{j != i} sum_l exp( s(z_i^k, z_j^l) / tau )
    DCL: w_i = 1.    DCLW: w_i = 2 - exp(s_i / sigma) / mean_j exp(s_j / sigma), without gradient

s is the cosine similarity; the mean is over samples i and views k. The multiplier q_i^k = 1 - exp(s_i / tau) /
(exp(s_i / tau) + U_i^k), by which the gradient of InfoNCE is smaller, is reported as the term `npc`.
Source: Yeh et al., Decoupled Contrastive Learning, ECCV 2022, arXiv 2110.06848, equations 5 and 6. Deviations: the mean
instead of the sum over samples; with more than two views every other view is a positive in turn, and the loss of an
anchor is the mean over them. Across processes negatives, and the mean in w, are those of all of them.
"""

from typing import Literal

import torch
from pydantic import Field
from torch import Tensor, nn

from appssl.contracts import Loss
from appssl.ops.contrastive import log_sum_of_other_samples, other_views, pair_similarities, unit_views
from appssl.ops.distributed import gather
from appssl.settings import Settings


class Config(Settings):
    name: Literal["dcl"] = "dcl"
    temperature: float = Field(0.1, gt=0, description="softmax temperature, tau in the paper")
    weighted: bool = Field(False, description="DCLW: positives that are far apart count more")
    concentration: float = Field(0.5, gt=0, description="sigma of the weights of DCLW; small ones let weights explode")


class DCL(nn.Module):
    def __init__(self, config: Config) -> None:
        super().__init__()
        self.config = config

    def forward(self, *embeddings: Tensor) -> Loss:
        sigma = self.config.concentration if self.config.weighted else None
        loss, npc = dcl(*embeddings, temperature=self.config.temperature, sigma=sigma)
        return Loss(loss, {"npc": npc})


def dcl(*embeddings: Tensor, temperature: float, sigma: float | None = None) -> tuple[Tensor, Tensor]:
    """Mean loss over all anchors, and the mean multiplier q in (0, 1) without gradient.

    Args:
        embeddings: two or more views, each (B, D) float, any scale; row i of all is one sample.
        temperature: divides cosine similarities, > 0. sigma: of DCLW; None for DCL.
    Returns:
        Scalars, float32 (float64 for float64 inputs). The loss can be negative.
    Raises:
        DataError: if there are fewer than two views or two samples, or the shapes differ.
    """
    views = unit_views("dcl", embeddings)
    negatives = log_sum_of_other_samples(views, temperature=temperature)[:, None]  # (V, 1, B)
    positives = other_views(pair_similarities(views))  # (V, V - 1, B)
    weights = torch.ones_like(positives) if sigma is None else _weights(positives.detach(), sigma)
    loss = (negatives - weights * positives / temperature).mean()
    npc = torch.sigmoid(negatives - positives / temperature).detach().mean()
    return loss, npc


def _weights(positives: Tensor, sigma: float) -> Tensor:
    """Weights (V, V - 1, B) with mean 1 over the samples of all processes, for each pair of views."""
    scores = (positives / sigma).exp()
    mean = gather(scores.permute(2, 0, 1)).mean(dim=0)
    return 2 - scores / mean[..., None]


def build(config: Config) -> DCL:
    return DCL(config)
