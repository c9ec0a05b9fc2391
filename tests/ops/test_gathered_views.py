"""Two real processes (gloo) against one, for losses on statistics of the batch."""

import pytest
import torch

from appssl import registry
from appssl.errors import DataError
from appssl.ops.gathered_views import gathered_views
from tests.processes import on_two

OBJECTIVES = ("vicreg", "barlow_twins")


def found(mine):
    """Losses of these rows of two views, and their gradients."""
    result = {}
    for name in OBJECTIVES:
        torch.manual_seed(0)
        views = [torch.randn(6, 4, dtype=torch.float64)[mine].clone().requires_grad_() for _ in range(2)]
        loss = registry.build("objectives", registry.load("objectives", name).Config())(*views).total
        loss.backward()
        result |= {f"{name}.loss": loss.detach(), f"{name}.gradient": torch.stack([v.grad for v in views], dim=1)}
    return result


def test_two_processes_have_the_loss_and_gradients_of_one(tmp_path):
    parts = on_two(found, tmp_path, each=3)
    whole = found(slice(0, 6))
    for name in OBJECTIVES:
        for part in parts:
            torch.testing.assert_close(part[f"{name}.loss"], whole[f"{name}.loss"])
        gradient = torch.cat([part[f"{name}.gradient"] for part in parts]) / 2  # as DDP averages
        torch.testing.assert_close(gradient, whole[f"{name}.gradient"])


def test_one_process_has_its_own_rows_in_float32_or_better():
    views = [torch.randn(3, 2).bfloat16() for _ in range(2)]
    assert torch.equal(gathered_views("x", tuple(views)), torch.stack(views).float())
    with pytest.raises(DataError, match=r"x needs views of one shape \(B, D\), got"):
        gathered_views("x", (torch.ones(3, 2, 1), torch.ones(3, 2, 1)))
