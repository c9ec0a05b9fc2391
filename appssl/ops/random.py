"""Random numbers as pure functions of (seed, epoch, index): the same for any number of workers, and after a resume."""

import numpy as np


def rng_for(seed: int, epoch: int, index: int) -> np.random.Generator:
    """Generator of one sample in one epoch; independent streams for different arguments (Philox, a counter cipher)."""
    return np.random.Generator(np.random.Philox(key=[(seed << 32) + epoch, index]))


def permutation(seed: int, epoch: int, size: int) -> np.ndarray:
    """Order of samples in an epoch, (size,) int64."""
    return rng_for(seed, epoch, -1 & 0xFFFFFFFFFFFFFFFF).permutation(size)
