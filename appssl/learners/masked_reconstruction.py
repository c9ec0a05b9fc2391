"""Masked reconstruction: spans of a window are blanked in all channels, and the network says what was there.

Of a window x (C, T) a set M of n = max(1, round(mask_ratio T)) times is chosen: spans begin anywhere and have length l
with probability proportional to p (1 - p)^(l - 1), l = 1..longest_span; they are laid down one after the other until n
times are covered, the last one cut. The network sees x with zeros at M, but for a share `unchanged` of the windows,
which it sees as they are; from its output the decoder makes y (C, T). With B windows

    L = 1 / (B n C) sum_b sum_{t in M_b} sum_c (y_bct - x_bct)^2

A backbone that offers `feature_map(x) -> (B, F, T')` is decoded from that map, stretched linearly to T; any other from
its features (B, F), which are then the same at all times. Both reach two convolutions with a learned position in
between, so that times can be told apart also without a map. The decoder is not kept.

Source: Xu et al., LIMU-BERT: Unleashing the potential of unlabeled data for IMU sensing applications, SenSys 2021;
constants from the official code, dapowan/LIMU-BERT-Public (utils.py, config/mask.json: ratio 0.15, p 0.2, longest span
10, masked with probability 0.8). Deviations: the encoder is the given backbone and no transformer; a light decoder of
convolutions; channels are scaled as the views say; a span may begin where an earlier one lies, and may reach the last
time of a window (in that code never).
"""

from typing import Literal

import torch
from pydantic import Field, field_validator
from torch import Tensor, nn

from appssl.contracts import Batch, Context, Progress, Step
from appssl.errors import DataError
from appssl.settings import Settings

_POSITION_STD = 0.02  # small beside the features at the start, as for learned positions of transformers


class Config(Settings):
    name: Literal["masked_reconstruction"] = "masked_reconstruction"
    mask_ratio: float = Field(0.15, gt=0, lt=1, description="share of the times of a window that are to be found")
    span_stop: float = Field(0.2, gt=0, le=1, description="probability p that a span ends after each of its samples")
    longest_span: int = Field(10, ge=1, description="samples of the longest span")
    unchanged: float = Field(0.2, ge=0, lt=1, description="share of windows that the network sees without blanks")
    hidden: int = Field(64, ge=1, description="channels inside the decoder")
    kernel: int = Field(5, ge=1, le=63, description="samples of the decoder's kernel, odd")

    @field_validator("kernel")
    @classmethod
    def _odd(cls, kernel: int) -> int:
        if kernel % 2 == 0:
            raise ValueError("must be odd, so that as many samples come out as go in")
        return kernel


class Decoder(nn.Module):
    """Map (B, F, T') or features (B, F) -> (B, C, T)."""

    def __init__(self, features: int, channels: int, size: int, config: Config) -> None:
        super().__init__()
        self.size = size
        self.expand = nn.Conv1d(features, config.hidden, 1)
        self.position = nn.Parameter(_POSITION_STD * torch.randn(config.hidden, size))
        self.shrink = nn.Conv1d(config.hidden, channels, config.kernel, padding=config.kernel // 2)

    def forward(self, features: Tensor) -> Tensor:
        if features.ndim == 2:
            stretched = features[:, :, None].expand(-1, -1, self.size)
        else:
            stretched = nn.functional.interpolate(features, self.size, mode="linear", align_corners=False)
        found: Tensor = self.shrink(nn.functional.relu(self.expand(stretched) + self.position))
        return found


class MaskedReconstruction(nn.Module):
    is_mean_over_samples = True

    def __init__(self, config: Config, context: Context) -> None:
        super().__init__()
        self.config = config
        self.backbone = context.backbone
        channels, size = context.input_shape
        width = int(self.backbone.num_features)  # type: ignore[arg-type]
        self.decoder = Decoder(width, channels, size, config)
        lengths = torch.arange(1, config.longest_span + 1)
        chance = config.span_stop * (1 - config.span_stop) ** (lengths - 1).double()
        self.register_buffer("chance", (chance / chance.sum()).float())

    def forward(self, batch: Batch) -> Step:
        """Loss of `views`, each (B, C, T)."""
        c, windows = self.config, torch.cat(batch["views"])
        hidden = spans(len(windows), windows.shape[2], c.mask_ratio, self.chance)  # type: ignore[arg-type]
        hidden = hidden.to(windows.device)
        blanked = hidden & (torch.rand(len(windows), 1) >= c.unchanged).to(windows.device)
        seen = windows.masked_fill(blanked[:, None], 0.0)
        found = self.decoder(self._encoded(seen))
        loss = masked_error(found, windows, hidden)
        blank = masked_error(torch.zeros_like(windows), windows, hidden)
        return Step(loss, {"error_of_zeros": blank.detach()})

    def _encoded(self, windows: Tensor) -> Tensor:
        """(B, F, T') where the backbone gives a map, else (B, F)."""
        feature_map = getattr(self.backbone, "feature_map", self.backbone)
        found: Tensor = feature_map(windows)
        return found

    def after_update(self, progress: Progress) -> None:
        pass

    def export(self) -> nn.Module:
        return self.backbone


def spans(num: int, size: int, ratio: float, chance: Tensor) -> Tensor:
    """Masks (num, size) bool on the CPU, each with exactly max(1, round(ratio size)) times, in spans.

    Args:
        chance: probability of the lengths 1, 2, ..., of a span, (longest,).
    """
    count = max(1, round(ratio * size))
    lengths = 1 + torch.multinomial(chance.cpu(), num * count, replacement=True).reshape(num, count, 1)
    starts = torch.randint(size, (num, count, 1))
    times = torch.arange(size)
    covered = (times >= starts) & (times < starts + lengths)  # (num, spans, size)
    # Number of the first span that covers a time. Times without one come last, in random order: they are needed where
    # the spans fall on each other or beyond the end.
    first = torch.where(covered.any(1), covered.byte().argmax(1).float(), count + torch.rand(num, size))
    chosen = first.argsort(dim=1, stable=True)[:, :count]
    return torch.zeros(num, size, dtype=torch.bool).scatter(1, chosen, True)


def masked_error(found: Tensor, target: Tensor, hidden: Tensor) -> Tensor:
    """Mean squared difference of (B, C, T) at the times (B, T) that are hidden; float32."""
    squared = (found.float() - target.float()).square().mean(1)
    return (squared * hidden).sum() / hidden.sum()


def build(config: Config, context: Context) -> MaskedReconstruction:
    """
    Raises:
        DataError: if the views are not signals (C, T), or too short to leave anything to see.
    """
    shape = context.input_shape
    if len(shape) != 2:
        raise DataError(f"learners/masked_reconstruction needs signals (C, T); these views have shape {shape}.")
    if max(1, round(config.mask_ratio * shape[1])) >= shape[1]:
        raise DataError(
            f"learners/masked_reconstruction: windows have {shape[1]} samples, and mask_ratio {config.mask_ratio:g} "
            "leaves none to see. Set longer windows or a smaller learner.mask_ratio."
        )
    return MaskedReconstruction(config, context)
