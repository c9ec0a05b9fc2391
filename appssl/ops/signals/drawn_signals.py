"""Views of signals of which only what is random about them has been drawn; their samples are computed in batches.

`render()` gives what `views/signal.py` gives of every window by itself, within rounding, but for the noise, which is
another draw of the same distribution: it comes from a key of each view (`ops/counter_noise.py`), so it is the same for
any batch or device. It does not wait for the device.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, fields, replace
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from appssl.ops.counter_noise import gaussian

_NUMBERS = 2**24  # of windows that are rendered at once: 64 MB for each tensor


class Drawn(NamedTuple):
    """One view of D devices with C channels and T samples.

    Attributes:
        turns: (D, 3, 3) rotations. left, right, share: (T,), where each sample is taken from, and how much of the right
        one. factors: (D, C). kept: (D, C) bool; the others are zero. noise: its standard deviation. key: of the noise.
    """

    turns: np.ndarray
    left: np.ndarray
    right: np.ndarray
    share: np.ndarray
    factors: np.ndarray
    kept: np.ndarray
    noise: float
    key: int


@dataclass
class DrawnSignals:
    """V views of each of B windows of D devices; a view shows P of them: all, or one.

    Attributes:
        windows: (B, D, C, T) float32, NaN where a device is missing. mean, scale: (D, C, 1) float32.
        triples: (n, 3) int64, channels x, y, z of each vector.
        turns: (V, B, P, 3, 3) float32. left, right: (V, B, T) int32. share: (V, B, T) float32.
        factors: (V, B, P, C) float32. kept: (V, B, P, C) bool. noise: (V, B) float32. keys: (V, B) int64.
        steps: names of the steps that any view takes; the others are left out.
    """

    windows: Tensor
    mean: Tensor
    scale: Tensor
    triples: Tensor
    turns: Tensor
    left: Tensor
    right: Tensor
    share: Tensor
    factors: Tensor
    kept: Tensor
    noise: Tensor
    keys: Tensor
    steps: tuple[str, ...]

    def pin_memory(self) -> "DrawnSignals":
        tensors = {each.name: getattr(self, each.name).pin_memory() for each in fields(self) if each.name != "steps"}
        return replace(self, **tensors)

    @torch.no_grad()
    def render(self) -> list[Tensor]:
        """V tensors (B, P * C, T) float32, on the device of the windows."""
        with torch.autocast(self.windows.device.type, enabled=False):
            return [self._view(number) for number in range(len(self.keys))]

    def _view(self, number: int) -> Tensor:
        count, size = len(self.windows), self.windows.shape[3]
        made = torch.empty((count, self.kept.shape[2] * self.kept.shape[3], size), device=self.windows.device)
        for part in self._parts():
            made[part] = self._signals(number, part).flatten(1, 2)
        return made

    def _parts(self) -> Iterator[slice]:
        size = max(1, _NUMBERS // self.windows[0].numel())
        return (slice(start, start + size) for start in range(0, len(self.windows), size))

    def _signals(self, number: int, part: slice) -> Tensor:
        """(N, P, C, T)."""
        shown = slice(None) if self.kept.shape[2] == self.windows.shape[1] else slice(number, number + 1)
        signals = self.windows[part, shown]
        if "rotation" in self.steps:
            signals = _turned(signals, self.turns[number, part], self.triples)
        signals = (signals - self.mean[shown]) * self.scale[shown]
        if "time" in self.steps:
            signals = _moved(signals, *(each[number, part] for each in (self.left, self.right, self.share)))
        if "scaling" in self.steps:
            signals = signals * self.factors[number, part, :, :, None]
        if "jitter" in self.steps:
            noise = gaussian(self.keys[number, part], signals[0].numel()).view(signals.shape)
            signals = noise.mul_(self.noise[number, part, None, None, None]).add_(signals)
        return signals.where(self.kept[number, part, :, :, None], 0.0)


def drawn_signals(
    windows: Sequence[np.ndarray],
    drawn: Sequence[Sequence[Drawn]],
    *,
    mean: np.ndarray,
    scale: np.ndarray,
    triples: np.ndarray,
) -> DrawnSignals:
    """Views of B windows (D, C, T) float32, with V draws for each; mean and scale (D, C, 1) float32."""
    by_view = list(zip(*drawn, strict=True))  # V of B

    def table(name: str, dtype: type) -> np.ndarray:
        return np.array([[getattr(each, name) for each in view] for view in by_view], dtype)

    turns, factors, noise = (table(name, np.float32) for name in ("turns", "factors", "noise"))
    left, right, share = table("left", np.int32), table("right", np.int32), table("share", np.float32)
    still = np.arange(windows[0].shape[2])
    taken = {
        "rotation": bool(len(triples)) and bool((turns != np.eye(3, dtype=np.float32)).any()),
        "time": bool((left != still).any() or share.any()),
        "scaling": bool((factors != 1).any()),
        "jitter": bool(noise.any()),
    }
    arrays = {
        "windows": np.stack(windows).astype(np.float32, copy=False),
        "mean": mean,
        "scale": scale,
        "triples": triples.astype(np.int64),
        "turns": turns,
        "left": left,
        "right": right,
        "share": share,
        "factors": factors,
        "kept": table("kept", np.bool_),
        "noise": noise,
        "keys": table("key", np.int64),
    }
    tensors = {name: torch.from_numpy(np.ascontiguousarray(values)) for name, values in arrays.items()}
    return DrawnSignals(**tensors, steps=tuple(name for name, is_taken in taken.items() if is_taken))


def _turned(signals: Tensor, turns: Tensor, triples: Tensor) -> Tensor:
    """All vectors (n, 3) of each device (N, P, C, T) by its rotation (N, P, 3, 3)."""
    result = signals.clone()
    result[:, :, triples] = turns[:, :, None] @ signals[:, :, triples]
    return result


def _moved(signals: Tensor, left: Tensor, right: Tensor, share: Tensor) -> Tensor:
    """Between two samples each (N, T) of signals (N, P, C, T), all channels alike."""
    low, high = (signals.gather(3, each.long()[:, None, None].expand_as(signals)) for each in (left, right))
    return low + (high - low) * share[:, None, None]
