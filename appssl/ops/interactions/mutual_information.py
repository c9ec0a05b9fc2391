"""Mutual information of all pairs of item features, from their counts, in nats.

    MI(a, b) = sum_{u,v} P(u,v) log( P(u,v) / (P(u) P(v)) ) = H(a) + H(b) - H(a, b)

P are shares of the items. A missing value is a value like any other. A feature with several values counts as one: the
set of its values, so two items agree in it only if all its values do. With many values and few items the estimate is
too large: a feature that tells items apart has the entropy of the other as mutual information with it.
"""

from collections.abc import Mapping, Sequence
from itertools import combinations
from typing import Any

import numpy as np

_ODD = np.array([0x9E3779B97F4A7C15, 0xBF58476D1CE4E5B9], dtype=np.uint64)  # multipliers of the hash (splitmix64)


def field_codes(tokens: np.ndarray, fields: Sequence[Mapping[str, Any]]) -> np.ndarray:
    """A number for the value of each field of each item, (N, k) int64; equal numbers are equal values.

    Args:
        tokens: (N, L) int64, 0 for missing. fields: with `start` and `length`, in columns of `tokens`. A field of more
            than one column is a set: its order does not matter, and its code is a hash of 64 bits.
    """
    blocks = [np.asarray(tokens[:, f["start"] : f["start"] + f["length"]]) for f in fields]
    columns = [block[:, 0] if block.shape[1] == 1 else _hashed_sets(block) for block in blocks]
    return np.stack(columns, axis=1) if columns else np.zeros((len(tokens), 0), dtype=np.int64)


def mutual_information(codes: np.ndarray) -> np.ndarray:
    """(k, k) float64 nats, symmetric, >= 0; the diagonal is the entropy of each feature.

    Args:
        codes: (N, k) int64, any numbers; N >= 1. One table of counts for each of the k (k - 1) / 2 pairs.
    """
    number = codes.shape[1]
    values = [np.unique(column, return_inverse=True)[1].astype(np.int64) for column in codes.T]
    entropies = [_entropy(np.bincount(column)) for column in values]
    information = np.diag(np.array(entropies, dtype=np.float64))
    for a, b in combinations(range(number), 2):
        pairs = values[a] * (values[b].max() + 1) + values[b]
        joint = _entropy(np.unique(pairs, return_counts=True)[1])
        information[a, b] = information[b, a] = max(0.0, entropies[a] + entropies[b] - joint)
    return information


def _entropy(counts: np.ndarray) -> float:
    """Of the shares of counts > 0, in nats."""
    total = counts.sum()
    return float(np.log(total) - (counts * np.log(counts)).sum() / total)


def _hashed_sets(block: np.ndarray) -> np.ndarray:
    """(N,) int64: the sum of a hash of each token, which is the same in any order; 0 without a token."""
    mixed = block.astype(np.uint64) * _ODD[0]
    mixed = (mixed ^ (mixed >> np.uint64(30))) * _ODD[1]
    mixed ^= mixed >> np.uint64(27)
    return np.where(block == 0, np.uint64(0), mixed).sum(axis=1, dtype=np.uint64).view(np.int64)
