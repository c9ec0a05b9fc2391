"""Embeddings of all views as one tensor over the whole batch, for losses on statistics of the batch."""

from torch import Tensor

from appssl.errors import DataError
from appssl.ops.contrastive import stacked_views
from appssl.ops.distributed import gather


def gathered_views(name: str, embeddings: tuple[Tensor, ...]) -> Tensor:
    """Views (V, B, D) in float32 or better, B over all processes, after checking them.

    Args:
        name: of the objective, for messages. embeddings: two or more views, each (B / processes, D), any scale.
    Raises:
        DataError: if there are fewer than two views or two samples, or the shapes differ.
    """
    views = gather(stacked_views(name, embeddings).transpose(0, 1)).transpose(0, 1)  # one exchange for all views
    if views.shape[1] < 2:
        raise DataError(f"{name} needs two or more samples in a batch, got {views.shape[1]}: they have no variance.")
    return views
