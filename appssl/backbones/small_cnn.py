"""A small residual network for images of 32 to 96 pixels, made to train on CPU cores.

Source: He et al., ResNet, CVPR 2016, arXiv 1512.03385, section 3.3, basic blocks; a stride-2 stem instead of 3x3 max
pooling keeps it cheap. About 0.3 million parameters with the default widths.
"""

from typing import Literal

import torch
from pydantic import Field, PositiveInt
from torch import Tensor, nn
from torch.nn import functional

from appssl.contracts import Meta
from appssl.errors import DataError
from appssl.settings import Settings


class Config(Settings):
    name: Literal["small_cnn"] = "small_cnn"
    widths: tuple[PositiveInt, ...] = Field(
        (32, 64, 128), min_length=1, description="channels of the stages, each halves the side"
    )


class SmallCNN(nn.Module):
    """(B, C, H, W) float32 -> (B, F), F the last width."""

    def __init__(self, channels: int, widths: tuple[int, ...]) -> None:
        super().__init__()
        self.num_features = widths[-1]
        self.stem = _conv(channels, widths[0], stride=2)
        before = (widths[0], *widths[:-1])
        self.stages = nn.Sequential(
            *(_Block(i, o, 1 if n == 0 else 2) for n, (i, o) in enumerate(zip(before, widths, strict=True)))
        )

    def forward(self, images: Tensor) -> Tensor:
        images = images.contiguous(memory_format=torch.channels_last)
        return self.stages(functional.relu(self.stem(images))).mean(dim=(2, 3))

    def stage_features(self, images: Tensor) -> list[Tensor]:
        """Pooled maps of the stages, (B, width) each; the last is what `forward` gives."""
        maps = functional.relu(self.stem(images.contiguous(memory_format=torch.channels_last)))
        pooled = []
        for stage in self.stages:
            maps = stage(maps)
            pooled.append(maps.mean(dim=(2, 3)))
        return pooled


# oneDNN 3.13 (torch 2.15) writes beyond its memory in the backward pass of strided 1 x 1 convolutions of fewer input
# channels, channels last, odd batch, two threads. Can go when tests/backbones/test_small_cnn.py passes without it.
_LEAST_STRIDED = 16


class _Block(nn.Module):
    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.first = _conv(inputs, outputs, stride=stride)
        self.second = _conv(outputs, outputs, stride=1)
        same = inputs == outputs and stride == 1
        self.skip = nn.Identity() if same else _skip(inputs, outputs, stride)

    def forward(self, x: Tensor) -> Tensor:
        return functional.relu(self.second(functional.relu(self.first(x))) + self.skip(x))


def _conv(inputs: int, outputs: int, *, stride: int, size: int = 3) -> nn.Sequential:
    return nn.Sequential(nn.Conv2d(inputs, outputs, size, stride, size // 2, bias=False), nn.BatchNorm2d(outputs))


def _skip(inputs: int, outputs: int, stride: int) -> nn.Module:
    """A 1 x 1 convolution of every `stride`-th pixel."""
    if stride == 1 or inputs >= _LEAST_STRIDED:
        return _conv(inputs, outputs, stride=stride, size=1)
    return nn.Sequential(_EveryOther(stride), _conv(inputs, outputs, stride=1, size=1))


class _EveryOther(nn.Module):
    def __init__(self, stride: int) -> None:
        super().__init__()
        self.stride = stride

    def forward(self, x: Tensor) -> Tensor:
        return x[..., :: self.stride, :: self.stride].contiguous(memory_format=torch.channels_last)


def build(config: Config, input_shape: tuple[int, ...], meta: Meta) -> SmallCNN:
    """
    Raises:
        DataError: if the views are not images (C, H, W) of at least 8 pixels.
    """
    if len(input_shape) != 3 or min(input_shape[1:]) < 8:
        raise DataError(
            f"backbones/small_cnn needs images (C, H, W) of 8 pixels or more; these views have shape {input_shape}."
        )
    # Channels last: about three times faster on a CPU.
    return SmallCNN(input_shape[0], config.widths).to(memory_format=torch.channels_last)
