"""Random forest on frozen features: the baseline for hand-made features, with backbone `summary_features`.

Trees are grown to the end on bootstrap samples of the training rows, each split the best one, by the decrease of the
Gini impurity, over sqrt(F) features drawn at random; a test row gets the class with the largest mean of the class
shares in its leaves, the earlier class if two are equal. The forest is fitted when it is measured, and is not kept.

Source: Breiman, Random forests, Machine Learning 45(1), 2001; scikit-learn does the work. Deviations: the mean of
shares, as there, instead of votes.
"""

from typing import Literal

import numpy as np
from pydantic import Field
from sklearn.ensemble import RandomForestClassifier

from appssl.contracts import Metric, Scored
from appssl.errors import DataError
from appssl.evaluators.classification import as_metrics
from appssl.ops.bootstrap import bootstrap, group_codes
from appssl.ops.metrics import confusion_statistic
from appssl.ops.random import rng_for
from appssl.settings import Settings

DESCRIPTIONS = {
    "forest_accuracy": (0.0, 1.0, +1),
    "forest_balanced_accuracy": (0.0, 1.0, +1),
    "forest_macro_f1": (0.0, 1.0, +1),
}
REMARK = (
    "The forest is trained on its own draw of the labelled training samples (all of them, unless label_fraction says "
    "less), not on the rows that fine-tuning drew."
)


class Config(Settings):
    name: Literal["forest"] = "forest"
    trees: int = Field(300, ge=1, le=10_000, description="number of trees")
    min_leaf: int = Field(1, ge=1, description="fewest training rows in a leaf")
    label_fraction: float = Field(
        1.0, gt=0, le=1, description="share of the labelled training rows of every class, at least one, that is used"
    )


class Forest:
    def __init__(self, config: Config) -> None:
        self.config = config

    def evaluate(self, scored: Scored, *, num_bootstrap: int, seed: int) -> dict[str, Metric]:
        """forest_accuracy, forest_balanced_accuracy and forest_macro_f1, defined as in the evaluator `classification`.

        Raises:
            DataError: without features, without labelled training rows, or if they are not finite.
        """
        train, target, test = _features(scored)
        rows = drawn(target, self.config.label_fraction, seed)
        forest = fitted(train[rows], target[rows], self.config, seed)
        prediction = predict(forest, test)
        codes, num_groups = group_codes(scored.groups)
        num_classes = len(scored.classes)
        statistic = confusion_statistic(scored.target, prediction, codes, num_groups, num_classes)
        found = bootstrap(statistic, num_groups, num=num_bootstrap, seed=seed, elements=num_classes**2)
        return as_metrics({f"forest_{name}": interval for name, interval in found.items()}, num_groups)


def build(config: Config) -> Forest:
    return Forest(config)


def drawn(target: np.ndarray, fraction: float, seed: int) -> np.ndarray:
    """Rows (M,) int64, increasing: a share of every class of `target` (N,), at least one each.

    A smaller fraction with the same seed is a subset of a larger one.
    """
    parts = []
    for number in np.unique(target):
        rows = np.flatnonzero(target == number)
        order = rng_for(seed, 0, int(number)).permutation(len(rows))
        parts.append(rows[order[: max(1, round(fraction * len(rows)))]])
    return np.sort(np.concatenate(parts))


def fitted(features: np.ndarray, target: np.ndarray, config: Config, seed: int) -> RandomForestClassifier:
    """A forest on features (N, F) and classes (N,) int64; the same for the same seed."""
    forest = RandomForestClassifier(
        n_estimators=config.trees,
        min_samples_leaf=config.min_leaf,
        max_features="sqrt",
        random_state=seed,
        n_jobs=1,
    )
    forest.fit(features, target)
    return forest


def predict(forest: RandomForestClassifier, features: np.ndarray) -> np.ndarray:
    """Class numbers (N,) int64, among those that the forest was trained on."""
    shares = forest.predict_proba(features)  # (N, classes in training)
    known: np.ndarray = forest.classes_
    return known[shares.argmax(axis=1)]


def _features(scored: Scored) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Training features (M, F), training classes (M,) and test features (N, F), checked."""
    if scored.features is None or scored.train_features is None or scored.train_target is None:
        raise DataError(
            "the evaluator forest needs features of test and labelled training rows: add a pretrain block, or a "
            "finetune block with backbone: summary_features. Label some rows of the train part."
        )
    known = scored.train_target >= 0
    if not known.any():
        raise DataError("the evaluator forest has no labelled training row. Label some rows of the train part.")
    for part, features in (("test", scored.features), ("train", scored.train_features[known])):
        if not np.isfinite(features).all():
            raise DataError(
                f"features of {part} rows are not finite, and a forest cannot split them. Pretrain with a smaller lr, "
                "or leave out the windows with such values."
            )
    return scored.train_features[known], scored.train_target[known], scored.features
