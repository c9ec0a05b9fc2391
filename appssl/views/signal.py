"""Random views of windows of body-worn sensors: noise, scale, turned devices, cut and reordered, warped, lost channels.

Two modes. `concat`: a view holds all devices, and all views are of the same devices. `devices`: every view is another
device, worn by the same person at the same time.

A device that is missing from a window (NaN) is zero in its views: the mean over the training data, after normalization.
`Signal.mask` says which are there. Mode `devices` is refused for such data, as a view would show nothing.

Source: Um et al., Data augmentation of wearable sensor data, ICMI 2017, arXiv 1706.00527 (jitter, scaling, rotation,
permutation, time warp). Deviations: a device is turned as a whole, by one rotation of the physical signal for all its
triples x, y, z, so that gravity turns with it, and by a limited angle; the time warp is one smooth bump of random size
instead of a cubic spline; dropout of channels and of devices is added. All but the rotation act on the normalized
signal.
"""

from collections.abc import Sequence
from typing import Any, Literal

import numpy as np
import torch
from pydantic import Field, model_validator
from torch import Tensor

from appssl.contracts import Meta
from appssl.errors import DataError
from appssl.ops.signals.changes import (
    drawn_channels,
    drawn_factors,
    drawn_turns,
    dropped,
    jitter,
    permuted,
    present,
    remaining,
    rotated,
    scaling,
    segment_order,
    time_warped,
    warped_places,
    zeroed,
)
from appssl.ops.signals.channels import vectors
from appssl.ops.signals.drawn_signals import Drawn, DrawnSignals, drawn_signals
from appssl.settings import Settings, nearest

_SMALLEST_STD = 1e-6  # keeps the normalized signal finite when a channel never changes
_LIGHT = 0.5  # share of jitter_std and scaling_std in the light augmentation


class Config(Settings):
    name: Literal["signal"] = "signal"
    mode: Literal["concat", "devices"] = Field("concat", description="views of all devices, or one device per view")
    num_views: int = Field(
        2, ge=1, le=16, description="views per window in mode concat; mode devices has one per device"
    )
    divisor: float | None = Field(
        None, gt=0, description="all values are divided by it; null: channels get mean 0 and standard deviation 1"
    )
    device: str | None = Field(None, description="device of the plain view in mode devices; null: the first")
    jitter: float = Field(0.8, ge=0, le=1, description="probability of added noise")
    jitter_std: float = Field(0.05, ge=0, description="its standard deviation, of that of the channel")
    scaling: float = Field(0.8, ge=0, le=1, description="probability that every channel is multiplied by a factor")
    scaling_std: float = Field(0.1, ge=0, description="standard deviation of the factors around 1")
    rotation: float = Field(0.5, ge=0, le=1, description="probability that every device is turned")
    rotation_degrees: float = Field(20.0, ge=0, le=180, description="largest angle, degrees")
    permutation: float = Field(0.2, ge=0, le=1, description="probability of cutting into segments in random order")
    segments: int = Field(4, ge=2, le=32, description="number of segments")
    time_warp: float = Field(0.3, ge=0, le=1, description="probability of local changes of speed")
    warp: float = Field(0.15, ge=0, lt=0.5, description="largest change of speed, share")
    dropout: float = Field(0.2, ge=0, le=1, description="probability of losing channels")
    dropout_share: float = Field(0.1, ge=0, le=1, description="share of channels that are then lost (zero)")
    device_dropout: float = Field(
        0.0, ge=0, lt=1, description="probability of each device to be lost (zero) in mode concat; one always stays"
    )

    render: Literal["loader", "device"] = Field(
        "loader",
        description="where views are computed: by the processes that load windows, or on the training's device",
    )

    @model_validator(mode="after")
    def _devices_to_lose(self) -> "Config":
        if self.device_dropout and self.mode == "devices":
            raise ValueError("device_dropout is for mode concat; a view of mode devices has one device")
        return self


class Signal:
    """Views of (devices, channels, time) float32 in physical units: (devices * channels, T) or (channels, T)."""

    def __init__(
        self, config: Config, *, mean: np.ndarray, std: np.ndarray, triples: np.ndarray, size: int, plain: int
    ):
        """
        Args:
            mean, std: (devices, channels) float. triples: (n, 3) int, channels x, y, z of every vector.
            size: samples of a window. plain: number of the device that the plain view shows in mode `devices`.
        """
        self.config = config
        self.render = config.render
        devices, channels = mean.shape
        self.num_views = config.num_views if config.mode == "concat" else devices
        self.input_shape = (devices * channels if config.mode == "concat" else channels, size)
        self._mean = mean.astype(np.float32)[:, :, None]
        self._scale = (1 / np.maximum(std, _SMALLEST_STD)).astype(np.float32)[:, :, None]
        self.triples, self._plain = triples, plain

    def views(self, sample: Any, rng: np.random.Generator) -> list[Tensor]:
        self._check(sample)
        if self.config.mode == "concat":
            return [_tensor(self._view(sample, slice(None), rng)) for _ in range(self.num_views)]
        return [_tensor(self._view(sample, slice(d, d + 1), rng)) for d in range(self.num_views)]

    def drawn(self, samples: Sequence[Any], rngs: Sequence[np.random.Generator]) -> DrawnSignals:
        """What `views` gives of each sample, with other noise, to be rendered in batches."""
        parts = [slice(None)] * self.num_views
        if self.config.mode == "devices":
            parts = [slice(d, d + 1) for d in range(self.num_views)]
        draws = []
        for sample, rng in zip(samples, rngs, strict=True):
            self._check(sample)
            draws.append([self._draw(sample[part], rng) for part in parts])
        return drawn_signals(samples, draws, mean=self._mean, scale=self._scale, triples=self.triples)

    def augment(self, sample: Any, rng: np.random.Generator) -> Tensor:
        """Weak jitter and scaling, and lost devices."""
        self._check(sample)
        part = self._part()
        signal = self._normalized(sample[part], part)
        signal = scaling(signal, _LIGHT * self.config.scaling_std, rng)
        signal = jitter(signal, _LIGHT * self.config.jitter_std, rng)
        return _tensor(self._without_lost(signal, present(sample[part]), rng))

    def plain(self, sample: Any) -> Tensor:
        return _tensor(self.normalized(sample))

    def normalized(self, sample: np.ndarray) -> np.ndarray:
        """The devices of the plain view, (devices, channels, T) float32."""
        self._check(sample)
        part = self._part()
        return zeroed(self._normalized(sample[part], part), present(sample[part]))

    def mask(self, sample: np.ndarray) -> Tensor:
        """(devices,) bool of those in the plain view: True where the window has the device."""
        return torch.from_numpy(present(sample[self._part()]))

    def _check(self, sample: np.ndarray) -> None:
        """Other devices or channels than in training would be stretched over the missing ones without a word."""
        wanted = self._mean.shape[:2]
        if sample.shape[:2] != wanted:
            raise DataError(
                f"a window has {sample.shape[0]} device(s) of {sample.shape[1]} channels, the model was made for "
                f"{wanted[0]} of {wanted[1]}. Give recordings of the same devices and channels."
            )

    def _part(self) -> slice:
        return slice(None) if self.config.mode == "concat" else slice(self._plain, self._plain + 1)

    def _normalized(self, signal: np.ndarray, part: slice) -> np.ndarray:
        return (signal - self._mean[part]) * self._scale[part]

    def _chances(self, rng: np.random.Generator) -> Any:
        """Whether a view is turned, cut, warped, scaled, gets noise, loses channels."""
        c = self.config
        return rng.random(6) < (c.rotation, c.permutation, c.time_warp, c.scaling, c.jitter, c.dropout)

    def _draw(self, signal: np.ndarray, rng: np.random.Generator) -> Drawn:
        """What is random about a view of a signal (devices, channels, T)."""
        c, (devices, channels, size) = self.config, signal.shape
        turn, cut, warp, scale, noise, drop = self._chances(rng)
        turns = drawn_turns(devices, c.rotation_degrees, rng) if turn else np.tile(np.eye(3), (devices, 1, 1))
        order = segment_order(size, c.segments, rng) if cut else np.arange(size)
        left, share = warped_places(size, c.warp, rng) if warp and size > 1 else (np.arange(size), np.zeros(size))
        factors = drawn_factors(devices, channels, c.scaling_std, rng) if scale else np.ones((devices, channels, 1))
        there = present(signal)
        kept = (
            drawn_channels(devices, channels, c.dropout_share, rng) if drop else np.ones((devices, channels, 1), bool)
        )
        if c.device_dropout:
            there = remaining(there, c.device_dropout, rng)
        return Drawn(
            turns=turns,
            left=order[left],
            right=order[np.minimum(left + 1, size - 1)],
            share=share,
            factors=factors[:, :, 0],
            kept=kept[:, :, 0] & there[:, None],
            noise=c.jitter_std if noise else 0.0,
            key=int(rng.integers(2**62)),
        )

    def _view(self, sample: np.ndarray, part: slice, rng: np.random.Generator) -> np.ndarray:
        c, signal = self.config, sample[part]
        turn, cut, warp, scale, noise, drop = self._chances(rng)
        if turn and len(self.triples):
            signal = rotated(signal, self.triples, c.rotation_degrees, rng)
        signal = self._normalized(signal, part)
        if cut:
            signal = permuted(signal, c.segments, rng)
        if warp:
            signal = time_warped(signal, c.warp, rng)
        if scale:
            signal = scaling(signal, c.scaling_std, rng)
        if noise:
            signal = jitter(signal, c.jitter_std, rng)
        if drop:
            signal = dropped(signal, c.dropout_share, rng)
        return self._without_lost(signal, present(sample[part]), rng)

    def _without_lost(self, signal: np.ndarray, there: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        """The signal (devices, channels, T) with zeros for devices that are missing, and for those lost at random."""
        if self.config.device_dropout:
            there = remaining(there, self.config.device_dropout, rng)
        return zeroed(signal, there)


def build(config: Config, meta: Meta) -> Signal:
    """
    Raises:
        DataError: if the data are not windows of signals, or `device` is not one of theirs.
    """
    missing = [
        fact
        for fact in ("devices", "channels", "window_samples", "channel_mean", "channel_std")
        if fact not in meta.facts
    ]
    if missing:
        raise DataError(
            f"views/signal needs windows of signals; the data of source {meta.source} say nothing of "
            f"{', '.join(missing)}. Choose views for the domain {meta.domain}: 'appssl list views'."
        )
    devices = list(meta.facts["devices"])
    if config.mode == "devices" and meta.facts.get("missing_devices") == "mask":
        raise DataError(
            "views/signal: mode devices needs every device in every window, and these data were prepared with "
            "missing_devices: mask. Use mode: concat, or prepare them with missing_devices: refuse."
        )
    if config.device is not None and config.device not in devices:
        raise DataError(f"views/signal: device {config.device!r} is not in the data.{nearest(config.device, devices)}")
    mean, std = (np.asarray(meta.facts[fact], np.float64) for fact in ("channel_mean", "channel_std"))
    if config.divisor is not None:
        mean, std = np.zeros_like(mean), np.full_like(std, config.divisor)
    return Signal(
        config,
        mean=mean,
        std=std,
        triples=vectors(meta.facts["channels"]),
        size=int(meta.facts["window_samples"]),
        plain=devices.index(config.device) if config.device else 0,
    )


def _tensor(signal: np.ndarray) -> Tensor:
    return torch.from_numpy(np.ascontiguousarray(signal.reshape(-1, signal.shape[2]), np.float32))
