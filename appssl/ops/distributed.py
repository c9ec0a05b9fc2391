"""Tensors of all processes of a distributed training."""

from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor


def world_size() -> int:
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


def rank() -> int:
    return dist.get_rank() if world_size() > 1 else 0


def mean_of_processes(local: Tensor) -> Tensor:
    """Mean over all processes, without gradient; `local` itself with one. All processes must call this together."""
    if world_size() == 1:
        return local
    total = local.clone()
    dist.all_reduce(total)
    return total / world_size()


def gather(local: Tensor) -> Tensor:
    """Rows of all processes, (W * B, ...) in order of rank; with one process, `local` itself.

    Gradients flow back to the process that the rows came from and are summed there over the losses of all processes.
    Averaged over processes, as DDP does, they are the gradient of the mean of all losses. Every process must hold the
    same number of rows, and must run backward when the others do.
    """
    return local if world_size() == 1 else _Gather.apply(local)


class _Gather(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, local: Tensor) -> Tensor:
        parts = [torch.empty_like(local, memory_format=torch.contiguous_format) for _ in range(world_size())]
        dist.all_gather(parts, local.contiguous())
        return torch.cat(parts)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Tensor:
        total = gradients[0].clone(memory_format=torch.contiguous_format)  # the sum is written in place
        dist.all_reduce(total)
        return total.chunk(world_size())[rank()]
