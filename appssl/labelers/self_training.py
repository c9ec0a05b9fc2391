"""Self-training: a classifier labels the rows it is sure of, is trained on them too, and labels more, round by round.

A linear classifier on the embeddings is fitted to the labelled rows. In every round the rows without a label whose
largest probability reaches the threshold get that class, for good, with the probability as weight; then it is fitted
again. It ends when nothing new is taken, or after `rounds`. A part of the labelled rows is held out of every fit, so
the ledger shows by an honest accuracy whether the rounds help. Given labels are kept as they are.

Source: Scudder, IEEE Transactions on Information Theory 1965; thresholded pseudo-labels as in Lee, ICML workshop 2013.
Deviation: a linear classifier on fixed embeddings, fitted to its minimum in each round.
"""

import hashlib
import json
from typing import Any, Literal

import numpy as np
import polars as pl
from pydantic import Field

from appssl.errors import DataError
from appssl.ops.linear import embedding_matrix, fit_linear
from appssl.settings import Settings


class Config(Settings):
    name: Literal["self_training"] = "self_training"
    threshold: float = Field(0.9, ge=0, le=1, description="largest probability from which a row is labelled")
    rounds: int = Field(5, ge=1, le=100, description="most rounds")
    holdout: float = Field(0.2, ge=0, lt=1, description="share of labelled groups held out to measure every round")
    l2: float = Field(1e-2, gt=0, description="penalty of the classifier, per standardized feature")


class SelfTraining:
    def __init__(self, config: Config, seed: int) -> None:
        self.config = config
        self.seed = seed
        self._ledger: list[dict[str, Any]] = []
        # id of a row that was labelled -> (class number, probability, round)
        self._taken: dict[str, tuple[int, float, int]] = {}

    def fit(self, table: pl.DataFrame) -> None:
        """Runs all rounds.

        Raises:
            DataError: with fewer than two classes among the labels, or embeddings that are all equal or not finite.
        """
        features = embedding_matrix(table["embedding"])
        labels, ids = table["label"].to_list(), table["id"].to_list()
        self._classes = sorted({label for label in labels if label is not None})
        if len(self._classes) < 2:
            raise DataError(
                f"self_training needs labels of at least two classes to start from, found {len(self._classes)} "
                f"({', '.join(self._classes) or 'no label at all'}). Label some rows, or drop the pseudolabel block."
            )
        number = {name: k for k, name in enumerate(self._classes)}
        target = np.array([-1 if label is None else number[label] for label in labels], dtype=np.int64)
        held_out = self._held_out(table["group"].to_list(), target)
        weight = ((target >= 0) & ~held_out).astype(np.float64)
        open_rows = target < 0
        self._ledger, self._taken = [], {}
        for turn in range(1, self.config.rounds + 1):
            used = weight > 0
            self._model = fit_linear(
                features[used], target[used], len(self._classes), weight=weight[used], l2=self.config.l2
            )
            accuracy = self._accuracy(features[held_out], target[held_out])
            probabilities = self._model.probabilities(features)
            best, sure = probabilities.argmax(axis=1), probabilities.max(axis=1)
            new = np.flatnonzero(open_rows & (sure >= self.config.threshold))
            target[new], weight[new], open_rows[new] = best[new], sure[new], False
            self._taken |= {ids[i]: (int(best[i]), float(sure[i]), turn) for i in new}
            self._note(turn, best[new], accuracy, int(held_out.sum()))
            if len(new) == 0:
                break

    def _held_out(self, groups: list[str], target: np.ndarray) -> np.ndarray:
        """(N,) bool: labelled rows of the first groups by hash; a class always keeps rows to learn from."""
        labelled = {groups[i] for i in np.flatnonzero(target >= 0)}
        order = sorted(labelled, key=lambda g: hashlib.sha256(f"{self.seed}/holdout/{g}".encode()).digest())
        chosen = set(order[: round(self.config.holdout * len(order))])
        held_out = np.array([group in chosen for group in groups]) & (target >= 0)
        for k in range(len(self._classes)):
            own = target == k
            if held_out[own].all():
                held_out[own] = False
        return held_out

    def _accuracy(self, features: np.ndarray, target: np.ndarray) -> float | None:
        if len(target) == 0:
            return None
        return float((self._model.probabilities(features).argmax(axis=1) == target).mean())

    def _note(self, turn: int, classes: np.ndarray, accuracy: float | None, num_held_out: int) -> None:
        counts = np.bincount(classes, minlength=len(self._classes))
        self._ledger.append(
            {
                "round": turn,
                "threshold": self.config.threshold,
                "taken": len(classes),
                "class_counts": {name: int(count) for name, count in zip(self._classes, counts, strict=True)},
                "model": self._model.digest,
                "heldout_accuracy": accuracy,
                "num_heldout": num_held_out,
            }
        )

    def label(self, table: pl.DataFrame) -> pl.DataFrame:
        """Label table: given labels `clean`, taken rows `pseudo`, the rest `pseudo` without label and weight 0."""
        probabilities = self._model.probabilities(embedding_matrix(table["embedding"]))
        digests = {entry["round"]: str(entry["model"]) for entry in self._ledger}
        rows = [
            self._row(name, label, probabilities[i], digests)
            for i, (name, label) in enumerate(table.select("id", "label").iter_rows())
        ]
        schema = {
            "label": pl.String,
            "confidence": pl.Float64,
            "weight": pl.Float64,
            "kind": pl.String,
            "reason": pl.String,
        }
        return pl.concat([table.select("id"), pl.DataFrame(rows, schema=schema, orient="row")], how="horizontal")

    def _row(self, name: str, label: str | None, probabilities: np.ndarray, digests: dict[int, str]) -> tuple[Any, ...]:
        if label is not None:
            return label, 1.0, 1.0, "clean", json.dumps({"why": "given label"})
        taken = self._taken.get(name)
        k, score, turn = taken or (int(probabilities.argmax()), float(probabilities.max()), len(self._ledger))
        facts = {"score": round(score, 4), "threshold": self.config.threshold, "round": turn, "model": digests[turn]}
        if taken is None:
            why = {"why": "no class reached the threshold", "prediction": self._classes[k], **facts}
            return None, score, 0.0, "pseudo", json.dumps(why)
        return self._classes[k], score, score, "pseudo", json.dumps({"why": "above the threshold", **facts})

    def ledger(self) -> list[dict[str, Any]]:
        return self._ledger


def build(config: Config, *, seed: int) -> SelfTraining:
    return SelfTraining(config, seed)
