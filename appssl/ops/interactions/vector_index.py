"""An index of item vectors for search by inner product, built with the package `faiss` (MIT; extra `recsys`).

Up to EXACT_UP_TO vectors it is flat: a search compares the query with all of them and is exact. Beyond, vectors are
divided into lists by k-means, and a search looks into the lists nearest to the query; how many is doubled until the
recall against the exact search, measured here, reaches RECALL_GOAL. IVF rather than HNSW: it takes hardly more memory
than the vectors, and goes from fast to exact by one number.
Source: Johnson et al., Billion-scale similarity search with GPUs, 2017, arXiv 1702.08734 (IVF). Deviations: none.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from scipy import sparse

from appssl.errors import SettingsError
from appssl.ops.interactions.topk import best_items, product_scores

EXACT_UP_TO = 200_000  # vectors: of width 64 a query takes 13 million multiplications, about two milliseconds of a core
RECALL_GOAL = 0.95
K = 20
_QUERIES = 1000  # users that the recall is measured on
_LISTS = 4  # times the square root of the number of vectors, the lower end of what faiss recommends


@dataclass(frozen=True)
class VectorIndex:
    """content: what `faiss.read_index` reads. facts: how it was built, and its recall where it is not exact."""

    content: bytes
    facts: Mapping[str, Any]


def load_faiss() -> Any:
    """The package.

    Raises:
        SettingsError: if it is not installed.
    """
    try:
        import faiss
    except ImportError as error:
        raise SettingsError(
            f"--index faiss needs the package faiss: pip install 'appssl[recsys]', or leave out --index: {error}."
        ) from None
    return faiss


def build_index(items: np.ndarray, users: np.ndarray) -> VectorIndex:
    """Index of items (N, D) float32, row i is number i; recall is measured on users (U, D) float32 as queries.

    Recall@20 is the share of the 20 items of the largest inner products that the index returns.
    """
    faiss = load_faiss()
    items = np.ascontiguousarray(items, dtype=np.float32)
    width = items.shape[1]
    facts = {"metric": "inner_product", "num_vectors": len(items), "width": width, "faiss": faiss.__version__}
    flat = faiss.IndexFlatIP(width)
    if len(items) <= EXACT_UP_TO:
        flat.add(items)
        return VectorIndex(faiss.serialize_index(flat).tobytes(), {**facts, "kind": "flat", "exact": True})
    num_lists = round(_LISTS * len(items) ** 0.5)
    index = faiss.IndexIVFFlat(flat, width, num_lists, faiss.METRIC_INNER_PRODUCT)
    index.train(items)
    index.add(items)
    queries = np.ascontiguousarray(users[:: -(-len(users) // _QUERIES)], dtype=np.float32)
    exact = _exact(items, queries)
    while (recall := _recall(index.search(queries, K)[1], exact)) < RECALL_GOAL and index.nprobe < num_lists:
        index.nprobe = min(2 * index.nprobe, num_lists)
    measured = {f"recall@{K}": recall, "num_queries": len(queries), "num_lists": num_lists, "probed": index.nprobe}
    return VectorIndex(
        faiss.serialize_index(index).tobytes(), {**facts, "kind": "ivf_flat", "exact": False, **measured}
    )


def _exact(items: np.ndarray, queries: np.ndarray) -> np.ndarray:
    scores = product_scores(torch.from_numpy(queries), torch.from_numpy(items))
    nothing_seen = sparse.csr_matrix((len(queries), len(items)), dtype=np.float32)
    return np.concatenate([found for _, found, _ in best_items(scores, np.arange(len(queries)), nothing_seen, K)])


def _recall(found: np.ndarray, exact: np.ndarray) -> float:
    """Share of exact (Q, K) that is in found (Q, K), row by row."""
    return float((exact[:, :, None] == found[:, None, :]).any(axis=2).mean())
