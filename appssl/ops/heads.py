"""Networks behind an encoder: projectors and predictors."""

from itertools import pairwise

from torch import nn


def mlp(
    inputs: int, hidden: int, outputs: int, *, num_layers: int = 2, norm: bool = True, last_norm: bool = False
) -> nn.Sequential:
    """Linear layers with batch normalization (optional) and ReLU between them: (B, inputs) -> (B, outputs).

    Args:
        num_layers: linear layers, >= 1. norm: normalize every hidden layer. last_norm: normalize the output too,
            without a learned scale.
    """
    widths = [inputs, *[hidden] * (num_layers - 1)]
    layers: list[nn.Module] = []
    for before, after in pairwise(widths):
        # The normalization that follows takes away any constant.
        layers += [nn.Linear(before, after, bias=not norm), *([nn.BatchNorm1d(after)] if norm else []), nn.ReLU()]
    layers.append(nn.Linear(widths[-1], outputs, bias=not last_norm))
    if last_norm:
        layers.append(nn.BatchNorm1d(outputs, affine=False))
    return nn.Sequential(*layers)
