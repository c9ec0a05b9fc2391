"""Squared maximum mean discrepancy between sets of vectors, with a sum of Gaussian kernels.

    mmd2(X, Y) = mean K(x, x') + mean K(y, y') - 2 mean K(x, y),    K(x, y) = sum_s exp(-|x - y|^2 / (2 s))

Means are over all pairs, with those of a vector and itself (the biased estimate). Squared distances come from
|x|^2 + |y|^2 - 2 x y, so memory is that of the pairs and not of pairs times dimensions.

Source: Gretton et al., A kernel two-sample test, JMLR 13, 2012, equation 5; the scales are those of ColloSSL (Jain et
al., IMWUT 2022, arXiv 2202.00758). Deviations: none.
"""

import torch
from torch import Tensor

SCALES = (1e-4, 1e-3, 1e-2, 0.1, 1.0, 5.0, 10.0, 15.0, 20.0, 25.0, 30.0, 100.0)
_NOTHING = -40.0  # exponents below are 0 in float32; left as they are they take long, as denormal numbers
_BLOCK = 128  # vectors
FLOOR = 1e-4  # smallest value: weights are its inverse


def mmd2(first: Tensor, others: Tensor, *, scales: tuple[float, ...] = SCALES) -> Tensor:
    """(D,) float32 in [FLOOR, 2 * len(scales)], without gradient.

    Args:
        first: (B, T), others: (D, C, T) sets of vectors.
    """
    with torch.no_grad():
        center = first.double().mean(dim=0)  # large common parts would cost digits
        x, ys = first.double() - center, others.double() - center
        own = _within(x, scales) / len(x) ** 2
        found = [own + _within(y, scales) / len(y) ** 2 - 2 * _sum_kernel(x, y, scales) / (len(x) * len(y)) for y in ys]
        return torch.stack(found).clamp(min=FLOOR).float() if found else first.new_zeros(0)


def _within(x: Tensor, scales: tuple[float, ...]) -> Tensor:
    """Sum over all pairs of one set: a pair counts twice and is computed once, but for small blocks."""
    if len(x) <= _BLOCK:
        return _sum_kernel(x, x, scales)
    a, b = x.tensor_split(2)
    return _within(a, scales) + _within(b, scales) + 2 * _sum_kernel(a, b, scales)


def _sum_kernel(x: Tensor, y: Tensor, scales: tuple[float, ...]) -> Tensor:
    negative = (2 * x) @ y.T  # of the squared distances
    negative.sub_(x.square().sum(1)[:, None]).sub_(y.square().sum(1)).clamp_(max=0)
    if x is y:
        negative.fill_diagonal_(0)
    negative = negative.float()
    total, kernel = torch.zeros_like(negative), torch.empty_like(negative)  # one buffer: new memory costs more than exp
    for scale in scales:
        torch.mul(negative, 1 / (2 * scale), out=kernel)
        total += kernel.clamp_(min=_NOTHING).exp_()
    return total.sum(dtype=torch.float64)
