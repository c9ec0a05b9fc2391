"""The best items of many users, a block of users at a time: never a users x items matrix of the whole."""

from collections.abc import Callable, Iterator

import numpy as np
from scipy import sparse

Scores = Callable[[np.ndarray], np.ndarray]


def seen_matrix(users: np.ndarray, items: np.ndarray, num_users: int, num_items: int) -> sparse.csr_matrix:
    """Which user has seen which item, (num_users, num_items) with sorted indices."""
    seen = sparse.csr_matrix((np.ones(len(users), dtype=np.float32), (users, items)), shape=(num_users, num_items))
    seen.sum_duplicates()
    return seen


def best_items(
    scores: Scores, users: np.ndarray, seen: sparse.csr_matrix, k: int, *, block: int = 256
) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Blocks of (users (U,), items (U, k) int64 in falling order of score); seen items are left out.

    Ties go to the smaller item number, so the order depends on the scores only. Where fewer than k items are left,
    -1 fills the row.

    Args:
        scores: users (U,) int64 -> (U, num_items) float32.
    """
    for start in range(0, len(users), block):
        chosen = users[start : start + block]
        values = np.array(scores(chosen), dtype=np.float32)
        rows = np.repeat(np.arange(len(chosen)), np.diff(seen.indptr)[chosen])
        values[rows, seen[chosen].indices] = -np.inf
        yield chosen, top_columns(values, k)


def top_columns(values: np.ndarray, k: int) -> np.ndarray:
    """Columns (U, k) int64 of the k largest values of each row (U, N); ties to the smaller column; -1 for -inf."""
    k_here = min(k, values.shape[1])
    # The k-th largest value, then everything above it and the first columns equal to it.
    border = -np.partition(-values, k_here - 1, axis=1)[:, k_here - 1 : k_here]
    above, equal = values > border, values == border
    room = k_here - above.sum(axis=1, keepdims=True)
    candidates = above | (equal & (np.cumsum(equal, axis=1) <= room))
    columns = np.nonzero(candidates)[1].reshape(len(values), k_here)
    found = np.take_along_axis(values, columns, axis=1)
    order = np.argsort(-found, axis=1, kind="stable")
    columns = np.take_along_axis(columns, order, axis=1)
    columns[np.isneginf(np.take_along_axis(found, order, axis=1))] = -1
    full = np.full((len(values), k), -1, dtype=np.int64)
    full[:, :k_here] = columns
    return full
