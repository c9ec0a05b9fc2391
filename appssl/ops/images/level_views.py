"""Views as the levels 0..255 of their pixels; numbers for a network are made of them where the training is.

A quarter of the bytes go from the processes that load images to the training, and to its device.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from appssl.ops.images.pixels import Standardize


@dataclass
class LevelViews:
    """V views of each of B images.

    Attributes:
        levels: V tensors (B, side, side, 3) uint8. scale, shift: (3,) float32; a number is level * scale + shift.
    """

    levels: list[Tensor]
    scale: Tensor
    shift: Tensor

    def pin_memory(self) -> "LevelViews":
        pinned = [view.pin_memory() for view in self.levels]
        return replace(self, levels=pinned, scale=self.scale.pin_memory(), shift=self.shift.pin_memory())

    def render(self) -> list[Tensor]:
        """V tensors (B, 3, side, side) float32, on the device of the levels."""
        return [self._numbers(view.permute(0, 3, 1, 2)) for view in self.levels]

    def _numbers(self, levels: Tensor) -> Tensor:
        scale, shift = (values.view(3, 1, 1) for values in (self.scale, self.shift))
        made = torch.empty(levels.shape, dtype=torch.float32, device=levels.device)  # channels first, other than levels
        return torch.mul(levels, scale, out=made).add_(shift)


def level_views(views: Sequence[Sequence[np.ndarray]], standardize: Standardize) -> LevelViews:
    """Of B images with V views each, (side, side, 3) uint8; a view has one side over all images."""
    stacked = [torch.from_numpy(np.stack(view)) for view in zip(*views, strict=True)]
    return LevelViews(stacked, torch.from_numpy(standardize.scale), torch.from_numpy(standardize.shift))
