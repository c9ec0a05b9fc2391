"""Embeddings of all views as one tensor over the whole batch, for losses on statistics of the batch."""

import torch
from torch import Tensor

from appssl.errors import DataError
from appssl.ops.distributed import gather


def gathered_views(name: str, embeddings: tuple[Tensor, ...]) -> Tensor:
    """Views (V, B, D) in float32 or better, B over all processes, after checking them.

    Args:
        name: of the objective, for messages. embeddings: two or more views, each (B / processes, D), any scale.
    Raises:
        DataError: if there are fewer than two views or two samples, or the shapes differ.
    """
    shapes = [tuple(z.shape) for z in embeddings]
    if len(shapes) < 2:
        raise DataError(f"{name} needs two or more views, got {len(shapes)}. Set num_views of the views to 2.")
    if len(set(shapes)) > 1 or len(shapes[0]) != 2:
        raise DataError(f"{name} needs views of one shape (B, D), got {shapes}.")
    dtype = torch.promote_types(embeddings[0].dtype, torch.float32)  # half precision loses variances
    views = gather(torch.stack([z.to(dtype) for z in embeddings], dim=1)).transpose(0, 1)
    if views.shape[1] < 2:
        raise DataError(f"{name} needs two or more samples in a batch, got {views.shape[1]}: they have no variance.")
    return views
