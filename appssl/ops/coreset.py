"""A part of an open set that covers a target set best: greedy rounds over centroids, ended when similarity falls.

Ideal is the part S of the open set, of at most b items, with the largest f(S) = sum_x max_{u in S} <x, u> over targets
x. Targets are replaced by K centroids, and in round t each centroid c takes its most similar item that no earlier round
has taken:

    u_c = argmax_{u not in S_1 .. S_{t-1}} <c, u>,    S_t = {u_c},    v_t = 1/K sum_c <c, u_c>

Rounds end when v_t < tau v_r, r a reference round; that round's items are not taken. Similarities are computed in
blocks and each centroid keeps a short list of candidates, filled again when it is used up, so memory is
O(K (list + block)) beside the features, and the result is that of the whole matrix.

Source: Kim et al., SimCore, CVPR 2023, arXiv 2303.11101. Official code: sungnyun/openssl-simcore, no licence; none of
it is used. Deviations: the reference round is a setting with a lower default, as the published 20 suits large open
sets; the search ends when the open set is used up; tau = 0 never ends it.
"""

from dataclasses import dataclass
from typing import Literal

import numpy as np

from appssl.errors import DataError
from appssl.ops.k_means import k_means
from appssl.ops.random import rng_for

_BLOCK_ELEMENTS = 1 << 22  # similarities held at once: 16 MB of float32
_SMALLEST_NORM = 1e-8  # an all-zero feature has similarity 0 to everything
_LAST_ROUND = 2**63  # stream of the draw that fills the budget


@dataclass(frozen=True)
class Coreset:
    """Result of `search`.

    Attributes:
        rows: (M,) int64 sorted positions in the open set. objective: v of every round that was looked at, the one that
            ended the search too. reason: `similarity`, `budget` or `exhausted`, what ended it.
    """

    rows: np.ndarray
    objective: tuple[float, ...]
    reason: Literal["similarity", "budget", "exhausted"]


def unit(features: np.ndarray) -> np.ndarray:
    """(N, D) float32 rows of length 1."""
    features = np.asarray(features, np.float32)
    return features / np.maximum(np.linalg.norm(features, axis=1, keepdims=True), _SMALLEST_NORM)


def centroids(features: np.ndarray, count: int, *, seed: int = 0) -> np.ndarray:
    """(K, D) float32 unit centroids by k-means of features (N, D), normalized before; the features if N <= count."""
    targets = unit(features)
    if len(targets) <= count:
        return targets
    return unit(k_means(targets, count, seed=seed).centers)


def facility_location(targets: np.ndarray, chosen: np.ndarray) -> float:
    """f(S) for unit targets (N, D) and unit chosen items (M, D), M > 0."""
    best = np.full(len(targets), -np.inf)
    block = max(1, _BLOCK_ELEMENTS // max(len(targets), 1))
    for start in range(0, len(chosen), block):
        np.maximum(best, (targets @ chosen[start : start + block].T).max(axis=1), out=best)
    return float(best.sum())


def search(
    centers: np.ndarray,
    features: np.ndarray,
    *,
    budget: int,
    stop_ratio: float = 0.95,
    reference_round: int = 5,
    list_size: int = 64,
    seed: int = 0,
) -> Coreset:
    """Chooses items of the open set.

    Args:
        centers: (K, D) and features: (N, D) of the open set, unit rows. budget: most items; of the round that exceeds
            it a random part is taken. stop_ratio: tau; 0: similarity never ends the search. reference_round: from 1;
            the search cannot end by similarity before it. list_size: of a centroid; never changes the result.
        seed: of the random part.
    Raises:
        DataError: if there is no centroid, nothing to choose from, or the widths differ.
    """
    _check(centers, features)
    used = np.zeros(len(features), bool)
    lists = _candidates(centers, features, used, list_size)
    objective: list[float] = []
    num_taken, reference = 0, -np.inf
    while num_taken < len(features):
        places = _first_unused(lists, centers, features, used)
        objective.append(float(np.einsum("kd,kd->k", centers, features[places], dtype=np.float64).mean()))
        if len(objective) == reference_round:
            reference = objective[-1]
        if stop_ratio > 0 and len(objective) >= reference_round and objective[-1] < stop_ratio * reference:
            return Coreset(np.flatnonzero(used), tuple(objective), "similarity")
        chosen = np.unique(places)
        if num_taken + len(chosen) >= budget:
            chosen = rng_for(seed, 0, _LAST_ROUND).permutation(chosen)[: budget - num_taken]
            used[chosen] = True
            return Coreset(np.flatnonzero(used), tuple(objective), "budget")
        used[chosen] = True
        num_taken += len(chosen)
    return Coreset(np.flatnonzero(used), tuple(objective), "exhausted")


def _first_unused(lists: np.ndarray, centers: np.ndarray, features: np.ndarray, used: np.ndarray) -> np.ndarray:
    """Position (K,) of the best unused item of each centroid; lists that are used up are filled again, in place."""
    free = ~used[lists]  # (K, list_size)
    empty = ~free.any(axis=1)
    if empty.any():
        lists[empty] = _candidates(centers[empty], features, used, lists.shape[1])
        free[empty] = ~used[lists[empty]]
    return lists[np.arange(len(lists)), free.argmax(axis=1)]


def _candidates(centers: np.ndarray, features: np.ndarray, used: np.ndarray, size: int) -> np.ndarray:
    """Positions (K, size) of the most similar unused items, best first; used ones at the end if there are too few."""
    size = min(size, len(features))
    block = max(size, _BLOCK_ELEMENTS // len(centers))
    best = np.empty((len(centers), 0), np.float32)
    places = np.empty((len(centers), 0), np.int64)
    for start in range(0, len(features), block):
        part = slice(start, start + block)
        similarity = centers @ features[part].T
        similarity[:, used[part]] = -np.inf
        here = np.broadcast_to(np.arange(start, start + similarity.shape[1]), similarity.shape)
        best, places = _largest(np.hstack([best, similarity]), np.hstack([places, here]), size)
    return places


def _largest(values: np.ndarray, places: np.ndarray, size: int) -> tuple[np.ndarray, np.ndarray]:
    """The `size` largest values of each row with their places, sorted; the lower place first where values are equal."""
    if values.shape[1] > size:
        chosen = np.argpartition(-values, size - 1, axis=1)[:, :size]
        values, places = (np.take_along_axis(array, chosen, 1) for array in (values, places))
    order = np.lexsort((places, -values), axis=1)
    return np.take_along_axis(values, order, 1), np.take_along_axis(places, order, 1)


def _check(centers: np.ndarray, features: np.ndarray) -> None:
    if len(centers) == 0 or len(features) == 0 or centers.shape[1:] != features.shape[1:]:
        raise DataError(
            f"a coreset needs targets and an open set with features of one width; got {centers.shape} and "
            f"{features.shape}."
        )
