"""Losses of all pairs of a crop seen by a teacher and one seen by a student, and their mean over pairs."""

import torch
from torch import Tensor
from torch.nn import functional

from appssl.ops.memory import Memory


def queue_contrast(predictions: Tensor, keys: Tensor, queue: Memory, *, temperature: float) -> Tensor:
    """contrast(t, s) of all pairs of a key and a prediction, mean over images, (T, S); 0 for an empty queue.

    Args:
        predictions: unit vectors of S crops, (S, B, D) float32 or better. keys: unit vectors of T crops, (T, B, D), and
            the rows of the queue: constants, no gradient flows through them.
    """
    positive = torch.einsum("tbd,sbd->tsb", keys.detach(), predictions) / temperature
    logits = predictions @ queue.rows.T / temperature
    # Finite, so that an empty queue has the gradient zero and not NaN.
    least = torch.finfo(logits.dtype).min
    of_queue = logits.masked_fill(~queue.is_filled(), least).logsumexp(dim=2)
    return functional.softplus(of_queue - positive).mean(dim=2)


def cross_entropies(predicted: Tensor, targets: Tensor, *, temperature: float) -> Tensor:
    """Cross-entropy of all pairs of a target and a prediction, mean over images, (T, S).

    Args:
        predicted: logits of S crops, (S, B, K) float32 or better. targets: distributions of T crops, (T, B, K); no
            gradient flows through them.
    """
    logs = (predicted / temperature).log_softmax(dim=2)
    return -torch.einsum("tbk,sbk->ts", targets.detach(), logs) / predicted.shape[1]


def mean_over_crops(losses: Tensor) -> Tensor:
    """Half the mean over pairs of different large crops and half that over pairs with a small one, a scalar.

    Args:
        losses: (2, S) of large crops t and crops s, of which the first two are those large crops. For S = 2 there are
            no small ones, and the mean is that of the large ones.
    """
    large = (losses[0, 1] + losses[1, 0]) / 2
    return (large + losses[:, 2:].mean()) / 2 if losses.shape[1] > 2 else large
