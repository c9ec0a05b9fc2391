"""Metrics of multiple-instance learning, with 95 % bootstrap intervals over groups (patients).

bag_<metric>: those of evaluators/classification over bags, from the probabilities of bags. tile_<metric>: the same over
the tiles whose own class is known (`true_label`), which no training has seen; not given where there are none.
"""

from typing import Literal

import polars as pl

from appssl.contracts import Metric, Scored
from appssl.errors import DataError
from appssl.evaluators import classification
from appssl.settings import Settings

DESCRIPTIONS = {
    f"{what}_{name}": values for what in ("bag", "tile") for name, values in classification.DESCRIPTIONS.items()
}


class Config(Settings):
    name: Literal["mil"] = "mil"


class MIL:
    def evaluate(self, scored: Scored, *, num_bootstrap: int, seed: int) -> dict[str, Metric]:
        """
        Raises:
            DataError: if the model gives no probabilities of bags.
        """
        measured = classification.Classification()
        return {
            f"{what}_{name}": metric
            for what, part in parts(scored).items()
            for name, metric in measured.evaluate(part, num_bootstrap=num_bootstrap, seed=seed).items()
        }


def paired(first: Scored, second: Scored, *, num_bootstrap: int, seed: int) -> dict[str, Metric]:
    """first - second for every metric, on the same resamples of the same bags and tiles."""
    theirs = parts(second)
    return {
        f"{what}_{name}": metric
        for what, part in parts(first).items()
        for name, metric in classification.paired(part, theirs[what], num_bootstrap=num_bootstrap, seed=seed).items()
    }


def parts(scored: Scored) -> dict[str, Scored]:
    """What is classified: bags, and tiles whose class is known."""
    if scored.bags is None:
        raise DataError("the evaluator mil needs a model of bags: finetuner ins, abmil or mil_pooling.")
    bags = scored.bags
    found = {"bag": Scored(bags.names, bags.groups, bags.target, scored.classes, bags.probabilities)}
    if scored.probabilities is None or scored.columns is None:
        return found
    known = scored.columns.select(pl.col("true_label").is_not_null()).to_series().to_numpy()
    if known.any():
        tiles = {name: getattr(scored, name)[known] for name in ("ids", "groups", "target", "probabilities")}
        found["tile"] = Scored(classes=scored.classes, **tiles)
    return found


def build(config: Config) -> MIL:
    return MIL()
