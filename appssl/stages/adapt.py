"""A model adapted to the inputs it will be measured on, without their labels, where it can be (finetuners/sade)."""

from typing import Any

import numpy as np
import torch
from torch import Tensor

from appssl.contracts import PreparedData, Views
from appssl.engine.loading import device_of
from appssl.errors import DataError
from appssl.ops.random import rng_for

_PASSES = 3  # augmented passes over the inputs; more change little, as weights of experts are few numbers
_BATCH = 256


def adapt_to(
    model: Any, data: PreparedData, rows: np.ndarray, views: Views, *, seed: int, accelerator: str = "auto"
) -> dict[str, Any]:
    """Shows the model two views of every row, several times, and lets it adapt itself, in place.

    Args:
        model: has `expert_logits(features (B, F)) -> (E, B, K)` and `adapt(passes)`, as of finetuners/sade.
        rows: (N,) int64.
    Returns:
        What was found, JSON types.
    Raises:
        DataError: if the model cannot be adapted, or the views make fewer than two.
    """
    if not hasattr(model, "adapt"):
        raise DataError(
            "evaluate.adapt is for models that adapt to unlabelled inputs (finetuner: sade); this one cannot. "
            "Set it to false."
        )
    if views.num_views < 2:
        raise DataError("evaluate.adapt needs two views of an input: set num_views of the views to 2.")
    device = device_of(accelerator)
    model.to(device).eval()
    passes = [_two_views(model, data, rows, views, number, seed, device) for number in range(_PASSES)]
    found: dict[str, Any] = model.adapt(passes)
    return found


@torch.no_grad()
def _two_views(
    model: Any, data: PreparedData, rows: np.ndarray, views: Views, number: int, seed: int, device: torch.device
) -> tuple[Tensor, Tensor]:
    """Logits (E, N, K) of two augmented views of every row; other ones in every pass."""
    parts: list[list[Tensor]] = [[], []]
    for start in range(0, len(rows), _BATCH):
        made = [
            views.views(data.read(int(row)), rng_for(seed, number, int(row)))[:2]
            for row in rows[start : start + _BATCH]
        ]
        for own, view in zip(parts, zip(*made, strict=True), strict=True):
            own.append(model.expert_logits(model.backbone(torch.stack(view).to(device))).cpu())
    return torch.cat(parts[0], dim=1), torch.cat(parts[1], dim=1)
