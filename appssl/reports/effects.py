"""How far one recipe is from another over all seeds, with an interval over test groups and seeds.

Seeds that test the same groups: the mean over seeds of the paired differences. Its interval has two parts. Over groups:
the predictions of all seeds together, bootstrapped as one evaluation, so that a group that is drawn brings what every
seed's model says of it. Over seeds: the differences of the seeds, resampled. Each end lies as far away as both parts
together, their squares added, as of a bootstrap of groups and seeds at once. Source: Owen, The pigeonhole bootstrap,
Annals of Applied Statistics 1(2), 2007. Deviations: the two ways are resampled one after the other; of S seeds a
bootstrap sees no more than their range, so with three the part of seeds is rather too small.

Seeds that are folds, each with groups of its own: as `folds.over_folds`, where groups stand for seeds too.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import hypot
from typing import Any

import numpy as np
import polars as pl

from appssl import registry
from appssl.contracts import BagScores, Metric, Scored
from appssl.errors import DataError
from appssl.ops.bootstrap import Interval, bootstrap_mean
from appssl.ops.per_sample import from_columns
from appssl.reports.folds import prediction_columns
from appssl.reports.reading import Run, is_number
from appssl.settings import nearest

_SEED = 0  # of the bootstrap over all seeds of the recipes


@dataclass(frozen=True)
class Effect:
    """First recipe minus second.

    Attributes:
        low, high: None where a seed has fewer than two test groups. by_seed: seed -> its own difference.
        paired: whether predictions were compared sample by sample; else both are taken as independent, which is wider.
    """

    value: float
    low: float | None
    high: float | None
    by_seed: Mapping[int, float]
    paired: bool


def effects(first: Sequence[Run], second: Sequence[Run], metrics: Sequence[str]) -> dict[str, Effect]:
    """Effects by metric.

    Args:
        first, second: evaluated runs of two recipes over the same data, the same seeds in the same order, two or more.
    Raises:
        DataError: if a metric was not measured in one of them.
    """
    pooled: dict[str, dict[str, Metric]] = {}
    found = {}
    for metric in metrics:
        evaluator = _evaluator(first[0], metric)
        if evaluator not in pooled:
            pooled[evaluator] = _pooled(first, second, evaluator)
        found[metric] = _effect(first, second, metric, pooled[evaluator].get(metric))
    return found


def _evaluator(run: Run, metric: str) -> str:
    measured = {name: evaluator for evaluator, found in run.metrics().items() for name in found}
    if metric not in measured:
        raise DataError(f"{run.folder}: {metric} was not measured.{nearest(metric, measured)} Change the claim.")
    return measured[metric]


def _effect(first: Sequence[Run], second: Sequence[Run], metric: str, whole: Metric | None) -> Effect:
    pairs = list(zip(first, second, strict=True))
    rows = [_stored(one, two, metric) or _unpaired(one, two, metric) for one, two in pairs]
    by_seed = {int(run.seed): float(row["value"]) for run, row in zip(first, rows, strict=True)}
    if whole is not None and _are_folds(first):
        return Effect(whole.value, whole.low, whole.high, by_seed, paired=True)
    values = np.array(list(by_seed.values()))
    seeds = bootstrap_mean(values, np.arange(len(values)), num=_num_bootstrap(first[0]), seed=_SEED)
    groups = Interval(whole.value, whole.low, whole.high) if whole is not None else _mean(rows)
    paired = whole is not None or all("against" in row for row in rows)
    return Effect(seeds.value, *_both(groups, seeds), by_seed, paired)


def _both(groups: Interval, seeds: Interval) -> tuple[float | None, float | None]:
    """Ends around the value over seeds, as far away as in both intervals, squares added."""
    if groups.low is None or groups.high is None or seeds.low is None or seeds.high is None:
        return None, None
    below = hypot(groups.value - groups.low, seeds.value - seeds.low)
    above = hypot(groups.high - groups.value, seeds.high - seeds.value)
    return seeds.value - below, seeds.value + above


def _stored(first: Run, second: Run, metric: str) -> Mapping[str, Any] | None:
    """The paired difference that the evaluation of the first has written."""
    rows = [row for row in first.comparisons() if (row["against"], row["metric"]) == (second.recipe, metric)]
    return rows[0] if rows else None


def _unpaired(first: Run, second: Run, metric: str) -> dict[str, Any]:
    """Difference of two values whose intervals are independent, or taken as such: ends by squares added."""
    one, two = (run.metrics().get(_evaluator(run, metric), {})[metric] for run in (first, second))
    value = one["value"] - two["value"]
    if not is_number(one["low"]) or not is_number(two["low"]):
        return {"value": value, "low": None, "high": None}
    below = hypot(one["value"] - one["low"], two["high"] - two["value"])
    above = hypot(one["high"] - one["value"], two["value"] - two["low"])
    return {"value": value, "low": value - below, "high": value + above}


def _mean(rows: Sequence[Mapping[str, Any]]) -> Interval:
    """Mean of the seeds' values and ends: the interval if what groups do to them is the same for all seeds."""
    means = {key: [row[key] for row in rows] for key in ("value", "low", "high")}
    if not all(map(is_number, [*means["low"], *means["high"]])):
        return Interval(float(np.mean(means["value"])), None, None)
    return Interval(*(float(np.mean(ends)) for ends in means.values()))


def _pooled(first: Sequence[Run], second: Sequence[Run], evaluator: str) -> dict[str, Metric]:
    """Paired differences of the predictions of all seeds together; {} where there are none, or no way to pair them."""
    module = registry.load("evaluators", evaluator)
    if not hasattr(module, "paired"):
        return {}
    ours, theirs = (_stacked(runs, getattr(module, "PER_SAMPLE", ())) for runs in (first, second))
    if ours is None or theirs is None:
        return {}
    found: dict[str, Metric] = module.paired(ours, theirs, num_bootstrap=_num_bootstrap(first[0]), seed=_SEED)
    return found


def _num_bootstrap(run: Run) -> int:
    return int(run.stages["evaluate"].config()["settings"]["num_bootstrap"])


def _are_folds(runs: Sequence[Run]) -> bool:
    groups = [set(run.stages["evaluate"].table("predictions.parquet")["group"]) for run in runs]
    return len(set().union(*groups)) == sum(map(len, groups))


def _stacked(runs: Sequence[Run], per_sample: Sequence[str]) -> Scored | None:
    """Predictions of all seeds, one below the other, ids with the seed behind; None if one has none.

    Args:
        per_sample: what else is read of each sample, where all seeds have it.
    """
    classes = tuple(runs[0].meta["classes"])
    predictions = [run.stages["evaluate"].table("predictions.parquet") for run in runs]
    if any(
        table is None or tuple(run.meta["classes"]) != classes for run, table in zip(runs, predictions, strict=True)
    ):
        return None
    tables = [_rows(run, table, "id") for run, table in zip(runs, predictions, strict=True)]
    rows = pl.concat(tables, how="diagonal")  # an evaluation by an older version kept less of each sample
    bags = [run.stages["evaluate"].table("bags.parquet") for run in runs]
    scores = None
    if all(table is not None for table in bags):
        table = pl.concat([_rows(run, table, "bag") for run, table in zip(runs, bags, strict=True)])
        scores = BagScores(table["bag"].to_numpy(), **prediction_columns(table, classes))
    facts = runs[0].meta.get("facts", {})
    ids = rows["id"].to_numpy()
    read = {"per_sample": from_columns(rows, per_sample, classes), **prediction_columns(rows, classes)}
    return Scored(ids=ids, classes=classes, columns=rows, bags=scores, facts=facts, **read)


def _rows(run: Run, table: pl.DataFrame, name: str) -> pl.DataFrame:
    """Rows of a table in the order of their names; those of samples with what the data tells of them."""
    if name == "id":
        samples = run.data.table("samples.parquet").with_columns(pl.col("id").cast(pl.String))
        others = [column for column in samples.columns if column == "id" or column not in table.columns]
        table = table.join(samples.select(others), on="id", how="left", maintain_order="left")
    return table.sort(name).with_columns(pl.format("{} s{}", name, pl.lit(run.seed)).alias(name))
