"""GroCo: similarities are sorted by a soft sorting network; positives belong above the strongest negatives.

For an anchor a_i of view a the list s holds, in rising order, the K largest cosines with other samples of the same view
and then, in rising order, the P cosines with the other positive views of the sample. An odd-even network of n = K + P
layers compares neighbours in turn; a comparator with values x, y (x in the lower place) is

    alpha = 1/2 + arctan(beta (y - x)) / pi,    x' = alpha x + (1 - alpha) y,    y' = (1 - alpha) x + alpha y

The same mixing of the columns of a unit matrix gives X[e, r], the share of element e in rank r. With p_e the share of
element e in the top P ranks and t_e = 1 for positives, 0 for negatives, the loss is

    L = mean over anchors of -(1/n) sum_e [ t_e log p_e + (1 - t_e) log(1 - p_e) ]

Gradients flow through the anchor only. X is not built: p = M_1 ... M_n e_top with the symmetric mixing M_l of layer l,
so the indicator of the top ranks passes through the layers in reverse.
Source: Shvetsova et al., Learning by Sorting, ICCV 2023, arXiv 2301.02009. Deviations: the batch normalization without
learned scale that ends the paper's projector is done here (`batch_norm`), over all views together as a projector would,
because the loss needs it and projectors here end in a linear layer; a batch with fewer than K other samples uses all of
them. Across processes negatives come from all of them.
"""

import math
from collections.abc import Sequence
from typing import Literal

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional

from appssl.contracts import Loss
from appssl.errors import DataError
from appssl.ops.contrastive import gathered, unit_views
from appssl.settings import Settings

_NORM_EPSILON = 1e-5  # added to variances, as in torch's batch normalization


class Config(Settings):
    name: Literal["groco"] = "groco"
    num_negatives: int = Field(10, ge=1, description="K: strongest negatives that are sorted with the positives")
    steepness: float = Field(1.0, gt=0, description="beta of the comparators; large ones sort hard")
    num_positive_views: int | None = Field(
        None, ge=1, description="the first views, that serve as positives (two large crops); null: all"
    )
    batch_norm: bool = Field(True, description="standardize embeddings over the batch before cosines are taken")


class GroCo(nn.Module):
    def __init__(self, config: Config) -> None:
        super().__init__()
        self.config = config

    def forward(self, *embeddings: Tensor) -> Loss:
        c = self.config
        if c.batch_norm:
            unit_views("groco", embeddings)  # for its checks
            embeddings = standardized(embeddings)
        loss, ordered = groco(
            *embeddings,
            num_negatives=c.num_negatives,
            steepness=c.steepness,
            num_positive_views=c.num_positive_views,
        )
        return Loss(loss, {"ordered": ordered})


def groco(
    *embeddings: Tensor, num_negatives: int, steepness: float, num_positive_views: int | None = None
) -> tuple[Tensor, Tensor]:
    """Mean loss over all anchors, and the share of anchors with all positives above all negatives, without gradient.

    Args:
        embeddings: two or more views, each (B, D) float, any scale; row i of all is one sample. All are anchors.
        num_negatives: K, at most; there are no more than other samples. steepness: beta, > 0.
        num_positive_views: the first views serve as positives; None: all.
    Returns:
        Scalars, float32 (float64 for float64 inputs). With beta = 1 the loss stays well above 0: with cosines +1 and -1
        it is 0.147 for K = 10, P = 1, and 0.202 when all are equal.
    Raises:
        DataError: if there are fewer than two views or samples, the shapes differ, or an anchor has no positive.
    """
    views = unit_views("groco", embeddings)
    num_positive = len(views) if num_positive_views is None else num_positive_views
    if num_positive > len(views):
        raise DataError(f"groco: num_positive_views is {num_positive}, but there are {len(views)} views.")
    if num_positive < 2:
        raise DataError(
            "groco: with num_positive_views 1 the first view has no positive; set it to 2 or more, or leave it out."
        )
    losses, ordered = [], []
    for anchor in range(len(views)):
        positives = _positives(views, anchor, num_positive)
        negatives = _negatives(views, anchor, num_negatives)
        losses.append(group_order_loss(negatives, positives, steepness).mean())
        ordered.append((positives[:, 0] > negatives[:, -1]).to(views.dtype).mean())
    return torch.stack(losses).mean(), torch.stack(ordered).mean().detach()


def _positives(views: Tensor, anchor: int, num_positive: int) -> Tensor:
    """Cosines (B, P) with the other positive views, in rising order."""
    others = [number for number in range(num_positive) if number != anchor]
    return (views[anchor] * views[others].detach()).sum(-1).T.sort(dim=1).values


def _negatives(views: Tensor, anchor: int, num_negatives: int) -> Tensor:
    """The largest cosines (B, K) with other samples of the same view, in rising order."""
    keys, own = gathered(views[anchor, None].detach())
    with torch.autocast(device_type=views.device.type, enabled=False):
        similarity = views[anchor] @ keys[0].T
    similarity = similarity.scatter(1, own[:, None], -torch.inf)
    return similarity.topk(min(num_negatives, len(keys[0]) - 1), dim=1).values.flip(1)


def group_order_loss(negatives: Tensor, positives: Tensor, steepness: float) -> Tensor:
    """Mean cross entropy of the groups, (B,), of similarities (B, K) and (B, P), each in rising order."""
    count = positives.shape[1]
    mass = top_mass(torch.cat([negatives, positives], dim=1), count, steepness).clamp(0, 1)
    target = torch.cat([torch.zeros_like(negatives), torch.ones_like(positives)], dim=1)
    with torch.autocast(device_type=mass.device.type, enabled=False):
        return functional.binary_cross_entropy(mass, target, reduction="none").mean(1)


def top_mass(values: Tensor, count: int, steepness: float) -> Tensor:
    """Share (B, n) of each of the values (B, n) in the `count` highest ranks after sorting."""
    size = values.shape[1]
    shares: list[Tensor] = []  # alpha of every layer
    for layer in range(size):
        lower, upper = _pairs(values, layer % 2)
        shares.append(0.5 + torch.atan(steepness * (upper - lower)) / math.pi)
        values = _mixed(values, shares[-1], layer % 2)
    mass = torch.zeros_like(values)
    mass[:, size - count :] = 1
    for layer in reversed(range(size)):
        mass = _mixed(mass, shares[layer], layer % 2)
    return mass


def _pairs(values: Tensor, start: int) -> tuple[Tensor, Tensor]:
    """Values (B, m) in the lower and in the upper places of the comparators from `start`."""
    stop = start + (values.shape[1] - start) // 2 * 2
    return values[:, start:stop:2], values[:, start + 1 : stop : 2]


def _mixed(values: Tensor, alpha: Tensor, start: int) -> Tensor:
    """Values (B, n) after a layer of comparators with shares alpha (B, m); unpaired ones stay."""
    lower, upper = _pairs(values, start)
    pairs = torch.stack([torch.lerp(upper, lower, alpha), torch.lerp(lower, upper, alpha)], dim=2).flatten(1)
    return torch.cat([values[:, :start], pairs, values[:, start + pairs.shape[1] :]], dim=1)


def standardized(embeddings: Sequence[Tensor]) -> tuple[Tensor, ...]:
    """Views, each (B, D), with mean 0 and variance 1 in every dimension over all of them; float32 or better."""
    values = torch.cat(list(embeddings))
    values = values.to(torch.promote_types(values.dtype, torch.float32))
    variance, mean = torch.var_mean(values, dim=0, correction=0)
    return ((values - mean) / torch.sqrt(variance + _NORM_EPSILON)).chunk(len(embeddings))


def build(config: Config) -> GroCo:
    return GroCo(config)
