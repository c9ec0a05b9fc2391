"""The part that all InfoNCE-like losses share: log-sum-exp over the similarities to everything else, in blocks.

    L_i = log sum_{k not in E_i} exp( <a_i, b_k> / tau )

No matrix of all similarities is kept: forward and backward work on blocks of rows, and backward computes each block
again from the stored result, so memory grows with the number of rows and not with its square. The value and gradient
are those of the whole matrix. Arithmetic is float32 or better also under automatic mixed precision. On a GPU with
Triton the same is done by `fused_log_sum.py`, whose products under mixed precision are of bf16; sums never are.
"""

from collections.abc import Iterator
from functools import cache
from importlib.util import find_spec
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn import functional

from appssl.errors import DataError
from appssl.ops.distributed import gather, rank

EPSILON = 1e-8  # smallest norm: an all-zero embedding has similarity 0 to everything
_BLOCK_ELEMENTS = 1 << 22  # similarities held at once: 16 MB of float32
_WIDEST_FUSED = 256  # embeddings that the kernels of a GPU take


def log_sum_of_others(anchors: Tensor, keys: Tensor, excluded: Tensor, *, temperature: float) -> Tensor:
    """Log of the summed exponentials of scaled similarities, over all keys but a few for each anchor.

    Args:
        anchors: (N, D) float32 or float64. keys: (M, D), same type. excluded: (N, E) int64 positions in keys, E >= 0.
    Returns:
        (N,), -inf for an anchor of which all keys are excluded. Differentiable once, in anchors and keys.
    """
    log_sum = _FusedLogSumOfOthers if _has_kernels_for(anchors) else _LogSumOfOthers
    result: Tensor = log_sum.apply(anchors, keys, excluded, 1 / temperature)
    return result


class _LogSumOfOthers(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, anchors: Tensor, keys: Tensor, excluded: Tensor, scale: float) -> Tensor:
        result = anchors.new_empty(len(anchors))
        for rows in _blocks(len(anchors), len(keys)):
            logits = _logits(anchors[rows], keys, excluded[rows], scale)
            largest = logits.amax(dim=1).clamp_(min=torch.finfo(logits.dtype).min)  # of -inf alone: -inf, not NaN
            result[rows] = logits.sub_(largest[:, None]).exp_().sum(dim=1).log_() + largest
        ctx.save_for_backward(anchors, keys, excluded, result)
        ctx.scale = scale
        return result

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        anchors, keys, excluded, result = ctx.saved_tensors
        of_anchors, of_keys = torch.empty_like(anchors), torch.zeros_like(keys)
        weight = (gradients[0] * ctx.scale)[:, None]
        base = result.masked_fill(result == -torch.inf, 0.0)[:, None]
        with _full_precision(anchors):
            for rows in _blocks(len(anchors), len(keys)):
                share = _logits(anchors[rows], keys, excluded[rows], ctx.scale).sub_(base[rows]).exp_()
                of_anchors[rows] = (share @ keys).mul_(weight[rows])
                of_keys.addmm_(share.T, anchors[rows] * weight[rows])
        return of_anchors, of_keys, None, None


class _FusedLogSumOfOthers(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, anchors: Tensor, keys: Tensor, excluded: Tensor, scale: float) -> Tensor:
        from appssl.ops import fused_log_sum  # Triton is not everywhere

        ctx.how = {"scale": scale, "bf16": torch.is_autocast_enabled(anchors.device.type)}
        result = fused_log_sum.log_sum(anchors, keys, excluded, **ctx.how)
        ctx.save_for_backward(anchors, keys, excluded, result)
        return result

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        from appssl.ops import fused_log_sum

        anchors, keys, excluded, result = ctx.saved_tensors
        return *fused_log_sum.gradients(anchors, keys, excluded, result, gradients[0], **ctx.how), None, None


def _has_kernels_for(tensor: Tensor) -> bool:
    suits = tensor.is_cuda and tensor.dtype == torch.float32 and tensor.shape[1] <= _WIDEST_FUSED
    return suits and _has_triton() and torch.cuda.get_device_capability(tensor.device) >= (8, 0)


@cache
def _has_triton() -> bool:
    return find_spec("triton") is not None


def _blocks(num_rows: int, num_columns: int) -> Iterator[slice]:
    size = max(1, _BLOCK_ELEMENTS // max(num_columns, 1))
    for start in range(0, num_rows, size):
        yield slice(start, start + size)


def _logits(anchors: Tensor, keys: Tensor, excluded: Tensor, scale: float) -> Tensor:
    with _full_precision(anchors):
        logits = (anchors * scale) @ keys.T
    return logits.scatter_(1, excluded, -torch.inf)


def _full_precision(tensor: Tensor) -> Any:
    return torch.autocast(device_type=tensor.device.type, enabled=False)


def stacked_views(name: str, embeddings: tuple[Tensor, ...]) -> Tensor:
    """Views (V, B, D) in float32 or better, of two or more views of one shape (B, D).

    Args:
        name: of the objective, for messages.
    Raises:
        DataError: if there are fewer than two views, or the shapes differ.
    """
    shapes = [tuple(z.shape) for z in embeddings]
    if len(shapes) < 2:
        raise DataError(f"{name} needs two or more views, got {len(shapes)}. Set num_views of the views to 2.")
    if len(set(shapes)) > 1 or len(shapes[0]) != 2:
        raise DataError(f"{name} needs views of one shape (B, D), got {shapes}.")
    dtype = torch.promote_types(embeddings[0].dtype, torch.float32)  # half precision loses log-sum-exp and variances
    return torch.stack([z.to(dtype) for z in embeddings])


def unit_views(name: str, embeddings: tuple[Tensor, ...]) -> Tensor:
    """As `stacked_views`, as unit vectors; embeddings are of any scale.

    Raises:
        DataError: as `stacked_views`, and if there are fewer than two samples.
    """
    views = stacked_views(name, embeddings)
    if views.shape[1] < 2:
        raise DataError(f"{name} needs two or more samples in a batch, got {views.shape[1]}: there are no negatives.")
    return functional.normalize(views, dim=2, eps=EPSILON)


def gathered(views: Tensor) -> tuple[Tensor, Tensor]:
    """Keys of all processes (V, W * B, D), and positions (B,) of the samples here among them."""
    keys = gather(views.transpose(0, 1)).transpose(0, 1)  # one exchange for all views
    batch = views.shape[1]
    return keys, torch.arange(rank() * batch, (rank() + 1) * batch, device=views.device)


def log_sum_without_itself(views: Tensor, *, temperature: float) -> Tensor:
    """(V, B): over all views of all samples but the anchor itself; views: unit vectors (V, B, D)."""
    keys, own = gathered(views)
    count, total = keys.shape[:2]
    itself = (own + torch.arange(count, device=views.device)[:, None] * total).reshape(-1, 1)
    sums = log_sum_of_others(views.flatten(0, 1), keys.flatten(0, 1), itself, temperature=temperature)
    return sums.reshape(count, -1)


def log_sum_of_other_samples(views: Tensor, *, temperature: float) -> Tensor:
    """(V, B): over all views of all other samples; views: unit vectors (V, B, D)."""
    keys, own = gathered(views)
    count, total = keys.shape[:2]
    sample = own[:, None] + torch.arange(count, device=views.device) * total  # (B, V)
    sums = log_sum_of_others(views.flatten(0, 1), keys.flatten(0, 1), sample.repeat(count, 1), temperature=temperature)
    return sums.reshape(count, -1)


def pair_similarities(views: Tensor) -> Tensor:
    """Cosine similarities (V, V, B) of all views of each sample, of unit vectors (V, B, D)."""
    return torch.einsum("vbd,wbd->vwb", views, views)


def other_views(pairs: Tensor) -> Tensor:
    """Values (V, V, B) of pairs of views without the diagonal, (V, V - 1, B)."""
    count = len(pairs)
    keep = ~torch.eye(count, dtype=torch.bool, device=pairs.device)
    return pairs[keep].reshape(count, count - 1, *pairs.shape[2:])
