"""Agreement of predictions of views with targets of the other views."""

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional

EPSILON = 1e-8  # smallest norm: an all-zero embedding has similarity 0 to everything


def mean_cosine_of_pairs(predictions: Sequence[Tensor], targets: Sequence[Tensor]) -> Tensor:
    """Mean over samples and ordered pairs of different views of cos(prediction_v, target_w), in [-1, 1].

    Args:
        predictions, targets: of V >= 2 views, each (B, D) float, any scale; row i of all is one sample. Targets are
            constants: no gradient flows through them.
    Returns:
        Scalar, float32 or better.
    """
    with torch.autocast(device_type=predictions[0].device.type, enabled=False):
        p, t = _unit(predictions), _unit(targets).detach()
        others = t.sum(dim=0) - t  # (V, B, D): the sum of a sample's targets of other views
        return (p * others).sum(dim=-1).mean() / (len(p) - 1)


def _unit(views: Sequence[Tensor]) -> Tensor:
    dtype = torch.promote_types(views[0].dtype, torch.float32)
    return torch.stack([functional.normalize(z.to(dtype), dim=1, eps=EPSILON) for z in views])
