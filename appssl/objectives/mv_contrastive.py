"""Contrastive losses for many views of a sample: MV-InfoNCE and MV-DHEL, and what they are compared with.

With e(a, b) = exp(cosine(a, b) / tau), u_{i,l} sample i of M in view l of N, A_i = sum_{l < l'} e(u_{i,l}, u_{i,l'}):

    mv_infonce:  -1/M sum_i log( 2 A_i / D_i ),             D_i = sum_l sum_{(j,m) != (i,l)} e(u_{i,l}, u_{j,m})
    mv_dhel:     -1/M sum_i log( A_i / prod_l B_{i,l} ),    B_{i,l} = sum_{j != i} e(u_{i,l}, u_{j,l})
    pairwise:    mean over pairs of views of the two-view NT-Xent
    average:     mean over views of the NT-Xent between a view and the mean of the other views
    geometric:   mean over ordered pairs (a, b) of -log( e(a, b) / (e(a, b) + sum over all views of other samples) )

Source: Koromilas et al., A Principled Framework for Multi-View Contrastive Learning, 2025, arXiv 2507.06979; geometric:
the loss of Poly-View contrastive learning, as the paper compares it. Deviations: paper and official code differ, the
default is the code's form; `published: true` is the paper's: D_i then has other views only, with j = i, B_{i,l} has
j = i too, and A_i both orders of each pair. Sums are taken in the logarithm, so that no product overflows.
"""

from itertools import combinations
from typing import Literal

import torch
from pydantic import Field, model_validator
from torch import Tensor, nn

from appssl.contracts import Loss
from appssl.objectives.ntxent import nt_xent
from appssl.ops.contrastive import (
    gathered,
    log_sum_of_other_samples,
    log_sum_of_others,
    log_sum_without_itself,
    other_views,
    pair_similarities,
    unit_views,
)
from appssl.settings import Settings

Form = Literal["mv_infonce", "mv_dhel", "pairwise", "average", "geometric"]


class Config(Settings):
    name: Literal["mv_contrastive"] = "mv_contrastive"
    loss: Form = Field("mv_dhel", description="which of the losses")
    temperature: float = Field(0.5, gt=0, description="softmax temperature, tau in the paper")
    published: bool = Field(False, description="the form of the paper's formulas instead of that of its code")

    @model_validator(mode="after")
    def _has_two_forms(self) -> "Config":
        if self.published and not self.loss.startswith("mv_"):
            raise ValueError("published is for mv_infonce and mv_dhel; the other losses have one form")
        return self


class MultiView(nn.Module):
    def __init__(self, config: Config) -> None:
        super().__init__()
        self.config = config

    def forward(self, *embeddings: Tensor) -> Loss:
        tau, published = self.config.temperature, self.config.published
        if self.config.loss == "mv_infonce":
            return Loss(mv_infonce(*embeddings, temperature=tau, published=published))
        if self.config.loss == "mv_dhel":
            return Loss(mv_dhel(*embeddings, temperature=tau, published=published))
        return Loss(BASELINES[self.config.loss](*embeddings, temperature=tau))


def mv_infonce(*embeddings: Tensor, temperature: float, published: bool = False) -> Tensor:
    """All positives of a sample in one numerator, everything in one denominator; scalar >= 0.

    Args:
        embeddings: two or more views, each (B, D) float, any scale; row i of all is one sample.
    Raises:
        DataError: if there are fewer than two views or two samples, or the shapes differ.
    """
    views = unit_views("mv_contrastive", embeddings)
    sums = (_log_sum_of_other_views if published else log_sum_without_itself)(views, temperature=temperature)
    return (sums.logsumexp(dim=0) - _log_alignment(views, temperature)).mean()


def mv_dhel(*embeddings: Tensor, temperature: float, published: bool = False) -> Tensor:
    """Uniformity within each view, alignment over all pairs of views; scalar, can be negative. See `mv_infonce`."""
    views = unit_views("mv_contrastive", embeddings)
    sums = torch.cat([log_sum_of_other_samples(view[None], temperature=temperature) for view in views])
    alignment = _log_alignment(views, temperature)
    if published:
        itself = (views * views).sum(dim=-1) / temperature
        return (torch.logaddexp(sums, itself).sum(dim=0) - alignment).mean()
    return (sums.sum(dim=0) - alignment).mean() + torch.tensor(2.0, dtype=sums.dtype, device=sums.device).log()


def _log_sum_of_other_views(views: Tensor, *, temperature: float) -> Tensor:
    """(V, B): over all samples, the own one too, in all other views."""
    keys, _ = gathered(views)
    nothing = torch.empty(views.shape[1], 0, dtype=torch.int64, device=views.device)
    sums = []
    for number, view in enumerate(views):
        others = torch.cat([keys[:number], keys[number + 1 :]]).flatten(0, 1)
        sums.append(log_sum_of_others(view, others, nothing, temperature=temperature))
    return torch.stack(sums)


def _log_alignment(views: Tensor, temperature: float) -> Tensor:
    """Log of the sum over ordered pairs of views, (B,)."""
    return (other_views(pair_similarities(views)) / temperature).flatten(0, 1).logsumexp(dim=0)


def pairwise(*embeddings: Tensor, temperature: float) -> Tensor:
    views = unit_views("mv_contrastive", embeddings)
    return torch.stack([nt_xent(a, b, temperature=temperature) for a, b in combinations(views, 2)]).mean()


def average(*embeddings: Tensor, temperature: float) -> Tensor:
    views = unit_views("mv_contrastive", embeddings)
    means = (views.sum(dim=0) - views) / (len(views) - 1)
    return torch.stack([nt_xent(v, m, temperature=temperature) for v, m in zip(views, means, strict=True)]).mean()


def geometric(*embeddings: Tensor, temperature: float) -> Tensor:
    views = unit_views("mv_contrastive", embeddings)
    negatives = log_sum_of_other_samples(views, temperature=temperature)[:, None]
    positives = other_views(pair_similarities(views)) / temperature
    return (torch.logaddexp(negatives, positives) - positives).mean()


BASELINES = {"pairwise": pairwise, "average": average, "geometric": geometric}


def build(config: Config) -> MultiView:
    return MultiView(config)
