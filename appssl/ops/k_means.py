"""K-means with a result that depends on data and seed only, not on the number of threads.

    minimize sum_i |x_i - m_{c_i}|^2    over centers m and the cluster c_i of every row

Source: Lloyd, IEEE Transactions on Information Theory 28(2), 1982; started as in Arthur and Vassilvitskii, k-means++,
SODA 2007. Deviations: none; the iterations are scikit-learn's.
"""

from dataclasses import dataclass

import numpy as np
from sklearn.cluster import KMeans
from threadpoolctl import threadpool_limits

from appssl.errors import DataError


@dataclass(frozen=True)
class Clusters:
    """centers: (K, D) float32. labels: (N,) int64 in 0..K-1, the nearest center of each row."""

    centers: np.ndarray
    labels: np.ndarray


def k_means(features: np.ndarray, count: int, *, seed: int = 0, max_steps: int = 300) -> Clusters:
    """Clusters of rows.

    Args:
        features: (N, D) float, N >= count. count: K. max_steps: most iterations.
    Raises:
        DataError: if there are fewer rows than clusters, or features are not finite.
    """
    features = np.ascontiguousarray(features, np.float32)
    if len(features) < count:
        raise DataError(f"{count} clusters of {len(features)} rows: there must be as many rows as clusters.")
    if not np.isfinite(features).all():
        raise DataError("features to be clustered are not finite; what made them diverged.")
    with threadpool_limits(1):  # sums of several threads differ in rounding, and a row may change its cluster
        found = KMeans(count, random_state=seed, n_init=1, max_iter=max_steps).fit(features)
    return Clusters(found.cluster_centers_.astype(np.float32), found.labels_.astype(np.int64))
