"""Images that show the same though their pixels differ: pairs of embeddings with a large cosine similarity, in groups.

    s_ij = <x_i, x_j> / (|x_i| |x_j|)    i and j are near-duplicates if s_ij >= threshold; a group is what pairs join

Every pair is looked at, a block of rows against a block of rows, and nothing that grows with the number of pairs is
kept: beside the embeddings (and a normalized copy) memory is a few numbers per row, however many pairs are found.
Cosines are float32: one within 1e-6 of the threshold may fall on either side of it.

Source: cosine threshold within an embedding as in Abbas et al., SemDeDup, arXiv 2303.09540, section 3. Deviations: the
search is exhaustive and not within clusters; groups are kept for a person to decide, nothing is removed here.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from scipy import sparse
from scipy.sparse.csgraph import connected_components

from appssl.errors import DataError

BLOCK = 2048  # rows: 16 MB of similarities at once


@dataclass(frozen=True)
class NearDuplicates:
    """Row i of all is one embedding.

    Attributes:
        group: (N,) int64, the smallest row of the group; -1 for a row without near-duplicate.
        similarity: (N,) float32, largest cosine to another row if that reaches the threshold, else NaN.
        nearest: (N,) int64, the row that has it (the first of equals); -1 where there is none.
        crosses: (N,) bool, whether a near-duplicate lies in another part.
    """

    group: np.ndarray
    similarity: np.ndarray
    nearest: np.ndarray
    crosses: np.ndarray


def near_duplicates(
    embeddings: np.ndarray, parts: np.ndarray, *, threshold: float, block: int = BLOCK
) -> NearDuplicates:
    """Groups of rows that pairs with cosine >= threshold join.

    Args:
        embeddings: (N, D) float, any scale; a row of zeros is similar to nothing.
        parts: (N,) int, which part of a split each row is in. threshold: in (0, 1].
    Raises:
        DataError: if embeddings are not finite, or the threshold is not in (0, 1].
    """
    if not 0 < threshold <= 1:
        raise DataError(f"a cosine threshold lies above 0 and at most at 1, not at {threshold:g}.")
    rows = normalized(embeddings)
    count = len(rows)
    best, nearest = np.full(count, -np.inf, np.float32), np.full(count, -1, np.int64)
    root, crosses = np.arange(count), np.zeros(count, bool)
    for first, second, similarity in _blocks(rows, block):
        found = similarity >= np.float32(threshold)
        if not found.any():
            continue
        i, j = np.nonzero(found)
        i, j = i + first.start, j + second.start
        similarity[~found] = -np.inf
        _keep_best(best, nearest, first, second, similarity)
        _keep_best(best, nearest, second, first, similarity.T)
        other = parts[i] != parts[j]
        crosses[i[other]] = crosses[j[other]] = True
        root = joined(root, i, j)
    alone = nearest < 0
    return NearDuplicates(np.where(alone, -1, root), np.where(alone, np.nan, best).astype(np.float32), nearest, crosses)


def normalized(embeddings: np.ndarray) -> np.ndarray:
    """Rows (N, D) float32 of length 1; rows of zeros stay.

    Raises:
        DataError: if they are not finite.
    """
    rows = np.array(embeddings, np.float32)
    if not np.isfinite(rows).all():
        raise DataError("embeddings are not finite; the encoder that made them diverged. Pretrain with a smaller lr.")
    largest = np.abs(rows).max(axis=1, keepdims=True, initial=0)
    rows /= np.where(largest > 0, largest, 1)  # squares of very large or small values would overflow or vanish
    length = np.linalg.norm(rows, axis=1, keepdims=True)
    rows /= np.where(length > 0, length, 1)
    return rows


def _blocks(rows: np.ndarray, block: int) -> Iterator[tuple[slice, slice, np.ndarray]]:
    """Slices of rows and of columns, and their cosines: every pair i < j once; -inf elsewhere."""
    count = len(rows)
    for start in range(0, count, block):
        first = slice(start, min(start + block, count))
        for other in range(start, count, block):
            second = slice(other, min(other + block, count))
            similarity = rows[first] @ rows[second].T
            if other == start:
                similarity[np.tril_indices(len(similarity))] = -np.inf
            yield first, second, similarity


def _keep_best(best: np.ndarray, nearest: np.ndarray, own: slice, other: slice, similarity: np.ndarray) -> None:
    """Notes for the rows `own` the most similar of the rows `other`, if it is better than what is known."""
    column = similarity.argmax(axis=1)
    value = similarity[np.arange(len(similarity)), column]
    better = value > best[own]
    best[own][better] = value[better]
    nearest[own][better] = column[better] + other.start


def joined(root: np.ndarray, i: np.ndarray, j: np.ndarray) -> np.ndarray:
    """Union-find: roots (N,) int64 after joining the sets of i[k] and j[k]. The root of a set is its smallest row."""
    count = len(root)
    edges = sparse.coo_array((np.ones(len(i), bool), (root[i], root[j])), shape=(count, count))
    number, label = connected_components(edges, directed=False)
    smallest = np.full(number, count)
    np.minimum.at(smallest, label, np.arange(count))
    return smallest[label[root]]
