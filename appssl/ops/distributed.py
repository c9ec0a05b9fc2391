"""Tensors of all processes of a distributed training."""

import torch
import torch.distributed as dist
from torch import Tensor


def world_size() -> int:
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


def rank() -> int:
    return dist.get_rank() if world_size() > 1 else 0


def gather(local: Tensor) -> Tensor:
    """Rows of all processes, (W * B, ...) in order of rank; gradients flow to the local rows only.

    Every process must hold the same number of rows. With one process, `local` itself.
    """
    if world_size() == 1:
        return local
    parts = [torch.empty_like(local) for _ in range(world_size())]
    dist.all_gather(parts, local.detach().contiguous())
    parts[rank()] = local
    return torch.cat(parts)
