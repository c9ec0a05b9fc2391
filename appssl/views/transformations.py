"""A window as it is, and the same window under each of eight changes, for a learner that tells the changes apart.

View 0 is the window, view k the window after change k: noise, scaled, rotated, negated, time_flipped, permuted,
time_warped, channel_shuffled.

Source: Saeed et al., Multi-task self-supervised learning for human activity detection, IMWUT 3(2), 2019, arXiv
1907.11879, section 3.2; noise and scale as in ColloSSL, arXiv 2202.00758. Deviations: a device is rotated as a whole,
about any axis by any angle, before channels are scaled; the time warp is that of views/signal.
"""

from typing import Any, Literal

import numpy as np
import torch
from pydantic import Field
from torch import Tensor

from appssl.contracts import Meta
from appssl.errors import DataError
from appssl.ops.signals.changes import jitter, permuted, rotated, scaling, time_warped, zeroed
from appssl.settings import Settings, nearest
from appssl.views.signal import Config as SignalConfig
from appssl.views.signal import build as build_signal

CHANGES = (
    "noise", "scaled", "rotated", "negated", "time_flipped", "permuted", "time_warped", "channel_shuffled",
)  # fmt: skip


class Config(Settings):
    name: Literal["transformations"] = "transformations"
    device: str | None = Field(None, description="device of the windows; null: all, their channels side by side")
    divisor: float | None = Field(
        None, gt=0, description="all values are divided by it; null: channels get mean 0 and standard deviation 1"
    )
    noise_std: float = Field(0.05, ge=0, description="standard deviation of the noise, after scaling of the channels")
    scaling_std: float = Field(0.1, ge=0, description="standard deviation of the factors around 1")
    segments: int = Field(4, ge=2, le=32, description="parts that are put in another order")
    warp: float = Field(0.3, ge=0, lt=0.5, description="largest change of speed, share")


class Transformations:
    """(devices, channels, time) float32 in physical units -> nine views (channels of all used devices, T)."""

    def __init__(self, config: Config, meta: Meta) -> None:
        self.config = config
        mode: Literal["concat", "devices"] = "concat" if config.device is None else "devices"
        # Scaling of channels, the plain view and the check of devices are those of views/signal.
        self._signal = build_signal(
            SignalConfig(
                mode=mode, device=config.device, divisor=config.divisor, scaling_std=config.scaling_std,
                jitter_std=config.noise_std,
            ),
            meta,
        )  # fmt: skip
        self.num_views = 1 + len(CHANGES)
        self.input_shape = self._signal.input_shape

    def views(self, sample: Any, rng: np.random.Generator) -> list[Tensor]:
        plain = self._signal.normalized(sample)
        turned = self._signal.normalized(rotated(sample, self._signal.triples, 180.0, rng))
        c = self.config
        changed = [
            jitter(plain, c.noise_std, rng),
            scaling(plain, c.scaling_std, rng),
            turned,
            -plain,
            plain[:, :, ::-1],
            permuted(plain, c.segments, rng),
            time_warped(plain, c.warp, rng),
            shuffled(plain, rng),
        ]
        there = self._signal.mask(sample).numpy()  # a device that is missing is zero, and gets no noise
        return [_tensor(zeroed(signal, there)) for signal in (plain, *changed)]

    def augment(self, sample: Any, rng: np.random.Generator) -> Tensor:
        return self._signal.augment(sample, rng)

    def plain(self, sample: Any) -> Tensor:
        return self._signal.plain(sample)


def shuffled(signal: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Channels of each device in a random order, the same for all devices."""
    return signal[:, rng.permutation(signal.shape[1])]


def _tensor(signal: np.ndarray) -> Tensor:
    return torch.from_numpy(np.ascontiguousarray(signal.reshape(-1, signal.shape[2]), np.float32))


def build(config: Config, meta: Meta) -> Transformations:
    """
    Raises:
        DataError: if the data are not windows of signals, or `device` is not one of theirs.
    """
    devices = meta.facts.get("devices", [])
    if devices and config.device is not None and config.device not in devices:
        raise DataError(
            f"views/transformations: device {config.device!r} is not in the data.{nearest(config.device, devices)}"
        )
    return Transformations(config, meta)
