"""NT-Xent: the normalized temperature-scaled cross entropy of SimCLR, for two or more views.

    l(i, p) = -log( exp(s_ip / tau) / sum_{k != i} exp(s_ik / tau) ),    s = cosine similarity

averaged over all anchors i and, with more than two views, over the positives p of each anchor.
Source: Chen et al., A Simple Framework for Contrastive Learning, ICML 2020, arXiv 2002.05709, equation 1.
Deviations: none for two views; with more, every other view of the sample is a positive in turn and stays in the
denominator of the others, as the equation says for each pair. Across processes, negatives come from all of them: each
process has the loss of its own anchors, the mean over processes is the loss of the whole batch in one process, and so
is the mean of their gradients, because gradients of keys return to the process that made them.
"""

from typing import Literal

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional

from appssl.contracts import Loss
from appssl.errors import DataError
from appssl.ops.distributed import gather, rank
from appssl.settings import Settings

EPSILON = 1e-8  # smallest norm: an all-zero embedding has similarity 0 to everything


class Config(Settings):
    name: Literal["ntxent"] = "ntxent"
    temperature: float = Field(0.1, gt=0, description="softmax temperature, tau in the paper")


class NTXent(nn.Module):
    def __init__(self, temperature: float) -> None:
        super().__init__()
        self.temperature = temperature

    def forward(self, *embeddings: Tensor) -> Loss:
        return Loss(nt_xent(*embeddings, temperature=self.temperature))


def nt_xent(*embeddings: Tensor, temperature: float) -> Tensor:
    """Mean loss over all anchors and their positives.

    Args:
        embeddings: two or more views, each (B, D) float, any scale; row i of all is one sample.
        temperature: divides cosine similarities, > 0.
    Returns:
        Scalar float32 (float64 for float64 inputs), >= 0. Differentiable in all views.
    Raises:
        DataError: if there are fewer than two views or two samples, or the shapes differ.
    """
    _check(embeddings)
    num_views, batch = len(embeddings), len(embeddings[0])
    dtype = torch.promote_types(embeddings[0].dtype, torch.float32)  # half precision loses the log-sum-exp
    local = torch.stack([functional.normalize(z.to(dtype), dim=1, eps=EPSILON) for z in embeddings])  # (V, B, D)
    keys = gather(local.transpose(0, 1)).transpose(0, 1)  # (V, W * B, D), one exchange for all views
    total = keys.shape[1]
    anchors, keys = local.flatten(0, 1), keys.flatten(0, 1)
    logits = anchors @ keys.T / temperature  # (V * B, V * W * B)
    sample = torch.arange(batch, device=logits.device) + rank() * batch
    own = torch.cat([view * total + sample for view in range(num_views)])
    itself = torch.zeros_like(logits, dtype=torch.bool).scatter_(1, own[:, None], True)
    normalizer = torch.logsumexp(logits.masked_fill(itself, -torch.inf), dim=1)
    positives = torch.stack([(own + shift * total) % (num_views * total) for shift in range(1, num_views)], dim=1)
    return (normalizer[:, None] - logits.gather(1, positives)).mean()


def build(config: Config) -> NTXent:
    return NTXent(config.temperature)


def _check(embeddings: tuple[Tensor, ...]) -> None:
    shapes = [tuple(z.shape) for z in embeddings]
    if len(shapes) < 2:
        raise DataError(f"ntxent needs two or more views, got {len(shapes)}. Set num_views of the views to 2.")
    if len(set(shapes)) > 1 or len(shapes[0]) != 2:
        raise DataError(f"ntxent needs views of one shape (B, D), got {shapes}.")
    if shapes[0][0] < 2:
        raise DataError(f"ntxent needs two or more samples in a batch, got {shapes[0][0]}: there are no negatives.")
