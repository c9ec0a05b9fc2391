"""A head that ends in logits of prototypes: a perceptron, a unit vector, and its cosines with prototypes."""

import torch
from torch import Tensor, nn
from torch.nn import functional


class PrototypeHead(nn.Module):
    """(..., inputs) -> (..., num_prototypes) float32 in [-1, 1]: three linear layers with GELU, then cosines.

    Source: Caron et al., DINO, ICCV 2021, arXiv 2104.14294, appendix C; prototypes are unit vectors, which is its
    weight normalization with the scale fixed to 1.
    """

    def __init__(self, inputs: int, hidden: int, bottleneck: int, num_prototypes: int) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            nn.Linear(inputs, hidden), nn.GELU(), nn.Linear(hidden, hidden), nn.GELU(), nn.Linear(hidden, bottleneck)
        )
        for layer in self.layers:
            if isinstance(layer, nn.Linear):
                nn.init.trunc_normal_(layer.weight, std=0.02)
                nn.init.zeros_(layer.bias)
        self.prototypes = nn.Parameter(functional.normalize(torch.randn(num_prototypes, bottleneck), dim=1))

    def forward(self, features: Tensor, *, is_frozen: Tensor | None = None) -> Tensor:
        """
        Args:
            is_frozen: () bool; prototypes then get the gradient zero. Not none, because processes must agree on which
                parameters have one.
        """
        hidden = self.layers(features)
        prototypes: Tensor = self.prototypes
        if is_frozen is not None:
            prototypes = torch.where(is_frozen, prototypes.detach(), prototypes)
        with torch.autocast(device_type=features.device.type, enabled=False):
            dtype = torch.promote_types(hidden.dtype, torch.float32)
            unit = functional.normalize(hidden.to(dtype), dim=-1)
            return unit @ functional.normalize(prototypes.to(dtype), dim=1).T

    @torch.no_grad()
    def normalize_prototypes(self) -> None:
        """Call after every update, so that the length of prototypes does not change how fast they turn."""
        self.prototypes.copy_(functional.normalize(self.prototypes, dim=1))
