"""A small convolutional autoencoder that removes noise; its pooled codes are features that need no labels.

    L = mean over all entries of (D(E(x + n)) - x)^2,    n ~ N(0, sigma^2),    code of x: mean of E(x) over positions

The encoder is made of blocks 3 x 3 convolution, batch normalization, ReLU, 2 x 2 maximum; the decoder mirrors it with
doubling in place of the maximum and ends in a sigmoid, so inputs lie in 0..1. Training ends when the loss of held-out
inputs, without noise, has not fallen for `patience` epochs, and the best weights are kept. Codes are without noise.

Source: the autoencoder of Chakraborty et al., G-SimCLR, 2020, arXiv 2009.12007. Official code: ariG23498/G-SimCLR,
Apache-2.0. Deviations: what is held out is a part of the training inputs, not the test part.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from appssl.errors import DataError
from appssl.ops.random import permutation

Read = Callable[[np.ndarray], Tensor]  # positions (B,) int64 -> inputs (B, C, H, W) float32 in 0..1
_BATCH = 256  # inputs that are encoded at once


class DenoisingAutoencoder(nn.Module):
    """(B, C, H, W) in 0..1 -> the same; sides of any size of at least 2^blocks."""

    def __init__(self, channels: int, widths: tuple[int, ...]) -> None:
        super().__init__()
        self.down = nn.ModuleList(_block(i, o) for i, o in pairwise([channels, *widths]))
        self.up = nn.ModuleList(_block(i, o) for i, o in pairwise([*widths[::-1], widths[0]]))
        self.last = nn.Conv2d(widths[0], channels, 3, padding=1)

    def encode(self, inputs: Tensor) -> Tensor:
        """Codes (B, last width, h, w)."""
        return self._encode(inputs)[0]

    def codes(self, inputs: Tensor) -> Tensor:
        """Pooled codes (B, last width)."""
        return self.encode(inputs).mean(dim=(2, 3))

    def forward(self, inputs: Tensor) -> Tensor:
        hidden, sides = self._encode(inputs)
        for block, side in zip(self.up, reversed(sides), strict=True):
            hidden = functional.interpolate(block(hidden), size=side)
        return self.last(hidden).sigmoid()

    def _encode(self, inputs: Tensor) -> tuple[Tensor, list[torch.Size]]:
        hidden, sides = inputs, []
        for block in self.down:
            sides.append(hidden.shape[2:])
            hidden = functional.max_pool2d(block(hidden), 2)
        return hidden, sides


@dataclass(frozen=True)
class Fitted:
    """model: in evaluation mode, the best weights. losses: of the held-out inputs after each epoch."""

    model: DenoisingAutoencoder
    losses: tuple[float, ...]


def denoising_loss(model: nn.Module, inputs: Tensor, noise: Tensor) -> Tensor:
    """Scalar L; inputs and noise (B, C, H, W)."""
    return (model(inputs + noise) - inputs).square().mean()


def fit_autoencoder(
    read: Read,
    num_inputs: int,
    *,
    widths: tuple[int, ...] = (32, 64, 128),
    sigma: float = 0.01,
    epochs: int = 20,
    patience: int = 2,
    batch_size: int = 64,
    lr: float = 1e-3,
    holdout: float = 0.1,
    threads: int = 2,
    seed: int = 0,
) -> Fitted:
    """Trains with Adam on the CPU; the global random numbers stay as they are.

    Args:
        num_inputs: `read` knows positions 0..num_inputs-1. holdout: share of them that is held out, at least one.
    Raises:
        DataError: if there are fewer than three inputs, or they are not images of at least 2^len(widths) pixels.
    """
    _check(read, num_inputs, len(widths))
    order = permutation(seed, 0, num_inputs)
    num_held_out = max(1, round(holdout * num_inputs))
    held_out, trained = np.sort(order[:num_held_out]), order[num_held_out:]
    generator = torch.Generator().manual_seed(seed)
    with _threads(threads), torch.random.fork_rng(devices=[]), torch.enable_grad():
        torch.manual_seed(seed)
        model = DenoisingAutoencoder(read(held_out[:1]).shape[1], widths)
        solver = torch.optim.Adam(model.parameters(), lr=lr)
        losses: list[float] = []
        best = model.state_dict()
        for epoch in range(epochs):
            shuffled = trained[permutation(seed, epoch + 1, len(trained))]
            for rows in _parts(shuffled, batch_size):
                inputs = read(rows)
                noise = sigma * torch.randn(inputs.shape, generator=generator)
                solver.zero_grad(set_to_none=True)
                denoising_loss(model.train(), inputs, noise).backward()
                solver.step()
            losses.append(held_out_loss(model, read, held_out))
            if losses[-1] <= min(losses):
                best = {name: value.clone() for name, value in model.state_dict().items()}
            if len(losses) - 1 - int(np.argmin(losses)) >= patience:
                break
    model.load_state_dict(best)
    return Fitted(model.eval(), tuple(losses))


@torch.no_grad()
def held_out_loss(model: nn.Module, read: Read, rows: np.ndarray) -> float:
    """L without noise, mean over rows."""
    model.eval()
    total = 0.0
    for start in range(0, len(rows), _BATCH):
        inputs = read(rows[start : start + _BATCH])
        total += float(denoising_loss(model, inputs, torch.zeros(()))) * len(inputs)
    return total / len(rows)


@torch.no_grad()
def encode_all(model: DenoisingAutoencoder, read: Read, num_inputs: int, *, threads: int = 2) -> np.ndarray:
    """Pooled codes (N, last width) float32 of all inputs."""
    model.eval()
    with _threads(threads):
        parts = [model.codes(read(rows)) for rows in _parts(np.arange(num_inputs), _BATCH, least=1)]
    return torch.cat(parts).numpy()


def _parts(rows: np.ndarray, size: int, *, least: int = 2) -> Iterator[np.ndarray]:
    """Consecutive parts; one of fewer than `least` rows is left out, as batch normalization cannot train on it."""
    for start in range(0, len(rows), size):
        if len(part := rows[start : start + size]) >= least:
            yield part


def _block(inputs: int, outputs: int) -> nn.Sequential:
    convolution = nn.Conv2d(inputs, outputs, 3, padding=1, bias=False)
    return nn.Sequential(convolution, nn.BatchNorm2d(outputs), nn.ReLU())


@contextmanager
def _threads(count: int) -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def _check(read: Read, num_inputs: int, num_blocks: int) -> None:
    if num_inputs < 3:
        raise DataError(f"an autoencoder needs three or more images, got {num_inputs}.")
    shape = tuple(read(np.arange(1)).shape[1:])
    if len(shape) != 3 or min(shape[1:]) < 2**num_blocks:
        raise DataError(
            f"an autoencoder of {num_blocks} blocks needs images (C, H, W) of {2**num_blocks} pixels or more, got "
            f"{shape}. Give fewer widths, or other data."
        )
