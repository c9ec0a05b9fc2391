"""Random numbers as pure functions of (seed, epoch, index): the same for any number of workers, and after a resume."""

import numpy as np

_ORDER = 2**64 - 1  # the stream of an epoch's order; no sample has this number


def rng_for(seed: int, epoch: int, index: int) -> np.random.Generator:
    """Generator of one sample in one epoch; independent streams for different arguments (Philox, a counter cipher).

    Args:
        seed, epoch: below 2^32. index: below 2^64.
    """
    return np.random.Generator(np.random.Philox(key=np.array([(seed << 32) + epoch, index], dtype=np.uint64)))


def permutation(seed: int, epoch: int, size: int) -> np.ndarray:
    """Order of samples in an epoch, (size,) int64."""
    return rng_for(seed, epoch, _ORDER).permutation(size)
