"""A linear softmax classifier on embeddings: standardized features, L2 penalty, solved to its minimum.

The problem is convex and starts from zero, so the result does not depend on a seed. What it minimizes, with weights
normalized to mean 1:

    mean_i w_i * -log softmax(x_i W + b)[y_i]  +  l2 / 2 * |W|^2
"""

import hashlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np
import polars as pl
import torch

from appssl.errors import DataError

_SMALLEST_STD = 1e-6  # of the largest one: a feature that varies less is noise of rounding and is not used


@dataclass(frozen=True)
class LinearSoftmax:
    """A fitted classifier.

    Attributes:
        weight: (F, K) float32, for standardized features. bias: (K,) float32. mean, scale: (F,) float32; features are
            standardized as (x - mean) * scale, `scale` is 0 where a feature does not vary.
    """

    weight: np.ndarray
    bias: np.ndarray
    mean: np.ndarray
    scale: np.ndarray

    def probabilities(self, features: np.ndarray) -> np.ndarray:
        """(N, F) -> (N, K) float64, rows sum to 1."""
        logits = ((features.astype(np.float32) - self.mean) * self.scale) @ self.weight + self.bias
        shifted = np.exp(logits.astype(np.float64) - logits.max(axis=1, keepdims=True))
        return shifted / shifted.sum(axis=1, keepdims=True)

    @property
    def digest(self) -> str:
        """SHA-256 (hex) of all parameters."""
        parts = (self.weight, self.bias, self.mean, self.scale)
        return hashlib.sha256(b"".join(np.ascontiguousarray(part).tobytes() for part in parts)).hexdigest()


def fit_linear(
    features: np.ndarray,
    target: np.ndarray,
    num_classes: int,
    *,
    weight: np.ndarray | None = None,
    l2: float = 1e-2,
    max_steps: int = 60,
) -> LinearSoftmax:
    """Fits by L-BFGS on all rows at once.

    Args:
        features: (N, F) float. target: (N,) int64 in 0..num_classes-1; classes without rows get small probabilities.
        weight: (N,) float >= 0, rows of weight 0 do not count. l2: penalty, > 0, per standardized feature.
        max_steps: iterations of L-BFGS, which stops earlier when the gradient vanishes.
    Raises:
        DataError: if there are no rows.
    """
    if len(target) == 0:
        raise DataError("a linear classifier needs at least one labelled row, there is none.")
    mean, scale = standardization(features)
    x = torch.from_numpy((features.astype(np.float32) - mean) * scale)
    y = torch.from_numpy(np.asarray(target, np.int64))
    w = torch.ones(len(y)) if weight is None else torch.from_numpy(np.asarray(weight, np.float32))
    w = w / w.sum()
    matrix = torch.zeros(x.shape[1], num_classes, requires_grad=True)
    bias = torch.zeros(num_classes, requires_grad=True)
    solver = torch.optim.LBFGS(
        [matrix, bias], max_iter=max_steps, tolerance_grad=1e-5, tolerance_change=1e-8, line_search_fn="strong_wolfe"
    )

    def closure() -> torch.Tensor:
        solver.zero_grad()
        loss = torch.nn.functional.cross_entropy(x @ matrix + bias, y, reduction="none")
        total = (w * loss).sum() + 0.5 * l2 * matrix.square().sum()
        total.backward()
        return total

    with torch.enable_grad(), _one_thread():
        solver.step(closure)
    return LinearSoftmax(matrix.detach().numpy(), bias.detach().numpy(), mean, scale)


@contextmanager
def _one_thread() -> Iterator[None]:
    """One CPU thread for many small operations: on busy cores waiting for each other costs more than the arithmetic,
    and the result does not depend on the number of threads.
    """
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def standardization(features: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Mean and 1 / standard deviation per column, (F,) float32 both; 0 instead for columns that do not vary."""
    values = features.astype(np.float64)
    mean, std = values.mean(axis=0), values.std(axis=0)
    varies = std > max(_SMALLEST_STD * std.max(initial=0), np.finfo(np.float32).eps * np.abs(values).max(initial=0))
    return mean.astype(np.float32), np.where(varies, 1 / np.where(varies, std, 1), 0).astype(np.float32)


def embedding_matrix(column: pl.Series) -> np.ndarray:
    """(N, F) float32 of a polars column of lists or arrays.

    Raises:
        DataError: if rows differ in length, are not finite, or are all equal (a collapsed encoder).
    """
    lengths = sorted(set(column.list.len().to_list())) if column.dtype == pl.List else [0]
    if len(lengths) > 1:
        raise DataError(f"embeddings of different lengths {lengths[:5]}; all must come from one encoder.")
    values = column.to_list() if column.dtype == pl.List else column.to_numpy()
    matrix = np.ascontiguousarray(values, dtype=np.float32)
    bad = np.flatnonzero(~np.isfinite(matrix).all(axis=1))
    if len(bad):
        raise DataError(
            f"{len(bad)} of {len(matrix)} embeddings are not finite, the first in row {bad[0]}. Pretraining diverged; "
            "lower its learning rate."
        )
    if len(matrix) > 1 and not standardization(matrix)[1].any():
        raise DataError(
            f"all {len(matrix)} embeddings are equal: the encoder collapsed, labels cannot be judged from it. "
            "Check its loss curve; lower the learning rate or choose another objective."
        )
    return matrix
