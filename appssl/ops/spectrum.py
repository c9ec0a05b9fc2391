"""How many directions embeddings really use.

Source: Garrido et al., RankMe, ICML 2023, arXiv 2210.02885, equation 1, after Roy and Vetterli, The effective rank,
2007. Deviations: none; with more rows than columns the singular values are roots of the eigenvalues of the float64 Gram
matrix, which agrees to about 1e-6 for singular values above 1e-8 of the largest.
"""

import numpy as np

from appssl.errors import DataError

EPSILON = 1e-7  # added to each share, as in the paper


def rank_me(embeddings: np.ndarray, *, epsilon: float = EPSILON) -> float:
    """exp of the entropy of the normalized singular values: 1 (one direction) to min(N, D), up to the epsilon.

    Neither centred nor scaled by row. Comparable only within one method, at equal N, D, layer and transform; a high
    value is needed for good features and does not make them: random embeddings have nearly full rank.

    Args:
        embeddings: (N, D) float, of training data; N >= D advised (the paper takes 25,600 rows).
    Raises:
        DataError: if there are no rows, a value is not finite, or all are 0.
    """
    values = np.asarray(embeddings, dtype=np.float64)
    if values.ndim != 2 or 0 in values.shape:
        raise DataError(f"the rank needs embeddings (N, D) of one row or more, got {values.shape}.")
    if not np.isfinite(values).all():
        raise DataError("the rank needs finite embeddings; pretraining diverged. Lower its learning rate.")
    sigma = singular_values(values)
    if sigma.sum() == 0:
        raise DataError("the rank needs embeddings that are not all 0.")
    share = sigma / sigma.sum() + epsilon
    share = share[share > 0]
    return float(np.exp(-(share * np.log(share)).sum()))


def singular_values(matrix: np.ndarray) -> np.ndarray:
    """Singular values (min(N, D),) float64 of (N, D) float64, any order."""
    rows, columns = matrix.shape
    if rows <= columns:
        return np.linalg.svd(matrix, compute_uv=False)
    return np.sqrt(np.clip(np.linalg.eigvalsh(matrix.T @ matrix), 0, None))
