"""Weighted k-nearest-neighbour classification on frozen features: how good they are without training anything.

Each of the k training samples with the largest cosine similarity votes for its class with weight
exp(similarity / temperature). Source: Wu et al., Unsupervised Feature Learning via Non-Parametric Instance
Discrimination, CVPR 2018, section 3.4 (temperature 0.07; the paper uses k = 200, which is too many for few labels).
Ties in similarity go to the earlier training row, ties in votes to the earlier class.
"""

from typing import Literal

import numpy as np
from pydantic import Field

from appssl.contracts import Metric, Scored
from appssl.errors import DataError
from appssl.evaluators.classification import measure, same_samples
from appssl.ops.bootstrap import group_codes
from appssl.ops.metrics import confusion_statistic
from appssl.settings import Settings

DESCRIPTIONS = {
    "knn_accuracy": (0.0, 1.0, +1),
    "knn_balanced_accuracy": (0.0, 1.0, +1),
    "knn_macro_f1": (0.0, 1.0, +1),
}
REMARK = (
    "All labelled training samples vote, also where fine-tuning sees only a share of them: "
    "this measures the encoder and cannot be compared with the model above."
)
PER_SAMPLE = ("knn_class",)
BLOCK_ELEMENTS = 4_000_000  # similarities computed at once: 16 MB of float32
EPSILON = 1e-12


class Config(Settings):
    name: Literal["knn"] = "knn"
    k: int = Field(20, ge=1, description="neighbours that vote; all training rows if there are fewer")
    temperature: float = Field(0.07, gt=0, description="divides cosine similarities, tau in the paper")


class KNN:
    def __init__(self, config: Config) -> None:
        self.config = config

    def evaluate(self, scored: Scored, *, num_bootstrap: int, seed: int) -> dict[str, Metric]:
        """knn_accuracy, knn_balanced_accuracy and knn_macro_f1, defined as in the evaluator `classification`.

        Raises:
            DataError: without features, without labelled training rows, or if they are not finite.
        """
        known = scored.per_sample if "knn_class" in scored.per_sample else self.per_sample(scored)
        return _measured(scored, [known["knn_class"]], num_bootstrap, seed)

    def per_sample(self, scored: Scored) -> dict[str, np.ndarray]:
        """knn_class (N,) int64: what the neighbours voted for; see `evaluate` for errors."""
        train, train_target, test = _features(scored)
        k, temperature = self.config.k, self.config.temperature
        return {"knn_class": predict(test, train, train_target, len(scored.classes), k=k, temperature=temperature)}


def build(config: Config) -> KNN:
    return KNN(config)


def paired(first: Scored, second: Scored, *, num_bootstrap: int, seed: int) -> dict[str, Metric]:
    """first - second for every metric, on the same resamples of the same samples; {} if one of them has no votes.

    Raises:
        DataError: if ids, groups, targets or classes of the two differ.
    """
    same_samples(first, second)
    votes = [each.per_sample["knn_class"] for each in (first, second) if "knn_class" in each.per_sample]
    return _measured(first, votes, num_bootstrap, seed) if len(votes) == 2 else {}


def _measured(scored: Scored, votes: list[np.ndarray], num_bootstrap: int, seed: int) -> dict[str, Metric]:
    """Metrics of the votes of one system, or of the first minus the second."""
    codes, num_groups = group_codes(scored.groups)
    size = len(scored.classes)
    systems = [[(confusion_statistic(scored.target, each, codes, num_groups, size), size**2)] for each in votes]
    found = measure(systems, num_groups, num=num_bootstrap, seed=seed)
    return {f"knn_{name}": metric for name, metric in found.items()}


def predict(
    test: np.ndarray, train: np.ndarray, train_target: np.ndarray, num_classes: int, *, k: int, temperature: float
) -> np.ndarray:
    """Classes (N,) int64 voted by the k nearest of `train` (M, F) for each row of `test` (N, F); float, any scale."""
    test, train = _normalized(test), _normalized(train)
    rows = max(1, BLOCK_ELEMENTS // len(train))
    blocks = [
        _vote(test[start : start + rows] @ train.T, train_target, num_classes, k=k, temperature=temperature)
        for start in range(0, len(test), rows)
    ]
    return np.concatenate(blocks)


def _vote(
    similarity: np.ndarray, train_target: np.ndarray, num_classes: int, *, k: int, temperature: float
) -> np.ndarray:
    nearest = _nearest(similarity, min(k, similarity.shape[1]))
    top = np.take_along_axis(similarity, nearest, axis=1).astype(np.float64)
    weight = np.exp((top - top.max(1, keepdims=True)) / temperature)  # relative: the same winner, no overflow
    cells = train_target[nearest] + num_classes * np.arange(len(top))[:, None]
    votes = np.bincount(cells.ravel(), weight.ravel(), minlength=len(top) * num_classes)
    return votes.reshape(len(top), num_classes).argmax(1)


def _nearest(similarity: np.ndarray, k: int) -> np.ndarray:
    """Columns (N, k) of the k largest of each row (N, M), in column order; the earlier ones of equals."""
    threshold = np.partition(similarity, -k, axis=1)[:, [-k]]
    above, equal = similarity > threshold, similarity == threshold
    chosen = above | (equal & (np.cumsum(equal, axis=1) <= k - above.sum(1, keepdims=True)))
    return np.nonzero(chosen)[1].reshape(len(similarity), k)


def _normalized(features: np.ndarray) -> np.ndarray:
    values = np.asarray(features, dtype=np.float32)
    return values / np.maximum(np.linalg.norm(values, axis=1, keepdims=True), EPSILON)


def _features(scored: Scored) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Training features (M, F), training classes (M,) and test features (N, F), checked."""
    if scored.features is None or scored.train_features is None or scored.train_target is None:
        raise DataError("the evaluator knn needs an encoder and its features of training rows: add a pretrain block.")
    known = scored.train_target >= 0
    if not known.any():
        raise DataError("the evaluator knn has no labelled training row to vote. Label some rows of the train part.")
    for part, features in (("test", scored.features), ("train", scored.train_features)):
        if not np.isfinite(features).all():
            raise DataError(
                f"the encoder gives features of {part} rows that are not finite. Pretrain with a smaller lr."
            )
    return scored.train_features[known], scored.train_target[known], scored.features
