"""What the encoder is worth while it is pretrained: RankMe, and how well its features tell the labels there are.

RankMe (`ops/spectrum.py`) needs no labels. The classifiers are measured on training samples alone: one half of the
groups teaches them, the other is asked. Nothing of this reaches the training.
"""

import sys
from collections.abc import Mapping
from typing import Any, Protocol

import numpy as np
import polars as pl
import torch

from appssl.contracts import PreparedData, Views
from appssl.engine.loading import embed
from appssl.evaluators import knn
from appssl.ops.linear import fit_linear
from appssl.ops.random import permutation
from appssl.ops.rows import training_rows
from appssl.ops.spectrum import rank_me


class ProbeSettings(Protocol):
    """What is read of `recipe.Probe`."""

    times: int
    rows: int
    alarm: float


class Probe:
    """Measures a learner at evenly spaced steps, the last one among them."""

    def __init__(
        self,
        learner: Any,
        data: PreparedData,
        views: Views,
        settings: ProbeSettings,
        *,
        seed: int,
        threads: int,
        accelerator: str,
    ) -> None:
        self.learner, self.data, self.views, self.settings = learner, data, views, settings
        self.threads, self.accelerator = threads, accelerator
        rows = training_rows(data.samples)
        self.rows = np.sort(rows[permutation(seed, 0, len(rows))[: settings.rows]])
        samples = data.samples[self.rows]
        number = {name: n for n, name in enumerate(data.meta.classes)}
        self.target = samples["label"].replace_strict(number, default=-1, return_dtype=pl.Int64).to_numpy()
        groups, group = np.unique(samples["group"].to_numpy(), return_inverse=True)
        self.teaches = permutation(seed, 1, len(groups))[group] < len(groups) / 2
        self.last: dict[str, Any] = {}

    def is_due(self, step: int, num_steps: int) -> bool:
        """Whether the learner is measured after `step` of `num_steps`, both counted from 1."""
        times = min(self.settings.times, num_steps)
        return times > 0 and step * times // num_steps > (step - 1) * times // num_steps

    def measure(self) -> dict[str, float]:
        """rank_me of the projections (of the features without a projector), rank_me_features, and where labels allow it
        knn_accuracy and linear_accuracy. Empty where features are not finite, which the training notices itself.
        """
        how: dict[str, Any] = {"threads": self.threads, "accelerator": self.accelerator, "workers": 0}
        features = embed(self.learner.export(), self.data, self.rows, self.views, **how)
        embeddings = self._projected(features)
        self.learner.train()
        if not np.isfinite(embeddings).all():
            return {}
        found = {"rank_me": _rank(embeddings), "rank_me_features": _rank(features), **self._accuracies(features)}
        if found["rank_me_features"] < self.settings.alarm:
            print(
                f"warning: the features have an effective rank of {found['rank_me_features']:.2f}: "
                "the encoder collapsed. Lower fit.lr, or choose another objective.",
                file=sys.stderr,
            )
        self.last = {**found, "layer": self.layer, "width": embeddings.shape[1], "num_rows": len(self.rows)}
        return found

    @property
    def layer(self) -> str:
        """What `rank_me` is of."""
        return "projector" if hasattr(self.learner, "projector") else "features"

    def _projected(self, features: np.ndarray) -> np.ndarray:
        if self.layer == "features":
            return features
        projector = self.learner.projector.eval()
        with torch.inference_mode():
            found: np.ndarray = (
                projector(torch.from_numpy(features).to(next(projector.parameters()))).float().cpu().numpy()
            )
        return found

    def _accuracies(self, features: np.ndarray) -> Mapping[str, float]:
        known = self.target >= 0
        taught, asked = known & self.teaches, known & ~self.teaches
        if len(set(self.target[taught].tolist())) < 2 or not asked.any():
            return {}
        num_classes = len(self.data.meta.classes)
        parts = (features[asked], features[taught], self.target[taught])
        usual = knn.Config()
        voted = knn.predict(*parts, num_classes, k=usual.k, temperature=usual.temperature)
        linear = fit_linear(parts[1], parts[2], num_classes, max_steps=50).probabilities(parts[0]).argmax(1)
        target = self.target[asked]
        return {"knn_accuracy": float(np.mean(voted == target)), "linear_accuracy": float(np.mean(linear == target))}


def _rank(embeddings: np.ndarray) -> float:
    return rank_me(embeddings) if embeddings.any() else 1.0
