"""Layer-wise adaptive rate scaling: every weight matrix moves by a share of its own length, for very large batches.

    g = gradient + weight_decay w,    v = momentum v + trust |w| / |g| g,    w = w - lr v

Vectors (biases, scales of normalizations) move by plain momentum: neither decayed nor scaled, as is usual in
self-supervised pretraining (Grill et al., BYOL, arXiv 2006.07733, appendix J).

Source: You et al., arXiv 1708.03888, algorithm 1. Deviations: decay enters the gradient before it is scaled, so that
|g| is that of the sum, and the momentum holds the scaled gradient without the learning rate, as in SimCLR and BYOL.
"""

from collections.abc import Callable, Iterable
from typing import Any

import torch

_SMALLEST = 1e-12  # length of a matrix or gradient below which nothing is scaled


class LARS(torch.optim.Optimizer):
    """
    Args:
        params: parameters, or groups of them. lr: learning rate. weight_decay: of matrices. trust: share of its length
            that a matrix moves at lr 1.
    """

    def __init__(
        self,
        params: Iterable[Any],
        *,
        lr: float,
        momentum: float = 0.9,
        weight_decay: float = 0.0,
        trust: float = 1e-3,
    ) -> None:
        super().__init__(params, {"lr": lr, "momentum": momentum, "weight_decay": weight_decay, "trust": trust})

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> float | None:  # type: ignore[override]
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            for parameter in group["params"]:
                if parameter.grad is not None:
                    self._move(parameter, group)
        return loss

    def _move(self, parameter: torch.Tensor, group: dict[str, Any]) -> None:
        gradient = parameter.grad
        assert gradient is not None
        if parameter.ndim > 1:
            gradient = gradient.add(parameter, alpha=group["weight_decay"])
            own, other = torch.linalg.vector_norm(parameter), torch.linalg.vector_norm(gradient)
            scaled = group["trust"] * own / other.clamp(min=_SMALLEST)
            gradient = gradient * torch.where((own > _SMALLEST) & (other > _SMALLEST), scaled, 1.0)
        state = self.state[parameter]
        if "velocity" not in state:
            state["velocity"] = torch.zeros_like(parameter)
        state["velocity"].mul_(group["momentum"]).add_(gradient)
        parameter.sub_(state["velocity"], alpha=group["lr"])
