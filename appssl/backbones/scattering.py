"""ScatSimCLR's encoder: a fixed scattering transform of each channel, and a small residual adapter that is trained.

    h = flatten(pool(adapter(S x))),    adapter: 3x3 convolution, BN, ReLU, then residual blocks relu(f(y) + skip(y))

with f of two 3x3 convolutions with BN, a ReLU between them; skip is the identity, or a 1x1 convolution with BN where
the width changes. S is `ops/scattering.py` of the image with 2^J mirrored pixels on each side, cut off again after it.

Adapters of the paper, h always of 2048: ScatSimCLR8 is the default; 12: stem 256, widths [128, 64, 128], blocks
[4, 4, 4]; 16: the same widths, blocks [6, 4, 6]; 30: stem 256, widths [128], blocks [30]. A step takes about as long as
its 3 (1 + L J + L^2 J (J - 1) / 2) maps an image: `angles: 8` is about four times as fast as 16.

Source: Kinakh et al., ScatSimCLR, ICCV workshops 2021, arXiv 2108.13939, section 3. Official code:
vkinakh/scatsimclr, MIT, src/models/scatnet_simclr.py. Deviations: `standardize` is not of the paper, whose code makes
such a layer and does not use it; the transform is without the subsampling inside that `ops/scattering.py` names.
"""

from typing import Literal

import torch
from pydantic import Field, PositiveInt, model_validator
from torch import Tensor, nn
from torch.nn import functional

from appssl.contracts import Meta
from appssl.errors import DataError
from appssl.ops.scattering import FilterBank, filter_bank, num_maps, scatter
from appssl.settings import Settings


class Config(Settings):
    name: Literal["scattering"] = "scattering"
    scales: int = Field(2, ge=1, le=5, description="J: maps have 1 / 2^J of the image's side")
    angles: int = Field(16, ge=1, le=64, description="L: angles of the wavelets of a scale")
    stem: int = Field(32, ge=1, description="channels of the adapter's first convolution")
    widths: tuple[PositiveInt, ...] = Field((64, 128), min_length=1, description="channels of its residual stages")
    blocks: tuple[PositiveInt, ...] = Field((4, 4), min_length=1, description="residual blocks of each stage")
    pool: int = Field(
        4, ge=1, description="side of the map that is flattened: features are pool^2 times the last width"
    )
    standardize: bool = Field(False, description="first give every map mean 0 and variance 1 over the batch")

    @model_validator(mode="after")
    def _as_many(self) -> "Config":
        if len(self.widths) != len(self.blocks):
            raise ValueError(f"widths names {len(self.widths)} stages and blocks {len(self.blocks)}")
        return self


class Scattering(nn.Module):
    """(B, C, H, W) float -> (B, F), F = pool^2 * last width; the filters are no parameters and not in its state."""

    psi: Tensor
    rows: Tensor
    columns: Tensor

    def __init__(self, config: Config, input_shape: tuple[int, ...]) -> None:
        super().__init__()
        channels, height, width = input_shape
        self.margin = 2**config.scales  # what libraries take: one map's pixel
        sides = (height + 2 * self.margin, width + 2 * self.margin)
        bank = filter_bank(*sides, scales=config.scales, angles=config.angles)
        for name, filters in bank._asdict().items():
            self.register_buffer(name, filters.float(), persistent=False)
        maps = channels * num_maps(config.scales, config.angles)
        self.norm = nn.BatchNorm2d(maps, affine=False) if config.standardize else nn.Identity()
        self.adapter = _adapter(maps, config).to(memory_format=torch.channels_last)
        self.pool = nn.AdaptiveAvgPool2d(config.pool)
        self.num_features = config.widths[-1] * config.pool**2

    def forward(self, images: Tensor) -> Tensor:
        maps = self.maps(images).contiguous(memory_format=torch.channels_last)
        return self.pool(self.adapter(self.norm(maps))).flatten(1)

    @torch.no_grad()
    def maps(self, images: Tensor) -> Tensor:
        """Scattering maps (B, C * num_maps, H / 2^J, W / 2^J) float32, those of the first channel first."""
        with torch.autocast(device_type=images.device.type, enabled=False):
            padded = functional.pad(images.float(), (self.margin,) * 4, mode="reflect")
            found = scatter(padded.flatten(0, 1), FilterBank(self.psi, self.rows, self.columns))
        return found[..., 1:-1, 1:-1].unflatten(0, (len(images), -1)).flatten(1, 2)


def _adapter(maps: int, config: Config) -> nn.Sequential:
    layers: list[nn.Module] = [_conv(maps, config.stem), nn.ReLU()]
    before = config.stem
    for width, count in zip(config.widths, config.blocks, strict=True):
        for _ in range(count):
            layers.append(_Block(before, width))
            before = width
    return nn.Sequential(*layers)


class _Block(nn.Module):
    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.first = _conv(inputs, outputs)
        self.second = _conv(outputs, outputs)
        self.skip = nn.Identity() if inputs == outputs else _conv(inputs, outputs, size=1)

    def forward(self, x: Tensor) -> Tensor:
        return functional.relu(self.second(functional.relu(self.first(x))) + self.skip(x))


def _conv(inputs: int, outputs: int, *, size: int = 3) -> nn.Sequential:
    return nn.Sequential(nn.Conv2d(inputs, outputs, size, padding=size // 2, bias=False), nn.BatchNorm2d(outputs))


def build(config: Config, input_shape: tuple[int, ...], meta: Meta) -> Scattering:
    """
    Raises:
        DataError: if the views are not images (C, H, W) with sides of two or more times 2^J, and multiples of it.
    """
    step = 2**config.scales
    if len(input_shape) != 3 or any(side % step or side < 2 * step for side in input_shape[1:]):
        raise DataError(
            f"backbones/scattering needs images (C, H, W) whose sides are multiples of 2^scales = {step}, {2 * step} "
            f"or more; these views have shape {input_shape}. Set the size of the views, or backbone.scales."
        )
    return Scattering(config, input_shape)
