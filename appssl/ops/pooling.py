"""Pooling of the rows of bags: (B, L, F) features and a mask to (B, F), or instance probabilities to one of the bag."""

from typing import Literal

import torch
from torch import Tensor, nn

Pooling = Literal["mean", "max", "logsumexp"]


def features_of_bags(backbone: nn.Module, tiles: Tensor, mask: Tensor) -> Tensor:
    """Features (B, L, F) of the present tiles (B, L, ...), zero for the others, which the network does not see."""
    found = backbone(tiles[mask])
    features = found.new_zeros(*mask.shape, found.shape[-1])
    features[mask] = found
    return features


def masked_mean(values: Tensor, mask: Tensor) -> Tensor:
    """Mean over the present rows; values (B, L, F), mask (B, L) bool with at least one True a bag -> (B, F)."""
    weight = mask.unsqueeze(-1).to(values.dtype)
    return (values * weight).sum(1) / weight.sum(1)


def masked_max(values: Tensor, mask: Tensor) -> Tensor:
    """Largest present value of every column; shapes as for `masked_mean`."""
    return values.masked_fill(~mask.unsqueeze(-1), -torch.inf).amax(1)


def pool_probabilities(positive: Tensor, how: Pooling) -> Tensor:
    """Probability in [0, 1] of a bag from those of its rows (L,): mean, max, or the log of the mean exponential."""
    if how == "mean":
        return positive.mean()
    if how == "max":
        return positive.amax()
    return positive.exp().mean().log()
