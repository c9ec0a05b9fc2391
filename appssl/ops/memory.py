"""A memory of the newest rows that a network has made: negatives of later batches, or candidates for neighbors."""

import torch
from torch import Tensor, nn
from torch.nn import functional

from appssl.ops.distributed import gather


class Memory(nn.Module):
    """First in, first out, over the rows of all processes: every process holds the same memory.

    Attributes:
        rows: (size, width) float32, without gradient; zeros where nothing has been stored yet.
        num_added: () int64, rows that were ever added. Both are buffers, so that a checkpoint holds them.
    """

    rows: Tensor
    num_added: Tensor

    def __init__(self, size: int, width: int) -> None:
        super().__init__()
        self.register_buffer("rows", torch.zeros(size, width))
        self.register_buffer("num_added", torch.zeros((), dtype=torch.int64))

    def is_filled(self) -> Tensor:
        """(size,) bool, False for places in which nothing has been stored yet."""
        return torch.arange(len(self.rows), device=self.rows.device) < self.num_added

    @torch.no_grad()
    def add(self, rows: Tensor) -> None:
        """Puts the rows of all processes over the oldest ones; of more rows than there is room for, the last ones.

        Args:
            rows: (B, width) float of this process, equally many in all of them.
        """
        new = gather(rows.detach().to(self.rows.dtype))
        size = len(self.rows)
        places = (self.num_added + torch.arange(len(new), device=new.device)) % size
        # A new tensor: the old one may be needed by the backward pass of the step that adds.
        self.rows = self.rows.index_copy(0, places[-size:], new[-size:])
        self.num_added = self.num_added + len(new)

    @torch.no_grad()
    def nearest(self, queries: Tensor, k: int) -> tuple[Tensor, Tensor]:
        """The k stored rows with the largest cosine to each query, k at most `size`.

        Args:
            queries: (N, width) float, any scale.
        Returns:
            Rows (N, k, width) as they were stored, in falling order, and (N, k) bool: False where fewer than k rows are
            stored; zeros are there.
        """
        with torch.autocast(device_type=queries.device.type, enabled=False):
            # The norm of a query does not change the order of its cosines.
            cosine = queries.to(self.rows.dtype) @ functional.normalize(self.rows, dim=1).T
        values, places = cosine.masked_fill(~self.is_filled(), -torch.inf).topk(k, dim=1)
        return self.rows[places], values > -torch.inf
