"""A hyperplane between two groups of samples, from a guess of which sample is in which.

Rows f_i are divided by their norm, then standardized per dimension over all samples. With the guess z_i in {0, 1} and
n_0, n_1 the sizes of the guessed groups,

    (v, b) = argmin -1/2 sum_i 1/n_{z_i} log p(z_i | x_i),    p(1 | x) = sigmoid(v x + b)

is a logistic regression without penalty in which both groups weigh the same. A plane cannot follow a guess that is
wrong here and there, so the side on which a sample lies corrects its guess.

Source: Albert et al., LSA, ECCV 2024, arXiv 2407.05528. Deviations: solved in float64 until the gradient vanishes, from
zero, without the previous solution as a start. Where a plane separates the guess without error there is no minimum;
the loss is then followed towards 0 until its gradient vanishes.
"""

import numpy as np
import torch

from appssl.ops.linear import standardization

_EPSILON = 1e-12  # smallest norm of a row
_SMALLEST_GRADIENT = 1e-7


def separate(features: np.ndarray, guess: np.ndarray, *, max_steps: int = 1000) -> np.ndarray | None:
    """Values v x_i + b (N,) float64 of the hyperplane, > 0 on the side of group 1.

    Args:
        features: (N, F) float, any scale; the plane is fitted on these rows and says of these rows. guess: (N,) bool.
        max_steps: most iterations of L-BFGS.
    Returns:
        None where there is nothing to separate: one group is empty, the features are all equal or not all finite.
    """
    guess = np.asarray(guess, dtype=bool)
    sizes = np.array([(~guess).sum(), guess.sum()])
    unit = _unit(features)
    if 0 in sizes or not np.isfinite(unit).all():
        return None
    mean, scale = standardization(unit)
    if not scale.any():
        return None
    x = torch.from_numpy((unit - mean) * scale)
    sign = torch.from_numpy(np.where(guess, 1.0, -1.0))
    weight = torch.from_numpy(0.5 / sizes[guess.astype(np.int64)])
    v = torch.zeros(x.shape[1], dtype=torch.float64, requires_grad=True)
    b = torch.zeros((), dtype=torch.float64, requires_grad=True)
    solver = torch.optim.LBFGS(
        [v, b], max_iter=max_steps, history_size=20, tolerance_grad=_SMALLEST_GRADIENT, tolerance_change=0.0,
        line_search_fn="strong_wolfe",
    )  # fmt: skip

    def closure() -> torch.Tensor:
        solver.zero_grad()
        loss = (weight * torch.nn.functional.softplus(-sign * (x @ v + b))).sum()
        loss.backward()
        return loss

    solver.step(closure)
    with torch.no_grad():
        return (x @ v + b).numpy()


def _unit(features: np.ndarray) -> np.ndarray:
    rows = np.asarray(features, np.float64)
    return rows / np.maximum(np.linalg.norm(rows, axis=1, keepdims=True), _EPSILON)
