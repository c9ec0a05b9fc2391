"""A small residual 1-D network for signals of several channels.

Source: Wang et al., Time series classification from scratch, IJCNN 2017, arXiv 1611.06455 (fully convolutional and
residual baselines). Deviations: strides between blocks, GELU, fewer channels, to train on CPU cores.
"""

from itertools import pairwise
from typing import Literal

from pydantic import Field, PositiveInt, field_validator
from torch import Tensor, nn
from torch.nn import functional

from appssl.contracts import Meta
from appssl.errors import DataError
from appssl.settings import Settings


class Config(Settings):
    name: Literal["cnn1d"] = "cnn1d"
    widths: tuple[PositiveInt, ...] = Field((64, 96, 128), min_length=1, description="channels of the blocks")
    kernel: int = Field(7, ge=1, le=63, description="samples per kernel, odd")
    stride: int = Field(2, ge=1, le=8, description="stride of each block")

    @field_validator("kernel")
    @classmethod
    def _odd(cls, kernel: int) -> int:
        if kernel % 2 == 0:
            raise ValueError("must be odd, so that a block's two paths have equal lengths")
        return kernel


class CNN1D(nn.Module):
    """(B, C, T) float32 -> (B, F), F the last width; global average over time."""

    def __init__(self, channels: int, config: Config) -> None:
        super().__init__()
        self.num_features = config.widths[-1]
        sizes = (channels, *config.widths)
        self.blocks = nn.Sequential(*(_Block(i, o, config.kernel, config.stride) for i, o in pairwise(sizes)))

    def feature_map(self, signals: Tensor) -> Tensor:
        """(B, F, T'), before the mean over time is taken."""
        found: Tensor = self.blocks(signals)
        return found

    def forward(self, signals: Tensor) -> Tensor:
        return self.feature_map(signals).mean(dim=2)


class _Block(nn.Module):
    def __init__(self, inputs: int, outputs: int, kernel: int, stride: int) -> None:
        super().__init__()
        self.first = nn.Conv1d(inputs, outputs, kernel, stride, kernel // 2, bias=False)
        self.first_norm = nn.BatchNorm1d(outputs)
        self.second = nn.Conv1d(outputs, outputs, kernel, 1, kernel // 2, bias=False)
        self.second_norm = nn.BatchNorm1d(outputs)
        self.skip = nn.Conv1d(inputs, outputs, 1, stride, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        hidden = functional.gelu(self.first_norm(self.first(x)))
        return functional.gelu(self.second_norm(self.second(hidden)) + self.skip(x))


def build(config: Config, input_shape: tuple[int, ...], meta: Meta) -> CNN1D:
    """
    Raises:
        DataError: if the views are not signals (C, T).
    """
    if len(input_shape) != 2:
        raise DataError(f"backbones/cnn1d needs signals (C, T); these views have shape {input_shape}.")
    return CNN1D(input_shape[0], config)
