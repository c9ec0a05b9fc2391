"""Batch normalization by mean and variance of the batches of all processes, so that their number changes nothing.

    mean = sum x / n,    var = sum (x - mean)^2 / n      over the rows and pixels of all processes

With one process it is torch's own. Works on CPUs too, unlike `torch.nn.SyncBatchNorm`. With x^ the normalized x, g the
gradient of the outputs, w the weights, and sums over the rows and pixels of all processes, the gradient of x is

    w / sqrt(var + eps) * (g - sum(g) / n - x^ sum(g x^) / n)

Each pass over the data is one kernel of torch, and a layer costs one message forward and one backward.

Source: Ioffe and Szegedy, ICML 2015, arXiv 1502.03167, algorithm 1 and section 3, over the global batch. Deviations:
none.
"""

from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn import functional
from torch.nn.modules.batchnorm import _BatchNorm

from appssl.ops.distributed import world_size


class GlobalBatchNorm(_BatchNorm):
    """In place of BatchNorm1d, 2d and 3d, with the same parameters, buffers and names of both."""

    def _check_input_dim(self, inputs: Tensor) -> None:
        """Any (B, C, ...)."""

    def forward(self, inputs: Tensor) -> Tensor:
        uses_batch = self.training or self.running_mean is None
        if not uses_batch or world_size() == 1:
            return super().forward(inputs)
        mean, variance, count = moments(inputs)
        if self.training and self.running_mean is not None:
            self._remember(mean, variance * (count / (count - 1)))
        weight = torch.ones_like(mean) if self.weight is None else self.weight
        bias = torch.zeros_like(mean) if self.bias is None else self.bias
        result: Tensor = _Normalized.apply(inputs, weight, bias, mean, variance, count, self.eps)
        return result

    @torch.no_grad()
    def _remember(self, mean: Tensor, unbiased: Tensor) -> None:
        assert self.running_mean is not None
        assert self.running_var is not None
        assert self.num_batches_tracked is not None
        self.num_batches_tracked += 1
        share = 1 / float(self.num_batches_tracked) if self.momentum is None else self.momentum
        self.running_mean.lerp_(mean.to(self.running_mean), share)
        self.running_var.lerp_(unbiased.to(self.running_var), share)


@torch.no_grad()
def moments(inputs: Tensor) -> tuple[Tensor, Tensor, int]:
    """Mean and (biased) variance of each channel over all processes, (C,) float32 each, and how many numbers it has.

    Args:
        inputs: (B, C, ...), of equal shape on all processes.
    """
    local = torch.stack(_local_moments(inputs))
    every = [torch.empty_like(local) for _ in range(world_size())]
    dist.all_gather(every, local)
    means, variances = torch.stack(every).double().unbind(1)  # (W, C); squares of means would cancel in float32
    mean = means.mean(0)
    variance = (variances + (means - mean).square()).mean(0)
    return mean.float(), variance.float(), inputs.numel() // inputs.shape[1] * world_size()


def _local_moments(inputs: Tensor) -> tuple[Tensor, Tensor]:
    if inputs.device.type == "cpu":  # ten times faster there
        mean, variance = torch.batch_norm_update_stats(inputs, None, None, 0.0)
    else:
        variance, mean = torch.var_mean(inputs.float(), [0, *range(2, inputs.ndim)], correction=0)
    return mean.float(), variance.float()


class _Normalized(torch.autograd.Function):
    """Inputs (B, C, ...) normalized by moments of all processes; all of them go backward together."""

    @staticmethod
    def forward(
        ctx: Any, inputs: Tensor, weight: Tensor, bias: Tensor, mean: Tensor, variance: Tensor, count: int, eps: float
    ) -> Tensor:
        ctx.save_for_backward(inputs, weight, mean, variance)
        ctx.count, ctx.eps = count, eps
        return functional.batch_norm(inputs, mean, variance, weight, bias, training=False, eps=eps)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        inputs, weight, mean, variance = ctx.saved_tensors
        # As if the moments were constants; what flows through them is linear in x^ and added to it.
        of_inputs, of_weight, of_bias = torch.ops.aten.native_batch_norm_backward(
            gradient, inputs, weight, mean, variance, None, None, False, ctx.eps, [True, True, True]
        )
        sums = torch.stack([of_weight, of_bias]).float()  # of g x^ and of g
        dist.all_reduce(sums)
        slope, level = weight.float() * torch.rsqrt(variance + ctx.eps) / -ctx.count * sums
        of_inputs += functional.batch_norm(inputs, mean, variance, slope, level, training=False, eps=ctx.eps)
        return of_inputs, of_weight, of_bias, None, None, None, None


_OURS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)


def make_global(module: nn.Module) -> None:
    """Puts `GlobalBatchNorm` in the place of every batch normalization inside, which keeps its tensors.

    Subclasses, such as those of timm that contain an activation, are left: they normalize within a process.
    """
    for name, child in module.named_children():
        if type(child) in _OURS:
            setattr(module, name, _global(child))  # type: ignore[arg-type]
        else:
            make_global(child)


def _global(norm: _BatchNorm) -> GlobalBatchNorm:
    made = GlobalBatchNorm(norm.num_features, norm.eps, norm.momentum, norm.affine, norm.track_running_stats)
    made.train(norm.training)
    made.weight, made.bias = norm.weight, norm.bias
    for name, buffer in norm.named_buffers():
        made.register_buffer(name, buffer)
    return made
