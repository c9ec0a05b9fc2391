"""The best items of many users, a block of users at a time: never a users x items matrix of the whole.

A row is searched by the largest value of each chunk of neighboring columns. The k chunks with the largest of these
(ties to the first chunk) hold the k best values of the row: each of them has a value that comes before all values
elsewhere. So a row is read once, at the speed of memory, and what is sorted are k chunks. On any device.
"""

from collections.abc import Callable, Iterator

import numpy as np
import torch
from scipy import sparse
from torch import Tensor
from torch.nn import functional

from appssl.errors import DataError

Scores = Callable[[np.ndarray], np.ndarray | Tensor]  # users (U,) int64 -> (U, num_items)

_CHUNK = 64  # columns; a multiple of 32 is what the reduction over neighbors is fast for
_BLOCK_ELEMENTS = 7_000_000  # float32: beyond 32 MB the allocator takes new pages from the kernel for every block
_LEAST_USERS = 32  # of a block: with fewer, a matrix product reads the vectors of the items too often
_LOW = 2**32 - 1


def seen_matrix(users: np.ndarray, items: np.ndarray, num_users: int, num_items: int) -> sparse.csr_matrix:
    """Which user has seen which item, (num_users, num_items) with sorted indices."""
    seen = sparse.csr_matrix((np.ones(len(users), dtype=np.float32), (users, items)), shape=(num_users, num_items))
    seen.sum_duplicates()
    return seen


def product_scores(users: Tensor, items: Tensor) -> Scores:
    """Scores as products of vectors (num_users, D) and (num_items, D), all written to the same memory.

    A new array for every block costs as much as half of the product where the kernel has to find the pages for it.
    """
    kept = users.new_empty(0)

    def scores(chosen: np.ndarray) -> Tensor:
        nonlocal kept
        if kept.shape[0] < len(chosen):
            kept = users.new_empty(len(chosen), len(items))
        return torch.matmul(users[torch.from_numpy(chosen).to(users.device)], items.T, out=kept[: len(chosen)])

    return scores


def best_items(
    scores: Scores, users: np.ndarray, seen: sparse.csr_matrix, k: int, *, block: int | None = None
) -> Iterator[tuple[np.ndarray, np.ndarray, np.ndarray]]:
    """Blocks of (users (U,), items (U, k) int64 in falling order of score, their scores (U, k) float32).

    Seen items are left out. Ties go to the smaller item number, so the order depends on the scores only. Where fewer
    than k items are left, item -1 with score -inf fills the row.

    Args:
        scores: of the full catalogue, array or tensor on any device, compared as float32.
        block: users at once; if not given, as many as make about 28 MB of scores.
    Raises:
        DataError: if a score is NaN.
    """
    size = block or max(_LEAST_USERS, _BLOCK_ELEMENTS // seen.shape[1])
    for start in range(0, len(users), size):
        chosen = users[start : start + size]
        values = _plain(scores(chosen))
        rows = np.repeat(np.arange(len(chosen)), np.diff(seen.indptr)[chosen])
        places = torch.from_numpy(rows * seen.shape[1] + seen[chosen].indices).to(values.device)
        flat = values.view(-1)
        hidden = flat[places]
        flat[places] = -torch.inf
        items, found = largest(values, k)
        flat[places] = hidden  # the array may be the caller's own
        yield chosen, items.cpu().numpy(), found.cpu().numpy()


def _plain(scores: np.ndarray | Tensor) -> Tensor:
    """As float32 that may be written to; a copy only where it must be."""
    if isinstance(scores, Tensor):
        return scores.detach().to(torch.float32).contiguous()
    return torch.from_numpy(np.require(scores, np.float32, ["C", "W"]))


def largest(values: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """Columns (U, k) int64 and values (U, k) of the k largest of each row (U, N) float32; ties to the smaller column.

    Column -1 stands where the value is -inf, and both fill the row where N < k.

    Raises:
        DataError: if a value is NaN.
    """
    columns = _columns(values, k)
    found = values.gather(1, columns)
    if found.isnan().any():
        raise DataError("a score is not a number (NaN), so items cannot be ranked. Train the model again.")
    columns = columns.masked_fill(found.isneginf(), -1)
    missing = (0, k - columns.shape[1])
    return functional.pad(columns, missing, value=-1), functional.pad(found, missing, value=-torch.inf)


def _columns(values: Tensor, k: int) -> Tensor:
    """Columns (U, min(k, N)) of the largest values; NaN comes first."""
    num_columns = values.shape[1]
    if num_columns <= 2 * k * _CHUNK:
        return _places(values, k)
    whole = num_columns // _CHUNK * _CHUNK
    chunks = values[:, :whole].unflatten(1, (-1, _CHUNK))
    best = _columns(chunks.amax(2), k).sort(dim=1).values  # in order, so that of equal values the first stays first
    rows = torch.arange(len(values), device=values.device)[:, None]
    places = _places(torch.cat([chunks[rows, best].flatten(1), values[:, whole:]], dim=1), k)
    inside = best.gather(1, (places // _CHUNK).clamp(max=k - 1)) * _CHUNK + places % _CHUNK
    return torch.where(places < k * _CHUNK, inside, places - k * _CHUNK + whole)


def _places(values: Tensor, k: int) -> Tensor:
    """As `_columns`, of short rows. Value and place make one integer: no two are equal, so the order is certain."""
    keys = _ordered(values)
    keys <<= 32
    keys += _LOW - torch.arange(values.shape[1], device=values.device)
    return _LOW - (_largest_keys(keys, min(k, values.shape[1])) & _LOW)


def _largest_keys(keys: Tensor, k: int) -> Tensor:
    """The k largest (U, k) of each row (U, C) int64, in falling order."""
    if keys.device.type != "cpu":
        return keys.topk(k, dim=1).values
    found = np.partition(keys.numpy(), keys.shape[1] - k, axis=1)[:, -k:]  # five times as fast as topk of torch
    return torch.from_numpy(found).sort(dim=1, descending=True).values


def _ordered(values: Tensor) -> Tensor:
    """int64 in the order of float32 values, NaN above all: the bits of negative ones are turned round. -0.0 is 0.0."""
    bits = (values + 0.0).masked_fill_(values.isnan(), torch.nan).view(torch.int32)
    bits ^= (bits >> 31) & 0x7FFFFFFF
    return bits.to(torch.int64)
