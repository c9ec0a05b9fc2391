"""The package cleanlab (extra `cleanlab`) as a labeler: its choice of wrong labels, by classifiers of this project.

Probabilities are those of `confident_learning`: linear classifiers on the embeddings that have seen neither the row nor
others of its group. Which labels are wrong says `cleanlab.filter.find_label_issues` for all labelled rows at once,
p_clean is `cleanlab.rank.get_label_quality_scores`. A row with a wrong label is `id_noise`: its new label is the most
probable other class, with that probability as weight. All others with a label are `clean`; a row without one is
`pseudo`, with the most probable class and its probability.

Source: Northcutt et al., Confident learning, JAIR 70, 2021, arXiv 1911.00068, in the package of its authors.
Deviations: new labels, where the package only points at rows; classes that no classifier can judge keep their labels.
"""

import json
from typing import Any, Literal

import numpy as np
import polars as pl
from pydantic import Field

from appssl.errors import SettingsError
from appssl.labelers.confident_learning import SCHEMA, ConfidentLearning
from appssl.settings import Settings

Filter = Literal[
    "prune_by_noise_rate", "prune_by_class", "both", "confident_learning", "predicted_neq_given", "low_self_confidence"
]


class Config(Settings):
    name: Literal["cleanlab"] = "cleanlab"
    filter_by: Filter = Field("prune_by_noise_rate", description="how cleanlab chooses wrong labels; its default")
    score: Literal["self_confidence", "normalized_margin"] = Field(
        "self_confidence", description="p_clean; cleanlab's default"
    )
    folds: int = Field(5, ge=2, le=20, description="parts of the cross-fitting")
    l2: float = Field(1e-2, gt=0, description="penalty of the classifier, per standardized feature")


class Cleanlab(ConfidentLearning):
    def fit(self, table: pl.DataFrame) -> None:
        """Fits the classifiers.

        Raises:
            SettingsError: if the package is not installed. DataError: as `confident_learning`.
        """
        _package()
        probabilities, target = self.fit_classifiers(table)
        wrong = self._wrong(probabilities, target)
        given = int((target >= 0).sum())
        self._ledger = [
            {
                "round": 1,
                "threshold": self.config.filter_by,
                "taken": given - int(wrong.sum()),
                "noise_rate": float(wrong.sum() / given),
                "unjudged_classes": self.unjudged(),
            }
        ]

    def label(self, table: pl.DataFrame) -> pl.DataFrame:
        """Label table with the additional column p_clean (null without a given label).

        Raises:
            DataError: if a label was not among those that were fitted.
        """
        probabilities, target = self.judged(table)
        wrong = self._wrong(probabilities, target)
        given, p_clean = target >= 0, np.full(len(target), np.nan)
        if given.any():
            scores = _package().rank.get_label_quality_scores
            p_clean[given] = scores(target[given], probabilities[given], method=self.config.score)
        rows = [self._said(*row) for row in zip(target.tolist(), probabilities, wrong.tolist(), p_clean, strict=True)]
        made = pl.DataFrame(rows, schema=SCHEMA, orient="row")
        return pl.concat([table.select("id"), made], how="horizontal")

    def _wrong(self, probabilities: np.ndarray, target: np.ndarray) -> np.ndarray:
        """(N,) bool: labels that cleanlab calls wrong."""
        wrong = np.zeros(len(target), dtype=bool)
        given = target >= 0
        if given.any():
            find = _package().filter.find_label_issues
            wrong[given] = find(target[given], probabilities[given], filter_by=self.config.filter_by, n_jobs=1)
        return wrong & ~np.isin(target, list(self._rare))

    def _said(self, target: int, probabilities: np.ndarray, wrong: bool, p_clean: float) -> tuple[Any, ...]:
        """(label, confidence, weight, kind, reason, p_clean) by the rules at the top of this file."""
        others = probabilities.copy()
        if target >= 0:
            others[target] = -1.0
        best = int(others.argmax())
        sure = float(probabilities[best])
        score = {"class": self._classes[best], "probability": round(sure, 4)}
        if target < 0:
            return self._classes[best], sure, sure, "pseudo", json.dumps({"why": "predicted", **score}), None
        given = self._classes[target]
        if target in self._rare:
            why = "kept: the class has too few images to judge"
            return given, 1.0, 1.0, "clean", json.dumps({"why": why, **score}), 1.0
        score = {**score, "p_clean": round(float(p_clean), 4)}
        if wrong:
            why = f"given {given}, cleanlab calls it wrong ({self.config.filter_by})"
            return self._classes[best], sure, sure, "id_noise", json.dumps({"why": why, **score}), float(p_clean)
        why = "cleanlab calls it right"
        return given, float(p_clean), 1.0, "clean", json.dumps({"why": why, **score}), float(p_clean)


def _package() -> Any:
    try:
        import cleanlab
        import cleanlab.filter
        import cleanlab.rank
    except ImportError as error:
        raise SettingsError(
            f"labelers/cleanlab needs the package cleanlab: pip install 'appssl[cleanlab]', or use confident_learning "
            f"({error})."
        ) from None
    return cleanlab


def build(config: Config, *, seed: int) -> Cleanlab:
    return Cleanlab(config, seed)
