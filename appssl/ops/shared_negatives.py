"""Negatives that all rows of a batch share, and the softmax against them.

    L = -1/B sum_i log( exp(o_i) / (exp(o_i) + sum_j exp(o_ij - log(m q_j))) )

o_i is the score of row i's positive, o_ij that of negative j = 1..m. Negatives are drawn with repetition, item n with
probability q_n, so m q_n is its expected number, and the sum is an unbiased estimate of that over all other items: with
m the loss tends to the softmax over all items. Draws of a row's own positive do not count for that row.

    log_uniform: q_k = (log(k + 2) - log(k + 1)) / log(K + 1),  k = 0..K-1 in falling order of frequency;   uniform: 1/K

Source: sampled softmax as in Blanc and Rendle, ICML 2018, arXiv 1712.00527, section 2; the log-uniform distribution is
that of TensorFlow's candidate samplers. Deviations: TensorFlow's loss corrects the positive too, whose share then falls
with m, and draws without repetition.
"""

import math
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

Draw = Literal["log_uniform", "uniform"]


class Drawn(NamedTuple):
    """Each item that was drawn once, in rising order, (M,) int64; how often (M,); log-probability q (M,) float64."""

    items: Tensor
    counts: Tensor
    log_probability: Tensor

    def log_weight(self, *, corrected: bool) -> Tensor:
        """(M,) float64: what is added to the score of each item, so that it counts as its draws do."""
        log_counts = self.counts.double().log()
        return log_counts - self.log_probability - self.counts.sum().double().log() if corrected else log_counts


class SharedNegatives(nn.Module):
    """Draws items, from torch's generator of the device.

    Args:
        ranked: (K,) int64 items in falling order of frequency. number: m, how many are drawn.
    """

    ranked: Tensor

    def __init__(self, ranked: Tensor, number: int, draw: Draw) -> None:
        super().__init__()
        self.number, self.draw = number, draw
        self.register_buffer("ranked", ranked, persistent=False)

    def forward(self) -> Drawn:
        size = len(self.ranked)
        shares = torch.rand(self.number, dtype=torch.float64, device=self.ranked.device)
        found = torch.expm1(shares * math.log(size + 1)) if self.draw == "log_uniform" else shares * size
        ranks, counts = torch.unique(found.long().clamp(max=size - 1), return_counts=True)  # at most: by rounding
        items, order = self.ranked[ranks].sort()
        return Drawn(items, counts[order], log_probability(ranks, size, self.draw)[order])


def log_probability(ranks: Tensor, size: int, draw: Draw) -> Tensor:
    """Log of q, float64, of ranks (M,) int64 from 0 among `size`."""
    if draw == "uniform":
        return torch.full(ranks.shape, -math.log(size), dtype=torch.float64, device=ranks.device)
    return (torch.log1p(1 / (ranks.double() + 1)) / math.log(size + 1)).log()


def shared_softmax(
    queries: Tensor, positives: Tensor, negatives: Tensor, log_weight: Tensor, own: tuple[Tensor, Tensor]
) -> Tensor:
    """Mean loss, float32 or better.

    Args:
        queries: (B, D), divided by the temperature. positives: (B, D). negatives: (M, D). log_weight: (M,), added to
            their scores. own: rows and columns (C,) int64 of the scores that do not count.
    """
    dtype = torch.promote_types(queries.dtype, torch.float32)
    with torch.autocast(device_type=queries.device.type, enabled=False):
        vectors = (tensor.to(dtype) for tensor in (queries, positives, negatives))
        found: Tensor = _SharedSoftmax.apply(*vectors, log_weight.exp().to(dtype), *own)
        return found


class _SharedSoftmax(torch.autograd.Function):
    """Goes over the scores (B, M) less than half as often as PyTorch's own functions would, and keeps them once."""

    @staticmethod
    def forward(
        ctx: Any, queries: Tensor, positives: Tensor, negatives: Tensor, weight: Tensor, rows: Tensor, columns: Tensor
    ) -> Tensor:
        positive = (queries * positives).sum(1)
        scores = queries @ negatives.T
        scores[rows, columns] = -torch.inf
        largest = torch.maximum(positive, scores.amax(1))
        terms = scores.sub_(largest[:, None]).exp_()
        own_term = (positive - largest).exp()
        total = own_term + terms @ weight
        ctx.save_for_backward(queries, positives, negatives, weight, terms, own_term / total, total)
        return (total.log() + largest - positive).mean()

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        queries, positives, negatives, weight, terms, own_share, total = ctx.saved_tensors
        scale = gradient / len(queries)
        of_positive = ((own_share - 1) * scale)[:, None]
        of_terms = (scale / total)[:, None]
        weight = weight[:, None]
        of_queries = (terms @ (weight * negatives)).mul_(of_terms).addcmul_(of_positive, positives)
        return of_queries, of_positive * queries, weight * (terms.T @ (of_terms * queries)), None, None, None


def own_places(items: Tensor, negatives: Tensor) -> tuple[Tensor, Tensor]:
    """Rows and columns (C,) where a row's item (B,) is a negative (M,); negatives in rising order, each once."""
    columns = torch.searchsorted(negatives, items).clamp(max=len(negatives) - 1)
    rows = (negatives[columns] == items).nonzero()[:, 0]
    return rows, columns[rows]
