"""Terms of training with labels of which some were replaced by guesses of the network.

Sharpened pseudo-labels, cross-entropy of mixed images with weighted soft targets, a penalty on one-sided predictions,
and the supervised contrast of mixed images with unmixed views.

Source: Albert et al., Is your noise correction noisy? PLS, WACV 2023, arXiv 2210.04578; LSA, ECCV 2024, arXiv
2407.05528. The penalty is that of Tanaka et al., CVPR 2018, arXiv 1803.11364; mixed contrast is from Ortego et al.,
MOIT, CVPR 2021, arXiv 2012.04462.
"""

import math

import torch
from torch import Tensor
from torch.nn import functional

_EPSILON = 1e-8  # smallest sum of weights, and smallest norm of a projection


def sharpened(probabilities: Tensor, exponent: float) -> Tensor:
    """p^exponent / sum p^exponent, (B, K), of probabilities (B, K); 1 leaves them as they are."""
    return (exponent * probabilities.log()).softmax(1)


def soft_cross_entropies(logits: Tensor, targets: Tensor) -> Tensor:
    """-sum_c t_ic log softmax(z_i)_c, (B,) float32 or better, of logits and targets (B, K)."""
    return -(targets * _full(logits).log_softmax(1)).sum(1)


def mixed_loss(logits: Tensor, targets: Tensor, weights: Tensor, other: Tensor, share: Tensor) -> Tensor:
    """L_c = share sum_i w_i CE_i(t_i) / sum w + (1 - share) sum_i w_o(i) CE_i(t_o(i)) / sum w, scalar.

    Args:
        logits: (B, K) for the images share x_i + (1 - share) x_o(i). targets: (B, K), rows sum to 1. weights: (B,)
            >= 0; all 0 give a loss of 0. other: (B,) int64, the order o. share: scalar in 0..1.
    """
    total = weights.sum().clamp(min=_EPSILON)
    own = (weights * soft_cross_entropies(logits, targets)).sum() / total
    of_other = (weights[other] * soft_cross_entropies(logits, targets[other])).sum() / total
    return share * own + (1 - share) * of_other


def prior_penalty(logits: Tensor) -> Tensor:
    """R = sum_c 1/K log( (1/K) / mean_i p_ic ), scalar >= 0; 0 where the mean prediction is uniform. logits: (B, K)."""
    count, num_classes = logits.shape
    mean = _full(logits).log_softmax(1).logsumexp(0) - math.log(count)
    return -mean.mean() - math.log(num_classes)


def same_class(classes: Tensor, keys: Tensor) -> Tensor:
    """G (B, M) float32: 1 where the class (B,) int64 of an image is that of a key (M,) int64."""
    return (classes[:, None] == keys[None, :]).float()


def weighted_pairs(classes: Tensor, weights: Tensor, keys: Tensor, key_weights: Tensor, own: Tensor) -> Tensor:
    """G_ij = w_i w_j [same class] + (1 - w_i)(1 - w_j) [j is i's own view], (B, M).

    An image is attracted by its class as far as its label is trusted, and otherwise by itself alone.

    Args:
        classes, weights: (B,) of images, weights in 0..1. keys, key_weights: (M,) of views. own: (B,) int64, position
            of each image's own view among the keys.
    """
    itself = functional.one_hot(own, len(keys))
    alone = (1 - weights)[:, None] * (1 - key_weights)[None, :]
    return weights[:, None] * key_weights[None, :] * same_class(classes, keys) + alone * itself


def mixed_after_sums(pairs: Tensor, other: Tensor, share: Tensor) -> Tensor:
    """share G_i / sum_j G_ij + (1 - share) G_o(i) / sum_j G_o(i)j, (B, M); rows sum to 1."""
    rows = pairs / pairs.sum(1, keepdim=True)
    return share * rows + (1 - share) * rows[other]


def mixed_before_sums(pairs: Tensor, other: Tensor, share: Tensor) -> Tensor:
    """(share G_i + (1 - share) G_o(i)) / sum_j of it, (B, M); rows sum to 1."""
    rows = share * pairs + (1 - share) * pairs[other]
    return rows / rows.sum(1, keepdim=True)


def contrast(images: Tensor, keys: Tensor, attraction: Tensor, *, temperature: float) -> Tensor:
    """Scalar mean_i -sum_j A_ij log softmax_j(<a_i, b_j> / temperature).

    Args:
        images: a, (B, D), any scale; unit vectors inside. keys: b, (M, D). attraction: A, (B, M), rows sum to 1.
    """
    with torch.autocast(images.device.type, enabled=False):
        a, b = (functional.normalize(_full(rows), dim=1, eps=_EPSILON) for rows in (images, keys))
        return soft_cross_entropies(a @ b.T / temperature, attraction).mean()


def _full(values: Tensor) -> Tensor:
    """float32 or better, also under mixed precision."""
    return values.to(torch.promote_types(values.dtype, torch.float32))
