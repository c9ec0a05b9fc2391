"""Embedding tables by row-wise Adagrad, all else by another rule: a step costs what the rows of its batch cost.

    a_r = a_r + mean_d g_rd^2,    w_rd = w_rd - lr g_rd / (sqrt(a_r) + eps)

a has one number for each row r of a table. A row without gradient does not change, so with sparse gradients nothing
grows with the number of rows. The first step of a row moves its numbers by about lr; later steps are shorter.

Source: Duchi et al., Adaptive subgradient methods, JMLR 12 (2011), figure 1, with one number per row as in Mudigere et
al., ISCA 2022, arXiv 2104.05158. Deviations: none; rows are not decayed.
"""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor

from appssl.errors import SettingsError

_EPSILON = 1e-10


class RowwiseAdagrad(torch.optim.Optimizer):
    """
    Args:
        params: tables (R, D) with sparse or dense gradients, or groups of them. lr: learning rate.
    """

    def __init__(self, params: Any, *, lr: float) -> None:
        super().__init__(params, {"lr": lr})

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> float | None:  # type: ignore[override]
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            for parameter in group["params"]:
                if parameter.grad is not None:
                    self._move(parameter, parameter.grad, group["lr"])
        return loss

    def _move(self, parameter: Tensor, gradient: Tensor, lr: float) -> None:
        state = self.state[parameter]
        if "sum" not in state:
            state["sum"] = parameter.new_zeros(len(parameter))
        if gradient.is_sparse:
            gradient = gradient.coalesce()  # rows that came more than once are added up
            rows, values = gradient.indices()[0], gradient.values()
            sums = state["sum"][rows] + _mean_square(values)
            state["sum"].index_copy_(0, rows, sums)
            parameter.index_add_(0, rows, _change(values, sums, lr))  # with alpha it would go number by number
        else:
            state["sum"].add_(_mean_square(gradient))
            parameter.add_(_change(gradient, state["sum"], lr))


def _mean_square(rows: Tensor) -> Tensor:
    return rows.square().mean(1)


def _change(rows: Tensor, sums: Tensor, lr: float) -> Tensor:
    return rows * (-lr / (sums.sqrt() + _EPSILON))[:, None]


class Together(torch.optim.Optimizer):
    """Several optimizers as one: its groups and its state are theirs, so they are saved and loaded as a whole."""

    def __init__(self, parts: Sequence[torch.optim.Optimizer]) -> None:
        self.parts = parts
        super().__init__([group for part in parts for group in part.param_groups], {})
        self._share()

    def _share(self) -> None:
        start = 0
        for part in self.parts:
            stop = start + len(part.param_groups)
            part.param_groups, part.state = self.param_groups[start:stop], self.state
            start = stop

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> float | None:  # type: ignore[override]
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for part in self.parts:
            part.step()
        return loss

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        super().load_state_dict(state_dict)
        self._share()


def embedding_tables(module: nn.Module) -> list[nn.Embedding]:
    """Tables that are trained, each once."""
    return [part for part in module.modules() if isinstance(part, nn.Embedding) and part.weight.requires_grad]


def divided(module: nn.Module, groups: Sequence[dict[str, Any]]) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """Groups of the weights of embedding tables, which get sparse gradients from now on, and groups of all else.

    Raises:
        SettingsError: if there is no table, or its gradients cannot be sparse where it is trained.
    """
    tables = {part.weight: part for part in embedding_tables(module)}
    if not tables:
        raise SettingsError("fit.optimizer rowwise_adagrad: this method has no embedding tables. Use adamw.")
    if any(isinstance(weight, DTensor) for weight in tables):
        raise SettingsError(
            "fit.optimizer rowwise_adagrad: strategy fsdp divides the rows. Use strategy ddp, or adamw."
        )
    distributed = torch.distributed
    if distributed.is_available() and distributed.is_initialized() and distributed.get_backend() == "nccl":
        raise SettingsError(
            "fit.optimizer rowwise_adagrad: several GPUs cannot exchange sparse gradients. Use one device, or adamw."
        )
    for part in tables.values():
        part.sparse = True
    of_tables = [{**group, "params": [p for p in group["params"] if p in tables]} for group in groups]
    of_others = [{**group, "params": [p for p in group["params"] if p not in tables]} for group in groups]
    return [group for group in of_tables if group["params"]], [group for group in of_others if group["params"]]
