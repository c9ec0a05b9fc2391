"""Weights of experts for unlabelled inputs of an unknown class distribution: those whose predictions are most stable.

With experts' logits v_i of two augmented views of each input and w = softmax(omega):

    y = softmax(sum_i w_i v_i(x)),    S = mean_x cos(y of the first view, y of the second view)

S is maximized over omega alone, the networks stay as they are: all that is needed are the logits of some augmented
passes, made once. The result belongs to those inputs; another test distribution begins again from equal weights.

Source: Zhang et al., SADE, NeurIPS 2022, arXiv 2107.09249. Official code: Vanint/SADE-AgnosticLT, MIT.
Deviations: cosine as in that code, where the paper writes the inner product; weights are compared with the smallest
allowed one without rounding; omega is fitted on stored logits, an epoch takes pass number epoch mod their number.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

from appssl.errors import DataError
from appssl.ops.random import permutation


@dataclass(frozen=True)
class Aggregation:
    """Result of `aggregate_experts`.

    Attributes:
        omega: (E,) float32, before the softmax. weights: (E,) float32, sum 1. stability: mean S over the batches of
            each epoch, in [0, 1], as seen while omega moved. stopped_early: whether a weight fell below the smallest.
    """

    omega: Tensor
    weights: Tensor
    stability: tuple[float, ...]
    stopped_early: bool


def mix_experts(logits: Tensor, omega: Tensor) -> Tensor:
    """Logits (N, K) of the mixture, sum_i softmax(omega)_i v_i.

    Args:
        logits: (E, N, K) float of the experts. omega: (E,) float.
    Returns:
        float32 or better, differentiable in both.
    """
    dtype = torch.promote_types(logits.dtype, torch.float32)
    return torch.einsum("e,enk->nk", omega.to(dtype).softmax(0), logits.to(dtype))


def stability(first: Tensor, second: Tensor, omega: Tensor) -> Tensor:
    """S, scalar in [0, 1]: 1 where both views of every input are predicted the same.

    Args:
        first, second: logits (E, N, K) of two views of the same inputs. omega: (E,). Only omega gets a gradient.
    """
    one, two = (mix_experts(logits.detach(), omega).softmax(1) for logits in (first, second))
    return functional.cosine_similarity(one, two, dim=1).mean()  # probabilities: no norm is below 1 / sqrt(K)


def aggregate_experts(
    passes: Sequence[tuple[Tensor, Tensor]],
    *,
    lr: float = 0.1,
    momentum: float = 0.9,
    weight_decay: float = 5e-4,
    batch_size: int = 128,
    epochs: int = 5,
    smallest_weight: float = 0.05,
    seed: int = 0,
) -> Aggregation:
    """Fits omega from equal weights by SGD with Nesterov momentum.

    Args:
        passes: logits (E, N, K) of the two views, for one or more augmented passes over the same N inputs.
        weight_decay: acts on omega, so it pulls towards equal weights. smallest_weight: after an epoch that ends with
            a weight below it nothing more is done. seed: of the order of inputs.
    Raises:
        DataError: if there is no input, or the passes differ in shape.
    """
    _check(passes)
    num_inputs = passes[0][0].shape[1]
    omega = torch.zeros(len(passes[0][0]), device=passes[0][0].device, requires_grad=True)
    solver = torch.optim.SGD([omega], lr=lr, momentum=momentum, weight_decay=weight_decay, nesterov=momentum > 0)
    history: list[float] = []
    stopped = False
    for epoch in range(epochs):
        first, second = passes[epoch % len(passes)]
        order = torch.from_numpy(permutation(seed, epoch, num_inputs)).to(first.device)
        total = torch.zeros((), device=first.device)
        for rows in order.split(batch_size):
            with torch.enable_grad():
                found = stability(first[:, rows], second[:, rows], omega)
                (gradient,) = torch.autograd.grad(-found, omega)
            omega.grad = gradient
            solver.step()
            total += found.detach() * len(rows)
        history.append(float(total) / num_inputs)
        if float(omega.detach().softmax(0).min()) < smallest_weight:
            stopped = True
            break
    omega = omega.detach()
    return Aggregation(omega, omega.softmax(0), tuple(history), stopped)


def _check(passes: Sequence[tuple[Tensor, Tensor]]) -> None:
    shapes = sorted({tuple(view.shape) for views in passes for view in views})
    if len(shapes) != 1 or len(shapes[0]) != 3 or 0 in shapes[0]:
        raise DataError(
            f"experts are weighted by their logits (experts, inputs, classes) of two views of the same inputs, one or "
            f"more times; got shapes {shapes or 'of nothing'}."
        )
