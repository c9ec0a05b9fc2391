"""An encoder that gives a distribution of codes, and a decoder: an autoencoder whose features can be either's.

    (mu, log sigma^2) = linear(encoder(x)),  log sigma^2 >= -6        hidden(z): perceptron        x': linear(hidden(z))

Features are the code mu, or what the decoder makes of it before its last layer, hidden(mu): the informative embedding,
which needs no training of its own.

Source: Livne, cMIM, 2025, arXiv 2502.19642; the floor of log sigma^2 is that of the code of MIM, Livne et al., arXiv
1910.03175, seraphlabs-ca/MIM, MIT. Deviations: the decoder is a perceptron whatever the inputs are; it sees the code
and not the input, so that the embedding depends on x through mu only.
"""

from math import prod
from typing import Any, Literal

from pydantic import Field
from torch import Tensor, nn

from appssl import registry
from appssl.contracts import Meta
from appssl.errors import DataError
from appssl.ops.heads import mlp
from appssl.registry import Method
from appssl.settings import Settings

_LEAST_LOG_VARIANCE = -6.0  # densities are not bounded: without it the variance of a code could tend to 0


class Config(Settings):
    name: Literal["encoder_decoder"] = "encoder_decoder"
    encoder: Method("backbones") = Field("small_cnn", description="network before the codes")  # type: ignore[valid-type]
    width: int = Field(64, ge=1, description="width of a code, d in the paper")
    hidden: int = Field(512, ge=1, description="width of the hidden layers of the decoder")
    num_hidden: int = Field(2, ge=1, description="hidden layers of the decoder")
    features: Literal["decoder", "code"] = Field(
        "decoder", description="what the network gives: the last hidden layer of the decoder, or the code"
    )


class EncoderDecoder(nn.Module):
    """(B, *input_shape) -> (B, F), F the width of the features that are chosen."""

    def __init__(self, config: Config, encoder: Any, input_shape: tuple[int, ...]) -> None:
        super().__init__()
        c = config
        self.of_decoder = c.features == "decoder"
        self.width = c.width
        self.num_features = c.hidden if self.of_decoder else c.width
        self.input_shape = input_shape
        self.encoder = encoder
        self.moments = nn.Linear(encoder.num_features, 2 * c.width)
        layers = mlp(c.width, c.hidden, c.hidden, num_layers=c.num_hidden, norm=False)
        self.hidden = nn.Sequential(*layers, nn.ReLU())
        self.output = nn.Linear(c.hidden, prod(input_shape))

    def forward(self, inputs: Tensor) -> Tensor:
        mean, _ = self.encode(inputs)
        return self.hidden(mean) if self.of_decoder else mean

    def encode(self, inputs: Tensor) -> tuple[Tensor, Tensor]:
        """Mean mu and log variance of the codes of inputs, each (B, width)."""
        mean, log_variance = self.moments(self.encoder(inputs)).chunk(2, dim=1)
        return mean, log_variance.clamp(min=_LEAST_LOG_VARIANCE)

    def decode(self, codes: Tensor) -> Tensor:
        """(B, width) -> (B, *input_shape)."""
        output: Tensor = self.output(self.hidden(codes))
        return output.unflatten(1, self.input_shape)


def build(config: Config, input_shape: tuple[int, ...], meta: Meta) -> EncoderDecoder:
    """
    Raises:
        DataError: if the views are tokens, which the decoder cannot give.
    """
    if len(input_shape) < 2:
        raise DataError(
            "backbones/encoder_decoder decodes images (C, H, W) and signals (C, T); these views have shape "
            f"{input_shape}. Choose another backbone: 'appssl list backbones'."
        )
    encoder = registry.build("backbones", config.encoder, input_shape, meta)
    return EncoderDecoder(config, encoder, input_shape)
