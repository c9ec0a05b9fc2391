"""How often items come, estimated while they come: a running mean of the steps between two batches with an item.

    at step t, for every item y of the batch, h = y mod H:
        B_h = (1 - alpha) B_h + alpha (t - A_h),    A_h = t,    p_y = 1 / B_h

A_h is the last step in which bucket h was met. p_y estimates the probability that a batch holds the item, not how often
it does, and the estimate follows when that changes. Items of one bucket are estimated together.

Source: Yi et al., Sampling-bias-corrected neural modeling for large corpus item recommendations, RecSys 2019,
algorithm 2. Deviations: the first gap of a bucket is taken as it is (alpha = 1) instead of starting from a constant,
which rare items never leave; one hash function, the remainder, because items are numbered without gaps.
"""

import torch
from torch import Tensor, nn


class GapFrequencies(nn.Module):
    """
    Args:
        buckets: H. rate: alpha, weight of a new gap.
    """

    gaps: Tensor
    last: Tensor
    steps: Tensor

    def __init__(self, buckets: int, rate: float) -> None:
        super().__init__()
        self.rate = rate
        self.register_buffer("gaps", torch.zeros(buckets))  # B; 0: never met
        self.register_buffer("last", torch.zeros(buckets, dtype=torch.int64))  # A
        self.register_buffer("steps", torch.zeros((), dtype=torch.int64))  # t

    @torch.no_grad()
    def update(self, items: Tensor) -> None:
        """Counts a batch with items (N,) int64, in which they may come more than once."""
        self.steps.add_(1)
        buckets = items % len(self.gaps)
        old, gap = self.gaps[buckets], (self.steps - self.last[buckets]).to(self.gaps.dtype)
        # Entries of one bucket all write the same number.
        self.gaps[buckets] = torch.where(old == 0, gap, (1 - self.rate) * old + self.rate * gap)
        self.last[buckets] = self.steps

    def forward(self, items: Tensor) -> Tensor:
        """Log of the estimated probabilities (N,) of items (N,) int64; one that never came is rarer than all."""
        gaps = self.gaps[items % len(self.gaps)]
        return -torch.where(gaps == 0, (self.steps + 1).to(gaps.dtype), gaps).log()
