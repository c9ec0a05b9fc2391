"""Metrics of classification for many weightings of the same samples at once, as the bootstrap needs them.

Confusion matrices and calibration are sums over samples: they are summed per group once and combined per resample.
AUROC is made of such sums too, over segments of the ranked scores. Definitions agree with scikit-learn where both
exist.
"""

import numpy as np
from scipy import sparse

from appssl.ops.bootstrap import Statistic, divide, of_sums

NUM_BINS = 15  # equal-width bins of confidence, as in Guo et al., ICML 2017


def sums_at(rows: np.ndarray, columns: np.ndarray, values: np.ndarray, shape: tuple[int, int]) -> sparse.csr_matrix:
    """Sparse matrix of `shape` with values (N,) added up at (rows, columns), both (N,) int64."""
    return sparse.csr_matrix((np.asarray(values, dtype=np.float64), (rows, columns)), shape=shape)


def confusion_per_group(
    target: np.ndarray, prediction: np.ndarray, codes: np.ndarray, num_groups: int, num_classes: int
) -> sparse.csr_matrix:
    """Confusion matrices of groups, flattened and sparse: (G, K*K), cell target * K + prediction."""
    cells = np.asarray(target, dtype=np.int64) * num_classes + prediction
    return sums_at(codes, cells, np.ones(len(cells)), (num_groups, num_classes**2))


def confusion_metrics(matrices: np.ndarray) -> dict[str, np.ndarray]:
    """accuracy, balanced_accuracy and macro_f1 (B,) of confusion matrices (B, K, K), rows true, columns predicted.

    All in [0, 1]. balanced_accuracy is the mean recall of classes that occur; macro_f1 the mean F1 of classes that
    occur or are predicted (F1 is 0 for a class that is never right). NaN for an empty matrix.
    """
    right = np.einsum("bkk->bk", matrices)
    actual, predicted = matrices.sum(2), matrices.sum(1)
    return {
        "accuracy": divide(right.sum(1), actual.sum(1)),
        "balanced_accuracy": _mean_defined(divide(right, actual)),
        "macro_f1": _mean_defined(divide(2 * right, actual + predicted)),
    }


def _mean_defined(values: np.ndarray) -> np.ndarray:
    """Mean over axis 1 of what is not NaN; NaN where nothing is defined."""
    defined = ~np.isnan(values)
    return divide(np.where(defined, values, 0.0).sum(1), defined.sum(1))


def confusion_statistic(
    target: np.ndarray, prediction: np.ndarray, codes: np.ndarray, num_groups: int, num_classes: int
) -> Statistic:
    """`confusion_metrics` as a statistic of group weights; target, prediction, codes (N,) int64."""
    per_group = confusion_per_group(target, prediction, codes, num_groups, num_classes)
    return of_sums(per_group, lambda sums: confusion_metrics(sums.reshape(-1, num_classes, num_classes)))


def confidence_bins(confidence: np.ndarray) -> np.ndarray:
    """Bin numbers (N,) int64 in [0, NUM_BINS) of confidences in [0, 1]; bins are open below and closed above."""
    return np.clip(np.ceil(confidence * NUM_BINS).astype(np.int64) - 1, 0, NUM_BINS - 1)


def calibration_statistic(confidence: np.ndarray, correct: np.ndarray, codes: np.ndarray, num_groups: int) -> Statistic:
    """Expected calibration error in [0, 1], 0 is best, as a statistic of group weights.

    sum over bins of share(bin) * |accuracy(bin) - mean confidence(bin)|, which equals sum |gap| / N with the gap of a
    bin the sum of (correct - confidence). Guo et al., ICML 2017, equation 3.
    """
    gaps = sums_at(codes, confidence_bins(confidence), correct - confidence, (num_groups, NUM_BINS))
    sizes = sparse.csr_matrix(np.bincount(codes, minlength=num_groups).astype(np.float64)[:, None])

    def error(sums: np.ndarray) -> dict[str, np.ndarray]:
        return {"calibration_error": divide(np.abs(sums[:, :NUM_BINS]).sum(1), sums[:, NUM_BINS])}

    return of_sums(sparse.hstack([gaps, sizes]), error)


def auroc_statistic(scores: np.ndarray, positive: np.ndarray, codes: np.ndarray, num_groups: int) -> Statistic:
    """Area under the ROC curve in [0, 1], named auroc: the weighted share of (positive, negative) pairs in order.

    Ties count one half. NaN where a resample has no positive or no negative.

    Args:
        scores: (N,) float, larger means more positive. positive: (N,) bool. codes: (N,) int64 group numbers.
    """
    segment = _segments(np.asarray(scores), np.asarray(positive, dtype=bool))
    shape = (int(segment.max()) + 1, num_groups)
    positives = sums_at(segment, codes, positive, shape)
    negatives = sums_at(segment, codes, ~np.asarray(positive, dtype=bool), shape)

    def area(weights: np.ndarray) -> dict[str, np.ndarray]:
        above, below = positives @ weights.T, negatives @ weights.T  # (segments, B)
        right = np.einsum("sb,sb->b", above, np.cumsum(below, axis=0) - 0.5 * below)
        return {"auroc": divide(right, above.sum(0) * below.sum(0))}

    return area


def _segments(scores: np.ndarray, positive: np.ndarray) -> np.ndarray:
    """Segment numbers (N,) int64 that grow with the score, as few as the area needs.

    Samples of equal score share one; so do neighbouring scores that only negatives have, whose order does not matter.
    """
    _, run = np.unique(scores, return_inverse=True)
    has_positive = np.bincount(run, weights=positive) > 0
    begins = has_positive | np.r_[True, has_positive[:-1]]
    return (np.cumsum(begins) - 1)[run]


def macro_auroc_statistic(
    probabilities: np.ndarray, target: np.ndarray, codes: np.ndarray, num_groups: int
) -> Statistic:
    """Mean one-vs-rest AUROC over the classes for which it is defined, named auroc; NaN if there is none.

    A class without samples, or with nothing but its samples, in a resample is left out of that resample.

    Args:
        probabilities: (N, K). target: (N,) int64. codes: (N,) int64.
    """
    areas = [
        auroc_statistic(probabilities[:, k], target == k, codes, num_groups) for k in range(probabilities.shape[1])
    ]
    return lambda weights: {"auroc": _mean_defined(np.stack([area(weights)["auroc"] for area in areas], axis=1))}
