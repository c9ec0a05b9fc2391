"""Two Gaussians in one dimension: splits per-sample losses into a low (clean) and a high (noisy) part.

Source: Li et al., DivideMix, ICLR 2020, arXiv 2002.07394, section 3.1 (Gaussian mixture on normalized losses), after
Arazo et al., ICML 2019, arXiv 1904.11238 (beta mixture). The fit is scikit-learn's expectation maximization, started
from the values below and above their mean or another threshold, so that no random numbers are involved.
Deviation: with unequal variances the wider component wins at both ends, which would call the very smallest losses
noisy. Outside the two means the log odds therefore go on along their tangent there, so they fall everywhere.
"""

import warnings
from dataclasses import dataclass
from typing import Literal

import numpy as np
from sklearn.exceptions import ConvergenceWarning
from sklearn.mixture import GaussianMixture

_FLOOR = 1e-6  # least variance that is added; values are normalized to about 0..1
_SMALLEST_SPREAD = 1e-9
_SMALLEST_RANGE = 1e-3  # nats; folds of equal rows differ by less, through rounding
_LARGEST_ODDS = 700.0  # exp of more overflows


@dataclass(frozen=True)
class TwoGaussians:
    """Fitted mixture. Index 0 is the component with the lower mean; share + of both sums to 1."""

    mean: tuple[float, float]
    variance: tuple[float, float]
    share: tuple[float, float]

    def posterior_low(self, values: np.ndarray) -> np.ndarray:
        """Probability of the lower component, (N,) float64, never rising with the value."""
        values = np.asarray(values, np.float64)
        inner = np.clip(values, *self.mean)  # between the means the log odds fall with the value
        (low, high), (var_low, var_high), (share_low, share_high) = self.mean, self.variance, self.share
        odds = np.log(share_low / share_high) - 0.5 * np.log(var_low / var_high)
        odds = odds - 0.5 * (inner - low) ** 2 / var_low + 0.5 * (inner - high) ** 2 / var_high
        slope = (inner - high) / var_high - (inner - low) / var_low
        return 1 / (1 + np.exp(-np.clip(odds + slope * (values - inner), -_LARGEST_ODDS, _LARGEST_ODDS)))


def fit_two_gaussians(
    values: np.ndarray,
    *,
    max_steps: int = 200,
    tolerance: float = 1e-6,
    floor: float = _FLOOR,
    start: Literal["mean", "two_means"] = "mean",
) -> TwoGaussians | None:
    """Maximum likelihood by expectation maximization.

    Args:
        values: (N,) float, finite. max_steps: most steps. tolerance: gain of mean log likelihood below which it ends.
        floor: added to variances. start: from the values below and above their mean, or from the best two clusters,
            which few steps need when one part is much larger.
    Returns:
        The mixture, or None when it is not defined: fewer than two values, or all equal.
    """
    values = np.asarray(values, np.float64)
    if len(values) < 2 or np.ptp(values) <= _SMALLEST_SPREAD:
        return None
    low = values <= (values.mean() if start == "mean" else two_means_threshold(values))
    parts = (values[low], values[~low])
    mixture = GaussianMixture(
        2,
        tol=tolerance,
        max_iter=max_steps,
        reg_covar=floor,
        random_state=0,
        weights_init=[len(part) / len(values) for part in parts],
        means_init=[[part.mean()] for part in parts],
        precisions_init=[[[1 / (part.var() + floor)]] for part in parts],
    )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)  # the last step is as good an estimate
        mixture.fit(values[:, None])
    order = np.argsort(mixture.means_[:, 0])
    means, variances, shares = mixture.means_[order, 0], mixture.covariances_[order, 0, 0], mixture.weights_[order]
    return TwoGaussians(_pair(means), _pair(variances), _pair(shares))


def two_means_threshold(values: np.ndarray) -> float:
    """Largest value of the lower one of the two clusters of (N,) values, N >= 2 and not all equal, that k-means seeks.

    The squared distances to the two means add up to the least there is, so no start and no random numbers matter.
    """
    ordered = np.sort(np.asarray(values, np.float64))
    below = np.arange(1, len(ordered))
    gap = np.cumsum(ordered - ordered.mean())[:-1]  # count * (mean of all - mean below), up to its sign
    between = gap**2 / (below * (len(ordered) - below))
    between[ordered[1:] == ordered[:-1]] = -1.0  # equal values stay together
    return float(ordered[between.argmax()])


def _pair(values: np.ndarray) -> tuple[float, float]:
    return float(values[0]), float(values[1])


@dataclass(frozen=True)
class Range:
    """What losses are divided by before a mixture is fitted: two quantiles, which a few extreme values do not move."""

    low: float
    high: float

    @classmethod
    def of(cls, losses: np.ndarray, clip: float = 0.01) -> "Range":
        """From the `clip` and 1 - `clip` quantiles of (N,) losses."""
        low, high = np.quantile(losses, [clip, 1 - clip])
        return cls(float(low), float(high))

    def normalize(self, losses: np.ndarray) -> np.ndarray:
        """`low` to 0 and `high` to 1; zeros when the two are nearly equal: the losses say nothing then."""
        if self.high - self.low < _SMALLEST_RANGE:
            return np.zeros_like(losses)
        return (losses - self.low) / (self.high - self.low)
