"""Users with the same set of items, found by a hash of each set: no pair of users is compared.

The hash of a set is the sum modulo 2^64 of a 64-bit hash of each item, twice with different hashes: sets that are equal
have equal sums in any order, and n users with different sets collide with a probability of about n^2 / 2^129.
"""

import numpy as np
import polars as pl

_SALTS = (0x9E3779B97F4A7C15, 0xC2B2AE3D27D4EB4F)


class SetHashes:
    """Hashes (num_users, 2) uint64 of the sets of items, user by user."""

    def __init__(self, num_users: int, num_items: int) -> None:
        numbers = np.arange(num_items, dtype=np.uint64)
        self._of_item = [_mixed(numbers, salt) for salt in _SALTS]
        self.values = np.zeros((num_users, len(_SALTS)), dtype=np.uint64)

    def add(self, users: np.ndarray, items: np.ndarray) -> None:
        """Takes events (N,) sorted by user, every user with all of its items, each once."""
        if not len(users):
            return
        first = np.flatnonzero(np.diff(users, prepend=users[0] + 1) != 0)
        for column, of_item in enumerate(self._of_item):
            self.values[users[first], column] = np.add.reduceat(of_item[items], first)

    def groups(self) -> np.ndarray:
        """Number of users (num_users,) int64 with the same set, the user included."""
        frame = pl.DataFrame({"a": self.values[:, 0], "b": self.values[:, 1]})
        return frame.select(pl.len().over("a", "b").cast(pl.Int64)).to_series().to_numpy()


def _mixed(numbers: np.ndarray, salt: int) -> np.ndarray:
    """A hash (N,) uint64 of numbers. Source: Steele et al., Fast splittable pseudorandom number generators, 2014."""
    with np.errstate(over="ignore"):
        z = numbers * np.uint64(0x9E3779B97F4A7C15) + np.uint64(salt)
        z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        return z ^ (z >> np.uint64(31))
