"""The toy of the method cards: unit vectors in the plane, by their angles in degrees."""

import math

import torch
from torch import Tensor


def at(*degrees: float) -> Tensor:
    angles = torch.tensor(degrees, dtype=torch.float64) * math.pi / 180
    return torch.stack([angles.cos(), angles.sin()], dim=1)


FIRST, SECOND, THIRD = at(0, 100, 220), at(20, 130, 200), at(-10, 90, 250)
