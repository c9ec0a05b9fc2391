"""NT-Xent with negatives of the anchor's own view only, for views whose images share a style (sampler bss).

With e(a, b) = exp(cosine(a, b) / tau), z_i^v view v of sample i, and u any other view:

    l(i, v, u) = -log( e(z_i^v, z_i^u) / ( e(z_i^v, z_i^u) + sum_{j != i} e(z_i^v, z_j^v) ) )

averaged over samples and ordered pairs of views. The positive is of another style, the negatives are of the anchor's:
style helps to tell none of them. Never larger than NT-Xent of two views, whose denominator has more terms.
Source: Scalbert et al., Towards domain-invariant self-supervised learning with batch styles standardization, ICLR
2024, arXiv 2303.06088. Deviations: reconstructed from the method's description. Negatives are of the same process
only, and with `images` of the same part of its batch, because others have another style: set `images` here and in the
sampler to a divisor of the batch of a process, and the loss is the same for any number of processes.
"""

from typing import Literal

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional

from appssl.contracts import Loss
from appssl.errors import DataError
from appssl.ops.contrastive import log_sum_of_others, other_views, pair_similarities, unit_views
from appssl.settings import Settings


class Config(Settings):
    name: Literal["same_view_ntxent"] = "same_view_ntxent"
    temperature: float = Field(0.2, gt=0, description="softmax temperature, tau in the paper")
    images: int | None = Field(
        None, ge=2, description="consecutive rows that share a style, as in sampler bss; null: all of a process"
    )


class SameViewNTXent(nn.Module):
    def __init__(self, config: Config) -> None:
        super().__init__()
        self.config = config

    def forward(self, *embeddings: Tensor) -> Loss:
        return Loss(same_view_nt_xent(*embeddings, temperature=self.config.temperature, images=self.config.images))


def same_view_nt_xent(*embeddings: Tensor, temperature: float, images: int | None = None) -> Tensor:
    """Mean loss over all anchors and their positives.

    Args:
        embeddings: two or more views, each (B, D) float, any scale; row i of all is one sample.
        temperature: divides cosine similarities, > 0. images: rows whose negatives are among each other; None: all.
    Returns:
        Scalar float32 (float64 for float64 inputs), >= 0. Differentiable in all views.
    Raises:
        DataError: if there are fewer than two views or two samples, the shapes differ, or B is no multiple of `images`.
    """
    views = unit_views("same_view_ntxent", embeddings)
    count, batch, _ = views.shape
    size = images or batch
    if batch % size:
        raise DataError(f"same_view_ntxent: a batch of {batch} is no multiple of images {size}. Set objective.images.")
    own = torch.arange(size, device=views.device)[:, None]
    parts = views.unflatten(1, (-1, size)).flatten(0, 1)
    sums = torch.stack([log_sum_of_others(part, part, own, temperature=temperature) for part in parts])
    negatives = sums.reshape(count, 1, batch)
    positives = other_views(pair_similarities(views)) / temperature  # (V, V - 1, B)
    return functional.softplus(negatives - positives).mean()


def build(config: Config) -> SameViewNTXent:
    return SameViewNTXent(config)
