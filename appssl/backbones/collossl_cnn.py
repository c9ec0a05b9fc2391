"""The 1-D network of ColloSSL: three convolutions, each with dropout, and the largest value over time.

Source: Jain et al., ColloSSL, IMWUT 6(1), 2022, arXiv 2202.00758; sizes as in Tang et al., Exploring contrastive
learning in human activity recognition, 2020, arXiv 2011.11542. Deviations: the penalty on kernels is that of `fit`,
`weight_decay`.
"""

from itertools import pairwise
from typing import Literal

from pydantic import Field, PositiveInt, model_validator
from torch import Tensor, nn

from appssl.contracts import Meta
from appssl.errors import DataError
from appssl.settings import Settings


class Config(Settings):
    name: Literal["collossl_cnn"] = "collossl_cnn"
    widths: tuple[PositiveInt, ...] = Field((32, 64, 96), min_length=1, description="channels of the convolutions")
    kernels: tuple[PositiveInt, ...] = Field((24, 16, 8), min_length=1, description="samples of their kernels")
    dropout: float = Field(0.1, ge=0, lt=1, description="share of values set to zero after each convolution")

    @model_validator(mode="after")
    def _as_many(self) -> "Config":
        if len(self.widths) != len(self.kernels):
            raise ValueError("widths and kernels must be equally many")
        return self


class ColloSSLCNN(nn.Module):
    """(B, C, T) float32 -> (B, F), F the last width. `blocks` can be frozen one by one."""

    def __init__(self, channels: int, config: Config) -> None:
        super().__init__()
        self.num_features = config.widths[-1]
        sizes = pairwise((channels, *config.widths))
        self.blocks = nn.Sequential(
            *(
                nn.Sequential(nn.Conv1d(i, o, kernel), nn.ReLU(), nn.Dropout(config.dropout))
                for (i, o), kernel in zip(sizes, config.kernels, strict=True)
            )
        )

    def feature_map(self, signals: Tensor) -> Tensor:
        """(B, F, T'), before the largest value over time is taken."""
        found: Tensor = self.blocks(signals)
        return found

    def forward(self, signals: Tensor) -> Tensor:
        return self.feature_map(signals).amax(dim=2)


def build(config: Config, input_shape: tuple[int, ...], meta: Meta) -> ColloSSLCNN:
    """
    Raises:
        DataError: if the views are not signals (C, T), or shorter than the kernels need.
    """
    if len(input_shape) != 2:
        raise DataError(f"backbones/collossl_cnn needs signals (C, T); these views have shape {input_shape}.")
    needed = 1 + sum(kernel - 1 for kernel in config.kernels)
    if input_shape[1] < needed:
        raise DataError(
            f"backbones/collossl_cnn: windows have {input_shape[1]} samples, kernels {config.kernels} need {needed}. "
            "Set longer windows, a higher sampling_hz, or smaller backbone.kernels."
        )
    return ColloSSLCNN(input_shape[0], config)
