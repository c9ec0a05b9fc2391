"""Why an item is recommended: the items of the user's own history whose vectors are nearest to it."""

import numpy as np
import torch
from scipy import sparse
from torch import Tensor
from torch.nn import functional

from appssl.ops.interactions.topk import largest

_ELEMENTS = 1_000_000  # similarities at once; the vectors of histories are as many times larger as they are wide
_EPSILON = 1e-8


def nearest_in_history(
    vectors: Tensor, items: np.ndarray, users: np.ndarray, seen: sparse.csr_matrix, num: int
) -> tuple[np.ndarray, np.ndarray]:
    """The `num` nearest items of each user's history for each of the user's recommended items, by cosine.

    Users are taken together with others of about as long a history, so that little is padded.

    Args:
        vectors: (num_items, D) float of the whole catalogue, any scale. items: (U, k) int64 of users (U,) int64, -1 for
            none. seen: (num_users, num_items) with sorted indices, the histories.
    Returns:
        Items (U, k, num) int64 in falling order of cosine, ties to the smaller number, -1 where the history is shorter;
        their cosines (U, k, num) float32 in [-1, 1], -inf there.
    """
    unit = functional.normalize(vectors.detach().to(torch.float32), dim=1, eps=_EPSILON)
    near = np.full((*items.shape, num), -1)
    cosines = np.full((*items.shape, num), -np.inf, dtype=np.float32)
    lengths = np.diff(seen.indptr)[users]
    order = np.argsort(-lengths, kind="stable")
    order = order[lengths[order] > 0]
    while len(order):
        size = max(1, _ELEMENTS // (items.shape[1] * lengths[order[0]]))
        part, order = order[:size], order[size:]
        past = _padded(seen, users[part])
        similarity = unit[torch.from_numpy(items[part]).clamp(min=0)] @ unit[past.clamp(min=0)].mT  # (P, k, H)
        is_none = (past < 0)[:, None] | torch.from_numpy(items[part] < 0)[:, :, None]
        places, found = largest(similarity.masked_fill(is_none, -torch.inf).flatten(0, 1), num)
        chosen = past[torch.arange(len(part)).repeat_interleave(items.shape[1])[:, None], places.clamp(min=0)]
        near[part] = chosen.masked_fill(places < 0, -1).unflatten(0, (len(part), -1)).numpy()
        cosines[part] = found.unflatten(0, (len(part), -1)).cpu().numpy()
    return near, cosines


def _padded(seen: sparse.csr_matrix, users: np.ndarray) -> Tensor:
    """Histories (P, H) int64 of users, -1 behind the end of each."""
    rows = seen[users]
    lengths = np.diff(rows.indptr)
    padded = np.full((len(users), lengths.max()), -1, dtype=np.int64)
    padded[np.arange(lengths.max()) < lengths[:, None]] = rows.indices
    return torch.from_numpy(padded)
