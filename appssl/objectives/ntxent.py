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

from pydantic import Field
from torch import Tensor, nn

from appssl.contracts import Loss
from appssl.ops.contrastive import log_sum_without_itself, unit_views
from appssl.settings import Settings


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
    views = unit_views("ntxent", embeddings)
    normalizer = log_sum_without_itself(views, temperature=temperature)
    # The mean of a sample's other views times the anchor is its mean similarity to its positives.
    others = (views.sum(dim=0) - views) / (len(views) - 1)
    return normalizer.mean() - (views * others).sum(dim=-1).mean() / temperature


def build(config: Config) -> NTXent:
    return NTXent(config.temperature)
