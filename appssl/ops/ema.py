"""A teacher: a copy of networks whose weights follow those of the student as an exponential moving average."""

import copy
import math
from typing import TypeVar

import torch
from torch import nn

Network = TypeVar("Network", bound=nn.Module)


def teacher_of(student: Network) -> Network:
    """A copy without gradients. Running statistics are its own: it sees its own inputs."""
    return copy.deepcopy(student).requires_grad_(False)


@torch.no_grad()
def follow(teacher: nn.Module, student: nn.Module, momentum: float) -> None:
    """teacher <- momentum * teacher + (1 - momentum) * student, for all parameters; both have the same structure."""
    for mine, theirs in zip(teacher.parameters(), student.parameters(), strict=True):
        mine.lerp_(theirs, 1 - momentum)


def cosine_momentum(base: float, step: int, num_steps: int) -> float:
    """From `base` at step 0 towards 1 at `num_steps`: 1 - (1 - base) (cos(pi step / num_steps) + 1) / 2."""
    return 1 - (1 - base) * (math.cos(math.pi * step / num_steps) + 1) / 2
