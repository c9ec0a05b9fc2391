"""95 % percentile bootstrap over groups (patients, subjects, users), vectorised over resamples.

A resample draws as many groups as there are, with replacement, and keeps each group whole. It is described by how
often each group was drawn, so every statistic here is a function of group weights (B, G), B resamples at a time. All
weights 1 give the value itself. The draws depend on (number of groups, seed) only: statistics that are bootstrapped
with the same seed see the same resamples, and a difference of two systems is paired.

Source: Efron and Tibshirani, An Introduction to the Bootstrap, 1993, chapter 13 (percentile interval); Field and Welsh,
Bootstrapping clustered data, JRSS-B 2007 (groups drawn whole).
"""

from collections.abc import Callable, Iterator, Mapping
from typing import Any, NamedTuple

import numpy as np
from scipy import sparse

from appssl.errors import DataError

QUANTILES = (0.025, 0.975)
BLOCK_ELEMENTS = 2_000_000  # float64 elements per array of a block of resamples: 16 MB

# Group weights (B, G) float64 -> values (B,) by name, NaN where a resample leaves a statistic undefined.
Statistic = Callable[[np.ndarray], Mapping[str, np.ndarray]]


class Interval(NamedTuple):
    """A value with its interval; low and high are None with fewer than two groups."""

    value: float
    low: float | None
    high: float | None


def group_codes(groups: np.ndarray) -> tuple[np.ndarray, int]:
    """Numbers (N,) int64 of the groups in sorted order, and how many groups there are.

    Raises:
        DataError: if there is no row.
    """
    if len(groups) == 0:
        raise DataError("there is nothing to measure: the split under test has no rows.")
    distinct, codes = np.unique(np.asarray(groups), return_inverse=True)
    return codes.reshape(-1), len(distinct)


def resamples(num_groups: int, *, num: int, seed: int, block: int) -> Iterator[np.ndarray]:
    """Group weights (B, G) float64, `num` rows in blocks of at most `block`; the rows do not depend on `block`."""
    rng = np.random.Generator(np.random.Philox(key=[seed, num_groups]))
    for start in range(0, num, block):
        rows = min(block, num - start)
        drawn = rng.integers(0, num_groups, (rows, num_groups)) + num_groups * np.arange(rows)[:, None]
        yield np.bincount(drawn.ravel(), minlength=rows * num_groups).reshape(rows, num_groups).astype(np.float64)


def bootstrap(statistic: Statistic, num_groups: int, *, num: int, seed: int, elements: int = 1) -> dict[str, Interval]:
    """Value and interval of every statistic; resamples in which one is undefined (NaN) do not enter its interval.

    Args:
        statistic: of group weights (B, G); must treat rows independently.
        num: resamples. elements: array elements the statistic needs per resample, which bounds the size of a block.
    """
    value = statistic(np.ones((1, num_groups)))
    if num_groups < 2:
        return {name: Interval(float(v[0]), None, None) for name, v in value.items()}
    block = max(1, BLOCK_ELEMENTS // max(elements, num_groups))
    drawn = [statistic(weights) for weights in resamples(num_groups, num=num, seed=seed, block=block)]
    return {name: _interval(float(v[0]), np.concatenate([d[name] for d in drawn])) for name, v in value.items()}


def _interval(value: float, drawn: np.ndarray) -> Interval:
    defined = drawn[~np.isnan(drawn)]
    if len(defined) < 2 or np.isnan(value):
        return Interval(value, None, None)
    low, high = np.quantile(defined, QUANTILES)
    return Interval(value, float(low), float(high))


def bootstrap_statistic(
    per_group: Any, statistic: Callable[[np.ndarray], Mapping[str, np.ndarray]], *, num: int, seed: int
) -> dict[str, Interval]:
    """Statistics of sums over groups, such as accuracy of a summed confusion matrix.

    Args:
        per_group: what is summed, (G, ...) array, or a scipy sparse matrix (G, C).
        statistic: sums (B, ...) -> values (B,) by name.
    """
    return bootstrap(of_sums(per_group, statistic), per_group.shape[0], num=num, seed=seed, elements=_width(per_group))


def of_sums(per_group: Any, statistic: Callable[[np.ndarray], Mapping[str, np.ndarray]]) -> Statistic:
    """A statistic of weighted sums as a statistic of group weights; arguments as `bootstrap_statistic`."""
    if sparse.issparse(per_group):
        transposed = sparse.csr_matrix(per_group.T)
        return lambda weights: statistic(np.ascontiguousarray((transposed @ weights.T).T))
    flat = np.asarray(per_group, dtype=np.float64).reshape(len(per_group), -1)
    return lambda weights: statistic((weights @ flat).reshape(len(weights), *per_group.shape[1:]))


def _width(per_group: Any) -> int:
    return int(np.prod(per_group.shape[1:]))


def difference(first: Statistic, second: Statistic) -> Statistic:
    """first - second, resample by resample: the statistic of a paired comparison on the same groups."""

    def paired(weights: np.ndarray) -> dict[str, np.ndarray]:
        one, two = first(weights), second(weights)
        return {name: one[name] - two[name] for name in one if name in two}

    return paired


def sum_per_group(columns: np.ndarray, codes: np.ndarray, num_groups: int) -> np.ndarray:
    """Sums (G, C) float64 of the rows (N, C) of each group, codes (N,) int64."""
    return np.stack([np.bincount(codes, column, minlength=num_groups) for column in columns.T], axis=1)


def bootstrap_mean(values: np.ndarray, groups: np.ndarray, *, num: int, seed: int) -> Interval:
    """Mean of values (N,) with its interval over groups (N,): sum over drawn rows / number of drawn rows.

    NaN marks rows for which the value is undefined; they are left out of both sums. (value, low, high), value NaN if
    every row is undefined.
    """
    return bootstrap_means({"mean": values}, groups, num=num, seed=seed)["mean"]


def bootstrap_means(
    values: Mapping[str, np.ndarray], groups: np.ndarray, *, num: int, seed: int
) -> dict[str, Interval]:
    """As `bootstrap_mean` for several columns (N,) over the same groups (N,), with one set of resamples."""
    codes, num_groups = group_codes(groups)
    names = list(values)
    table = np.stack([np.asarray(values[name], dtype=np.float64) for name in names], axis=1)
    defined = ~np.isnan(table)
    sums = sum_per_group(np.hstack([np.where(defined, table, 0.0), defined]), codes, num_groups)

    def means(totals: np.ndarray) -> dict[str, np.ndarray]:
        ratio = divide(totals[:, : len(names)], totals[:, len(names) :])
        return {name: ratio[:, column] for column, name in enumerate(names)}

    return bootstrap_statistic(sums, means, num=num, seed=seed)


def paired_mean(first: np.ndarray, second: np.ndarray, groups: np.ndarray, *, num: int, seed: int) -> Interval:
    """Mean of first - second with its interval; row i of both (N,) is the same sample, of group groups[i]."""
    if len(first) != len(second):
        raise DataError(f"a paired comparison needs the same rows: there are {len(first)} and {len(second)}.")
    return bootstrap_mean(np.asarray(first, dtype=np.float64) - np.asarray(second), groups, num=num, seed=seed)


def divide(above: np.ndarray, below: np.ndarray) -> np.ndarray:
    """above / below, NaN where below is 0."""
    return np.divide(above, below, out=np.full(np.broadcast(above, below).shape, np.nan), where=below != 0)
