"""NT-Xent in one direction: the first view of a sample must find its second among the second views of all samples.

    L = -1/N sum_i log( exp(s(z_i, z_i') / tau) / sum_j exp(s(z_i, z_j') / tau) )

s is the cosine similarity; the sum over j has i itself. Views play different parts (what the first shows, the second
hides), so it is not symmetric; NT-Xent also has the other direction, and negatives of the anchor's own view. For equal
views it is spread-out regularization: only the negatives move.
Source: Yao et al., Self-supervised learning for large-scale item recommendations, CIKM 2021, arXiv 2007.12865, section
3.1. Deviations: across processes the second views are those of all of them.
"""

from typing import Literal

from pydantic import Field
from torch import Tensor, nn

from appssl.contracts import Loss
from appssl.errors import DataError
from appssl.ops.contrastive import gathered, log_sum_of_others, unit_views
from appssl.settings import Settings


class Config(Settings):
    name: Literal["one_way_ntxent"] = "one_way_ntxent"
    temperature: float = Field(0.07, gt=0, description="softmax temperature, tau in the paper")


class OneWayNTXent(nn.Module):
    def __init__(self, temperature: float) -> None:
        super().__init__()
        self.temperature = temperature

    def forward(self, *embeddings: Tensor) -> Loss:
        return Loss(one_way_nt_xent(*embeddings, temperature=self.temperature))


def one_way_nt_xent(*embeddings: Tensor, temperature: float) -> Tensor:
    """Mean loss over the samples.

    Args:
        embeddings: z and z', each (N, D) float, any scale; row i of both is one sample. temperature: > 0.
    Returns:
        Scalar float32 (float64 for float64 inputs), > 0; log N where all similarities are equal. Differentiable in z
        and z'.
    Raises:
        DataError: if there are not two views, fewer than two samples, or the shapes differ.
    """
    if len(embeddings) > 2:
        raise DataError(f"one_way_ntxent compares two views, got {len(embeddings)}. Set num_views of the views to 2.")
    views = unit_views("one_way_ntxent", embeddings)
    keys, own = gathered(views[1:])
    normalizer = log_sum_of_others(views[0], keys[0], own.new_empty(len(own), 0), temperature=temperature)
    return normalizer.mean() - (views[0] * views[1]).sum(-1).mean() / temperature


def build(config: Config) -> OneWayNTXent:
    return OneWayNTXent(config.temperature)
