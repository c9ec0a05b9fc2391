"""VICReg: views of a sample close to each other, every dimension with variance, no two dimensions correlated.

    L = lambda s(Z, Z') + mu [v(Z) + v(Z')] + nu [c(Z) + c(Z')]
    s = mean over samples and dimensions of (z - z')^2
    v = 1/D sum_d max(0, gamma - sqrt(Var_d + 1e-4)),      c = 1/D sum_{d != e} Cov_de^2,      divided by B - 1

Source: Bardes et al., VICReg, ICLR 2022, arXiv 2105.04906, equations 1 to 6. Deviations: s is divided by D too, as in
the official code; v is the sum over the views as in the paper, while the official code halves it (`variance_weight:
12.5`). With more than two views, s is the mean over pairs, v and c are twice the mean over views. Across processes
variances and covariances are those of all of them.
"""

from itertools import combinations
from typing import Literal

import torch
from pydantic import Field
from torch import Tensor, nn

from appssl.contracts import Loss
from appssl.ops.gathered_views import gathered_views
from appssl.settings import Settings

_EPSILON = 1e-4  # inside the root: bounds its gradient at variance 0


class Config(Settings):
    name: Literal["vicreg"] = "vicreg"
    invariance_weight: float = Field(25.0, ge=0, description="lambda in the paper")
    variance_weight: float = Field(25.0, ge=0, description="mu in the paper")
    covariance_weight: float = Field(1.0, ge=0, description="nu in the paper")
    target_std: float = Field(1.0, gt=0, description="standard deviation that is asked for, gamma in the paper")


class VICReg(nn.Module):
    def __init__(self, config: Config) -> None:
        super().__init__()
        self.config = config

    def forward(self, *embeddings: Tensor) -> Loss:
        """
        Args:
            embeddings: two or more views, each (B, D) float; row i of all is one sample.
        Raises:
            DataError: if there are fewer than two views or two samples, or the shapes differ.
        """
        c = self.config
        with torch.autocast(device_type=embeddings[0].device.type, enabled=False):
            views = gathered_views("vicreg", embeddings)
            terms = {
                "invariance": invariance(views),
                "variance": 2 * variance(views, c.target_std).mean(),
                "covariance": 2 * covariance(views).mean(),
            }
        weights = {
            "invariance": c.invariance_weight,
            "variance": c.variance_weight,
            "covariance": c.covariance_weight,
        }
        total = torch.stack([weights[name] * term for name, term in terms.items()]).sum()
        return Loss(total, {name: term.detach() for name, term in terms.items()})


def invariance(views: Tensor) -> Tensor:
    """Mean squared difference of all pairs of views (V, B, D), a scalar."""
    return torch.stack([(one - other).square().mean() for one, other in combinations(views, 2)]).mean()


def variance(views: Tensor, target_std: float) -> Tensor:
    """Mean hinge of the standard deviation over dimensions, in [0, target_std], of each view: (V, B, D) -> (V,)."""
    std = torch.sqrt(views.var(dim=1) + _EPSILON)
    return (target_std - std).clamp(min=0).mean(dim=1)


def covariance(views: Tensor) -> Tensor:
    """Summed squares of the off-diagonal covariances / D of each view: (V, B, D) -> (V,)."""
    _, batch, width = views.shape
    centered = views - views.mean(dim=1, keepdim=True)
    matrix = centered.transpose(1, 2) @ centered / (batch - 1)
    diagonal = torch.eye(width, dtype=torch.bool, device=views.device)
    return matrix.masked_fill(diagonal, 0.0).square().sum(dim=(1, 2)) / width


def build(config: Config) -> VICReg:
    return VICReg(config)
