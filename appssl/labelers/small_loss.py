"""Small loss: a row whose given label a classifier of the others finds surprising is probably labelled wrongly.

Per row the cross-entropy of its label under a linear classifier on the embeddings, which was fitted without the row
(and its group); a mixture of two Gaussians on the losses; p_clean is the posterior of the component with small losses.

Source: Li et al., DivideMix, ICLR 2020, arXiv 2002.07394, section 3.1. Deviations: the loss is that of rows that were
not trained on (cross-fitting, as in Northcutt et al., arXiv 1911.00068) instead of a deep network stopped early; the
classifier is fitted `rounds` times, from the second on with p_clean as the weight of each row.

Rules, for a row with a label: p_clean >= threshold: `clean`, label kept, weight 1. Otherwise, when the classifier is
sure (confidence >= relabel_confidence) of another class: `id_noise`, that class is the new label, its probability the
weight. Otherwise: `ood_noise`, label kept, weight 0: no class claims the image. A hard image is indistinguishable from
an irrelevant one in this simple version. A row without a label: `pseudo`, labelled when the classifier is sure.
"""

import hashlib
import json
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import polars as pl
from pydantic import Field

from appssl.errors import DataError
from appssl.ops.cross_fitting import fit_each, folds, out_of_fold
from appssl.ops.linear import LinearSoftmax, embedding_matrix
from appssl.ops.mixture import Range, TwoGaussians, fit_two_gaussians
from appssl.settings import Settings

_SMALLEST = 1e-12  # probability below which the loss is not told apart


class Config(Settings):
    name: Literal["small_loss"] = "small_loss"
    threshold: float = Field(0.5, ge=0, le=1, description="p_clean from which a label is kept")
    relabel_confidence: float = Field(0.7, ge=0, le=1, description="confidence from which a noisy row gets a new label")
    folds: int = Field(5, ge=2, le=20, description="parts of the cross-fitting")
    rounds: int = Field(2, ge=1, le=10, description="fits of the classifier, each weighted by the one before")
    l2: float = Field(1e-2, gt=0, description="penalty of the classifier, per standardized feature")


@dataclass(frozen=True)
class _Judge:
    """All that a label is judged by: a classifier per fold, the mixture of losses, and classes too small for it."""

    models: list[LinearSoftmax]
    scale: Range
    mixture: TwoGaussians | None

    def p_clean(self, losses: np.ndarray) -> np.ndarray:
        """(N,) in 0..1; 1 everywhere when the losses are all equal, there is nothing to tell apart."""
        if self.mixture is None:
            return np.ones(len(losses))
        return self.mixture.posterior_low(self.scale.normalize(losses))


class SmallLoss:
    def __init__(self, config: Config, seed: int) -> None:
        self.config = config
        self.seed = seed
        self._ledger: list[dict[str, Any]] = []

    def fit(self, table: pl.DataFrame) -> None:
        """Fits classifiers and mixture.

        Raises:
            DataError: with no labels, a single class or a single group, or embeddings that are all equal or not finite.
        """
        features = embedding_matrix(table["embedding"])
        labels = table["label"].to_list()
        self._classes = sorted({label for label in labels if label is not None})
        target = self._numbers(labels)
        given = np.flatnonzero(target >= 0)
        if len(self._classes) < 2:
            raise DataError(
                f"small_loss needs at least two classes among the labels to tell right from wrong, found "
                f"{len(self._classes)} ({', '.join(self._classes) or 'no label at all'}). Drop the pseudolabel block."
            )
        groups = table["group"].to_list()
        self._fold_of = folds(groups, labels, self.config.folds, self.seed)
        fold = np.array([self._fold_of[group] for group in groups])
        if len(set(fold[given])) < 2:
            raise DataError("small_loss needs at least two groups with labels: each is judged by the others.")
        self._rare = self._too_small(fold, target)
        judged = given[~np.isin(target[given], list(self._rare))]
        self._ledger = []
        weight = np.ones(len(target))
        for number in range(1, self.config.rounds + 1):
            models = fit_each(features, target, fold, len(self._classes), self.config.folds, weight, self.config.l2)
            losses = self._losses(out_of_fold(models, features, fold), target)
            scale = Range.of(losses[judged]) if len(judged) else Range(0, 0)
            mixture = fit_two_gaussians(np.clip(scale.normalize(losses[judged]), 0, 1)) if len(judged) else None
            self._judge = _Judge(models, scale, mixture)
            p_clean = self._judge.p_clean(losses)
            weight = np.where(np.isin(target, list(self._rare)), 1.0, p_clean)
            self._note(number, p_clean[judged], losses[judged])

    def _numbers(self, labels: list[str | None]) -> np.ndarray:
        known = {name: number for number, name in enumerate(self._classes)}
        return np.array([-1 if label is None else known.get(label, -2) for label in labels], dtype=np.int64)

    def _too_small(self, fold: np.ndarray, target: np.ndarray) -> set[int]:
        """Classes that lie in one fold only: the classifier that would judge them has never seen one."""
        return {k for k in range(len(self._classes)) if len(set(fold[target == k])) < 2}

    def _losses(self, probabilities: np.ndarray, target: np.ndarray) -> np.ndarray:
        """Cross-entropy of the given label, (N,); 0 where there is none."""
        own = probabilities[np.arange(len(target)), np.maximum(target, 0)]
        return np.where(target >= 0, -np.log(np.maximum(own, _SMALLEST)), 0.0)

    def _note(self, number: int, p_clean: np.ndarray, losses: np.ndarray) -> None:
        mixture = self._judge.mixture
        digests = "".join(model.digest for model in self._judge.models)
        self._ledger.append(
            {
                "round": number,
                "threshold": self.config.threshold,
                "taken": int((p_clean >= self.config.threshold).sum()),
                "model": hashlib.sha256(digests.encode()).hexdigest(),
                "mean_loss": float(losses.mean()) if len(losses) else 0.0,
                "mixture_mean": list(mixture.mean) if mixture else None,
                "mixture_share": list(mixture.share) if mixture else None,
                "unjudged_classes": [self._classes[k] for k in sorted(self._rare)],
            }
        )

    def label(self, table: pl.DataFrame) -> pl.DataFrame:
        """Label table with the additional column p_clean (null without a given label); rows that were not fitted too.

        Raises:
            DataError: if a label was not among those that were fitted.
        """
        labels = table["label"].to_list()
        target = self._numbers(labels)
        if (target == -2).any():
            unknown = sorted({str(label) for label, t in zip(labels, target, strict=True) if t == -2})
            raise DataError(f"labels that small_loss was not fitted on: {', '.join(unknown[:10])}.")
        fold = np.array([self._fold_of.get(group, -1) for group in table["group"].to_list()], dtype=np.int64)
        probabilities = out_of_fold(self._judge.models, embedding_matrix(table["embedding"]), fold)
        losses = self._losses(probabilities, target)
        p_clean = self._judge.p_clean(losses)
        rows = [self._row(target[i], probabilities[i], losses[i], p_clean[i]) for i in range(len(target))]
        schema = {
            "label": pl.String,
            "confidence": pl.Float64,
            "weight": pl.Float64,
            "kind": pl.String,
            "reason": pl.String,
        }
        made = pl.DataFrame(rows, schema={**schema, "p_clean": pl.Float64}, orient="row")
        return pl.concat([table.select("id"), made], how="horizontal")

    def _row(self, target: int, probabilities: np.ndarray, loss: float, p_clean: float) -> tuple[Any, ...]:
        """(label, confidence, weight, kind, reason, p_clean) by the rules at the top of this file."""
        best = int(probabilities.argmax())
        sure = float(probabilities[best])
        score = {"prediction": self._classes[best], "probability": round(sure, 4), "round": len(self._ledger)}
        if target < 0:
            taken = sure >= self.config.relabel_confidence
            why = {"why": "predicted" if taken else "no label, and no class is sure", **score}
            return self._classes[best] if taken else None, sure, sure if taken else 0.0, "pseudo", json.dumps(why), None
        given = self._classes[target]
        score = {"loss": round(float(loss), 4), "p_clean": round(float(p_clean), 4), **score}
        if target in self._rare:
            why = {"why": "kept: the class has too few images to judge", **score}
            return given, 1.0, 1.0, "clean", json.dumps(why), 1.0
        if p_clean >= self.config.threshold:
            return given, p_clean, 1.0, "clean", json.dumps({"why": "small loss", **score}), p_clean
        if best != target and sure >= self.config.relabel_confidence:
            why = {"why": f"large loss as {given}, another class is sure", **score}
            return self._classes[best], sure, sure, "id_noise", json.dumps(why), p_clean
        why = {"why": f"large loss as {given}, no other class is sure", **score}
        return given, p_clean, 0.0, "ood_noise", json.dumps(why), p_clean

    def ledger(self) -> list[dict[str, Any]]:
        return self._ledger


def build(config: Config, *, seed: int) -> SmallLoss:
    return SmallLoss(config, seed)
