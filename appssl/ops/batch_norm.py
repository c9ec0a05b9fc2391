"""Batch normalization by mean and variance of the batches of all processes, so that their number changes nothing.

    mean = sum x / n,    var = sum (x - mean)^2 / n      over the rows and pixels of all processes

With one process it is torch's own. Gradients flow through the sums of all processes. Works on CPUs too, unlike
`torch.nn.SyncBatchNorm`.

Source: Ioffe and Szegedy, ICML 2015, arXiv 1502.03167, algorithm 1, over the global batch. Deviations: none.
"""

from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
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
            self._remember(mean.detach(), variance.detach() * (count / (count - 1)))
        shape = [1, -1, *[1] * (inputs.ndim - 2)]
        scale = torch.rsqrt(variance + self.eps)
        weight = scale if self.weight is None else scale * self.weight.float()
        shift = -mean * weight if self.bias is None else self.bias.float() - mean * weight
        return (inputs.float() * weight.view(shape) + shift.view(shape)).to(inputs.dtype)

    @torch.no_grad()
    def _remember(self, mean: Tensor, unbiased: Tensor) -> None:
        assert self.running_mean is not None
        assert self.running_var is not None
        assert self.num_batches_tracked is not None
        self.num_batches_tracked += 1
        share = 1 / float(self.num_batches_tracked) if self.momentum is None else self.momentum
        self.running_mean.lerp_(mean.to(self.running_mean), share)
        self.running_var.lerp_(unbiased.to(self.running_var), share)


def moments(inputs: Tensor) -> tuple[Tensor, Tensor, int]:
    """Mean and (biased) variance of each channel over all processes, (C,) float32 each, and how many numbers it has.

    Args:
        inputs: (B, C, ...), of equal shape on all processes.
    """
    inputs = inputs.float()
    dims = [0, *range(2, inputs.ndim)]
    count = inputs.numel() // inputs.shape[1] * world_size()
    mean = _Sum.apply(inputs.sum(dims)) / count
    centered = inputs - mean.view(1, -1, *[1] * (inputs.ndim - 2))
    return mean, _Sum.apply(centered.square().sum(dims)) / count, count


class _Sum(torch.autograd.Function):
    """Sum over all processes; each of them gets the sum of all gradients."""

    @staticmethod
    def forward(ctx: Any, local: Tensor) -> Tensor:
        total = local.clone()
        dist.all_reduce(total)
        return total

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Tensor:
        total = gradients[0].clone()
        dist.all_reduce(total)
        return total


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
