"""Losses that predict a distribution over prototypes, and the center that keeps teachers from choosing one of them."""

import torch
from torch import Tensor

from appssl.ops.distributed import gather


def cross_entropy_of_crops(predicted: list[Tensor], targets: list[Tensor], *, temperature: float) -> Tensor:
    """Mean over images, and pairs of a target and another crop, of the cross-entropy.

    Args:
        predicted: logits of V >= 2 crops, each (B, K) float32 or better. targets: distributions (B, K) of the first A
            of them; no gradient flows through them.
    Returns:
        Scalar, >= the mean entropy of the targets.
    """
    logs = [(s / temperature).log_softmax(dim=1) for s in predicted]
    terms = [
        -(target.detach() * log).sum(dim=1).mean()
        for a, target in enumerate(targets)
        for v, log in enumerate(logs)
        if v != a
    ]
    return torch.stack(terms).mean()


def moved_center(center: Tensor, logits: Tensor, momentum: float) -> Tensor:
    """momentum c + (1 - momentum) mean of logits (..., K) over everything, and all processes."""
    mean = gather(logits.flatten(0, -2).mean(dim=0)[None]).mean(dim=0)
    return momentum * center + (1 - momentum) * mean


def risen(first: float, last: float, step: int, warmup_steps: float) -> float:
    """From `first` at step 0 in a straight line to `last` at `warmup_steps`, and `last` from then on."""
    share = min(1.0, step / warmup_steps) if warmup_steps else 1.0
    return first + share * (last - first)
