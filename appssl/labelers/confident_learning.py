"""Confident learning: a label is wrong where another class is predicted more surely than that class usually is.

With p_i(k) the probability of class k for row i, by a linear classifier on the embeddings that has seen neither the row
nor others of its group, and y_i the given label:

    t_k = mean of p_i(k) over the rows with y_i = k                    how sure one is of class k where it is given
    c_i = argmax p_i(k) over the classes with p_i(k) >= t_k            the confident class, if there is any
    C[y, c] = number of rows with this label and confident class       the confident joint

Rows off the diagonal of C are wrong. No rate of noise and no threshold is to be given.

Of a row with a label is said: `clean` if its confident class is the label; `id_noise` if it is another one, which is
the new label, its probability the weight; `hard_clean` if no class is confident: the label is kept with weight 1.
p_clean is (1 + p(label) - largest other p) / 2. This method knows of no images outside the classes. A row without a
label: `pseudo`, labelled when a class is confident.

Source: Northcutt et al., Confident learning: estimating uncertainty in dataset labels, JAIR 70, 2021, arXiv 1911.00068,
equations 1 and 2, method "confident joint", ranking by normalized margin. Deviations: where several classes are
confident, the one of largest probability counts, as there; a new label has the weight of its probability, where that
work removes the row; classes that no classifier can judge keep their labels.
"""

import json
from typing import Any, Literal

import numpy as np
import polars as pl
from pydantic import Field

from appssl.errors import DataError
from appssl.ops.cross_fitting import fit_each, folds, out_of_fold
from appssl.ops.linear import embedding_matrix
from appssl.settings import Settings

SCHEMA = {
    "label": pl.String,
    "confidence": pl.Float64,
    "weight": pl.Float64,
    "kind": pl.String,
    "reason": pl.String,
    "p_clean": pl.Float64,
}


class Config(Settings):
    name: Literal["confident_learning"] = "confident_learning"
    folds: int = Field(5, ge=2, le=20, description="parts of the cross-fitting")
    l2: float = Field(1e-2, gt=0, description="penalty of the classifier, per standardized feature")


class ConfidentLearning:
    def __init__(self, config: Any, seed: int) -> None:
        """`config`: name, folds, l2."""
        self.config, self.seed = config, seed
        self._ledger: list[dict[str, Any]] = []

    def fit(self, table: pl.DataFrame) -> None:
        """Fits the classifiers and the thresholds.

        Raises:
            DataError: with fewer than two classes or two groups, or embeddings that are all equal or not finite.
        """
        probabilities, target = self.fit_classifiers(table)
        self._thresholds = thresholds(probabilities, target)
        joint = confident_joint(probabilities, target, self._thresholds)
        judged = int(joint.sum())
        self._ledger = [
            {
                "round": 1,
                "threshold": dict(zip(self._classes, np.round(self._thresholds, 4).tolist(), strict=True)),
                "taken": int(np.trace(joint)),
                "confident_joint": joint.tolist(),
                "noise_rate": float(1 - np.trace(joint) / judged) if judged else 0.0,
                "unjudged_classes": self.unjudged(),
            }
        ]

    def fit_classifiers(self, table: pl.DataFrame) -> tuple[np.ndarray, np.ndarray]:
        """Probabilities (N, K) of rows by classifiers that have not seen them, and class numbers (N,), -1 without."""
        features, labels = embedding_matrix(table["embedding"]), table["label"].to_list()
        self._classes = sorted({label for label in labels if label is not None})
        if len(self._classes) < 2:
            raise DataError(
                f"{self.config.name} needs at least two classes among the labels, found {len(self._classes)} "
                f"({', '.join(self._classes) or 'no label at all'}). Drop the pseudolabel block."
            )
        target = self._numbers(labels)
        groups = table["group"].to_list()
        self._fold_of = folds(groups, labels, self.config.folds, self.seed)
        fold = np.array([self._fold_of[group] for group in groups])
        if len(set(fold[target >= 0])) < 2:
            raise DataError(f"{self.config.name} needs two groups with labels: each is judged by the others.")
        self._rare = {k for k in range(len(self._classes)) if len(set(fold[target == k])) < 2}
        weight = np.ones(len(target))
        self._models = fit_each(features, target, fold, len(self._classes), self.config.folds, weight, self.config.l2)
        return out_of_fold(self._models, features, fold), target

    def unjudged(self) -> list[str]:
        return [self._classes[k] for k in sorted(self._rare)]

    def judged(self, table: pl.DataFrame) -> tuple[np.ndarray, np.ndarray]:
        """As `fit_classifiers`, of rows that were fitted or not."""
        target = self._numbers(table["label"].to_list())
        fold = np.array([self._fold_of.get(group, -1) for group in table["group"].to_list()], dtype=np.int64)
        return out_of_fold(self._models, embedding_matrix(table["embedding"]), fold), target

    def _numbers(self, labels: list[str | None]) -> np.ndarray:
        known = {name: number for number, name in enumerate(self._classes)}
        unknown = sorted({label for label in labels if label is not None and label not in known})
        if unknown:
            raise DataError(f"labels that {self.config.name} was not fitted on: {', '.join(unknown[:10])}.")
        return np.array([-1 if label is None else known[label] for label in labels], dtype=np.int64)

    def label(self, table: pl.DataFrame) -> pl.DataFrame:
        """Label table with the additional column p_clean (null without a given label); rows that were not fitted too.

        Raises:
            DataError: if a label was not among those that were fitted.
        """
        probabilities, target = self.judged(table)
        confident = confident_class(probabilities, self._thresholds)
        rows = [self._row(*row) for row in zip(target.tolist(), probabilities, confident.tolist(), strict=True)]
        made = pl.DataFrame(rows, schema=SCHEMA, orient="row")
        return pl.concat([table.select("id"), made], how="horizontal")

    def _row(self, target: int, probabilities: np.ndarray, confident: int) -> tuple[Any, ...]:
        """(label, confidence, weight, kind, reason, p_clean) by the rules at the top of this file."""
        found = self._classes[confident] if confident >= 0 else None
        sure = float(probabilities[confident]) if confident >= 0 else float(probabilities.max())
        score = {"confident_class": found, "probability": round(sure, 4)}
        if target < 0:
            why = "predicted" if found else "no label, and no class is confident"
            return found, sure, sure if found else 0.0, "pseudo", json.dumps({"why": why, **score}), None
        given = self._classes[target]
        p_clean = margin(probabilities, target)
        score = {**score, "p_clean": round(p_clean, 4)}
        if target in self._rare:
            why = "kept: the class has too few images to judge"
            return given, 1.0, 1.0, "clean", json.dumps({"why": why, **score}), 1.0
        if confident == target:
            return given, p_clean, 1.0, "clean", json.dumps({"why": "confidently its label", **score}), p_clean
        if found is None:
            why = "no class is confident"
            return given, p_clean, 1.0, "hard_clean", json.dumps({"why": why, **score}), p_clean
        why = f"given {given}, confidently another class"
        return found, sure, sure, "id_noise", json.dumps({"why": why, **score}), p_clean

    def ledger(self) -> list[dict[str, Any]]:
        return self._ledger


def build(config: Config, *, seed: int) -> ConfidentLearning:
    return ConfidentLearning(config, seed)


def thresholds(probabilities: np.ndarray, target: np.ndarray) -> np.ndarray:
    """t (K,) float64: mean probability of each class over the rows that have it as label; infinite without such rows.

    Args:
        probabilities: (N, K). target: (N,) int64, below 0 without label.
    """
    found = np.full(probabilities.shape[1], np.inf)
    for k in np.unique(target[target >= 0]):
        found[k] = probabilities[target == k, k].mean()
    return found


def confident_class(probabilities: np.ndarray, threshold: np.ndarray) -> np.ndarray:
    """c (N,) int64, -1 where no class reaches its threshold (K,)."""
    reached = np.where(probabilities >= threshold, probabilities, -1.0)
    return np.where(reached.max(axis=1) >= 0, reached.argmax(axis=1), -1)


def confident_joint(probabilities: np.ndarray, target: np.ndarray, threshold: np.ndarray) -> np.ndarray:
    """C (K, K) int64: given label in rows, confident class in columns."""
    joint = np.zeros((len(threshold), len(threshold)), np.int64)
    confident = confident_class(probabilities, threshold)
    counted = (target >= 0) & (confident >= 0)
    np.add.at(joint, (target[counted], confident[counted]), 1)
    return joint


def margin(probabilities: np.ndarray, target: int) -> float:
    """(1 + p(label) - largest other p) / 2 in [0, 1], of probabilities (K,)."""
    others = np.delete(probabilities, target)
    return float((1 + probabilities[target] - others.max()) / 2)
