"""Metrics over all folds of a cross-validation: every group is tested once, by a model that was not trained on it."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl

from appssl import registry
from appssl.artifact import MANIFEST, Artifact
from appssl.contracts import BagScores, Metric, Scored
from appssl.reports.reading import Run

_FROM_PREDICTIONS = ("classification", "mil")  # evaluators that need nothing but probabilities


@dataclass(frozen=True)
class OverFolds:
    """num_folds: those that were run. metrics: evaluator -> metric. comparisons: (against, metric, difference)."""

    num_folds: int
    metrics: dict[str, dict[str, Metric]]
    comparisons: list[tuple[str, str, Metric]]


def over_folds(runs: Sequence[Run]) -> OverFolds | None:
    """Metrics of the predictions of all runs together; None if they are not different folds of one cross-validation.

    Probabilities of different models are ranked together in an AUROC.
    """
    source = runs[0].data.config().get("settings", {}).get("source", {})
    if len(runs) < 2 or not (source.get("split") or {}).get("folds"):
        return None
    ours = _scored([run.folder / "evaluate" for run in runs], runs[0])
    if ours is None or len(set(ours.groups)) < sum(map(_num_groups, runs)):
        return None  # nothing was predicted, or two seeds tested the same fold
    settings = runs[0].stages["evaluate"].config()["settings"]
    how = {"num_bootstrap": int(settings["num_bootstrap"]), "seed": 0}
    names = [name for name in _FROM_PREDICTIONS if name in runs[0].metrics()]
    modules = {name: registry.load("evaluators", name) for name in names}
    metrics = {name: module.build(module.Config()).evaluate(ours, **how) for name, module in modules.items()}
    comparisons = []
    for against in settings.get("compare") or ():
        place = Path(*([runs[0].domain] if "/" not in against else []), against)
        theirs = _scored([run.folder.parents[2] / place / run.folder.name / "evaluate" for run in runs], runs[0])
        for module in modules.values() if theirs is not None else ():
            comparisons += [(against, name, found) for name, found in module.paired(ours, theirs, **how).items()]
    return OverFolds(len(runs), metrics, comparisons)


def _num_groups(run: Run) -> int:
    return int(run.stages["evaluate"].table("predictions.parquet")["group"].n_unique())


def _scored(folders: Sequence[Path], run: Run) -> Scored | None:
    """The predictions of finished evaluations, one below the other, in the order of their ids."""
    if not all((folder / MANIFEST).is_file() for folder in folders):
        return None
    opened = [Artifact.open(folder, check=False) for folder in folders]
    if not all(artifact.has("predictions.parquet") for artifact in opened):
        return None
    classes = tuple(run.meta["classes"])
    tables = [artifact.table("predictions.parquet") for artifact in opened]
    rows = pl.concat(tables, how="diagonal").sort("id")  # one by an older version kept less of each sample
    bags = None
    if all(artifact.has("bags.parquet") for artifact in opened):
        table = pl.concat([artifact.table("bags.parquet") for artifact in opened]).sort("bag")
        bags = BagScores(table["bag"].to_numpy(), **prediction_columns(table, classes))
    return Scored(ids=rows["id"].to_numpy(), classes=classes, bags=bags, **prediction_columns(rows, classes))


def prediction_columns(table: pl.DataFrame, classes: tuple[str, ...]) -> dict[str, Any]:
    """Groups, target numbers and probabilities of a table of predictions, as `Scored` and `BagScores` take them."""
    number = {name: n for n, name in enumerate(classes)}
    return {
        "groups": table["group"].to_numpy(),
        "target": np.array([number[name] for name in table["target"]], np.int64),
        "probabilities": table["probabilities"].to_numpy().astype(np.float64),
    }
