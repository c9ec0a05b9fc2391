"""Barlow Twins: the cross-correlation of two views of a batch is close to the identity.

    C = BN(Z)^T BN(Z') / B,      L = sum_d (C_dd - 1)^2 + lambda sum_{d != e} C_de^2

BN gives every dimension mean 0 and variance 1 over the batch, with the biased variance + 1e-5.
Source: Zbontar et al., Barlow Twins, ICML 2021, arXiv 2103.03230, equations 1 and 2. Deviations: 1e-5 as in the
official code; with more than two views the mean over all pairs. Across processes the batch is that of all of them.
"""

from itertools import combinations
from typing import Literal

import torch
from pydantic import Field
from torch import Tensor, nn

from appssl.contracts import Loss
from appssl.ops.gathered_views import gathered_views
from appssl.settings import Settings

_EPSILON = 1e-5  # added to the variance, as batch normalization does


class Config(Settings):
    name: Literal["barlow_twins"] = "barlow_twins"
    redundancy_weight: float = Field(0.0051, ge=0, description="weight of the off-diagonal term, lambda in the paper")


class BarlowTwins(nn.Module):
    def __init__(self, config: Config) -> None:
        super().__init__()
        self.config = config

    def forward(self, *embeddings: Tensor) -> Loss:
        """
        Args:
            embeddings: two or more views, each (B, D) float; row i of all is one sample.
        Raises:
            DataError: if there are fewer than two views or two samples, or the shapes differ.
        """
        with torch.autocast(device_type=embeddings[0].device.type, enabled=False):
            views = gathered_views("barlow_twins", embeddings)
            terms = [correlation_terms(one, other) for one, other in combinations(standardized(views), 2)]
            invariance, redundancy = torch.stack(terms).mean(dim=0)
        total = invariance + self.config.redundancy_weight * redundancy
        return Loss(total, {"invariance": invariance.detach(), "redundancy": redundancy.detach()})


def standardized(views: Tensor) -> Tensor:
    """(V, B, D) with mean 0 and variance 1 over samples."""
    centered = views - views.mean(dim=1, keepdim=True)
    return centered * (centered.square().mean(dim=1, keepdim=True) + _EPSILON).rsqrt()


def correlation_terms(one: Tensor, other: Tensor) -> Tensor:
    """(2,): sum of (C_dd - 1)^2, and sum of squares off the diagonal, of standardized views (B, D)."""
    correlation = one.T @ other / len(one)
    diagonal = correlation.diagonal()
    off_diagonal = correlation - torch.diag(diagonal)
    return torch.stack([(diagonal - 1).square().sum(), off_diagonal.square().sum()])


def build(config: Config) -> BarlowTwins:
    return BarlowTwins(config)
