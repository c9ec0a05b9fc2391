"""Hand-made features instead of a network: mean, std, min, max and energy of every channel. Nothing is learned.

For a channel x of T values: the mean, the standard deviation sqrt(mean (x - mean)^2), the smallest and largest value,
and the energy mean x^2. The features are the means of all channels, then their deviations, and so on: (5 C,).

Source: statistics of windows as usual in activity recognition, e.g. Altun, Barshan and Tuncel, Pattern Recognition
43(10), 2010 (mean, variance, minimum and maximum beside others). Deviations: no skewness, kurtosis, autocorrelation or
spectral peaks, and no reduction by principal components; energy is added.
"""

from math import prod
from typing import Literal

import torch
from torch import Tensor, nn

from appssl.contracts import Meta
from appssl.errors import DataError
from appssl.settings import Settings

_STATISTICS = 5


class Config(Settings):
    name: Literal["summary_features"] = "summary_features"


class SummaryFeatures(nn.Module):
    """(B, C, ...) float -> (B, 5 C) float32, over all that follows the channels."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.num_features = _STATISTICS * channels

    def forward(self, signals: Tensor) -> Tensor:
        x = signals.float().flatten(2)
        mean = x.mean(2)
        std = (x - mean[:, :, None]).square().mean(2).sqrt()
        return torch.cat([mean, std, x.amin(2), x.amax(2), x.square().mean(2)], dim=1)


def build(config: Config, input_shape: tuple[int, ...], meta: Meta) -> SummaryFeatures:
    """
    Raises:
        DataError: if the views have no channels and values, (C, ...).
    """
    if len(input_shape) < 2 or not prod(input_shape):
        raise DataError(
            "backbones/summary_features needs views of channels, such as signals (C, T); these have shape "
            f"{input_shape}."
        )
    return SummaryFeatures(input_shape[0])
