"""Metrics of a classifier on the test part, with 95 % bootstrap intervals over groups.

accuracy, balanced_accuracy (mean recall of classes that occur), macro_f1 (mean F1 of classes that occur or are
predicted), auroc (mean one-vs-rest area; a class without test samples is left out, and the metric is not given when no
class has both positives and negatives), calibration_error (expected calibration error of the largest probability, 15
equal-width bins).
"""

from collections.abc import Mapping
from typing import Literal

import numpy as np

from appssl.contracts import Metric, Scored
from appssl.errors import DataError
from appssl.ops.bootstrap import Interval, Statistic, bootstrap, difference, group_codes
from appssl.ops.metrics import auroc_statistic, calibration_statistic, confusion_statistic, macro_auroc_statistic
from appssl.settings import Settings

DESCRIPTIONS = {
    "accuracy": (0.0, 1.0, +1),
    "balanced_accuracy": (0.0, 1.0, +1),
    "macro_f1": (0.0, 1.0, +1),
    "auroc": (0.0, 1.0, +1),
    "calibration_error": (0.0, 1.0, -1),
}
SUM_TOLERANCE = 1e-3  # rows of float32 softmax sum to 1 within this, also for thousands of classes


class Config(Settings):
    name: Literal["classification"] = "classification"


class Classification:
    def evaluate(self, scored: Scored, *, num_bootstrap: int, seed: int) -> dict[str, Metric]:
        """Metrics of one system.

        Raises:
            DataError: without rows or probabilities, or if they do not fit the targets and classes.
        """
        codes, num_groups = group_codes(scored.groups)
        return measure([_statistics(scored, codes, num_groups)], num_groups, num=num_bootstrap, seed=seed)


def build(config: Config) -> Classification:
    return Classification()


def paired(first: Scored, second: Scored, *, num_bootstrap: int, seed: int) -> dict[str, Metric]:
    """first - second for every metric, on the same resamples of the same samples.

    Raises:
        DataError: if ids, groups, targets or classes of the two differ.
    """
    same_samples(first, second)
    codes, num_groups = group_codes(first.groups)
    systems = [_statistics(scored, codes, num_groups) for scored in (first, second)]
    return measure(systems, num_groups, num=num_bootstrap, seed=seed)


def same_samples(first: Scored, second: Scored) -> None:
    """Raises DataError unless row i of both is the same sample with the same group and target."""
    problems = []
    if len(first.ids) != len(second.ids) or (first.ids != second.ids).any():
        only = [sorted(set(a.ids) - set(b.ids)) for a, b in ((first, second), (second, first))]
        detail = (
            "the same ids in another order"
            if not any(only)
            else "; ".join(
                f"{len(ids)} only in the {which} ({', '.join(map(str, ids[:5]))})"
                for which, ids in zip(("first", "second"), only, strict=True)
                if ids
            )
        )
        problems.append(f"the ids differ: {detail}")
    else:
        for what, one, two in (("groups", first.groups, second.groups), ("targets", first.target, second.target)):
            if changed := list(first.ids[one != two]):
                problems.append(f"{len(changed)} {what} differ ({', '.join(map(str, changed[:5]))})")
    if first.classes != second.classes:
        problems.append(f"the classes differ: {', '.join(first.classes)} and {', '.join(second.classes)}")
    if problems:
        raise DataError(
            f"a paired comparison needs the same test samples: {'; '.join(problems)}. "
            "Compare recipes over the same data."
        )


# Statistics of one system, each with the array elements it needs per resample.
Statistics = list[tuple[Statistic, int]]


def measure(systems: list[Statistics], num_groups: int, *, num: int, seed: int) -> dict[str, Metric]:
    """Bootstraps the statistics of one system, or of the first minus the second; leaves out undefined ones."""
    found: dict[str, Interval] = {}
    for parts in zip(*systems, strict=True):
        statistic = parts[0][0] if len(parts) == 1 else difference(parts[0][0], parts[1][0])
        found |= bootstrap(statistic, num_groups, num=num, seed=seed, elements=parts[0][1])
    return as_metrics(found, num_groups)


def as_metrics(found: Mapping[str, Interval], num_groups: int) -> dict[str, Metric]:
    return {name: Metric(*interval, num_groups) for name, interval in found.items() if not np.isnan(interval.value)}


def _statistics(scored: Scored, codes: np.ndarray, num_groups: int) -> Statistics:
    probabilities = check_probabilities(scored)
    num_classes = probabilities.shape[1]
    prediction, confidence = probabilities.argmax(1), probabilities.max(1)
    correct = (prediction == scored.target).astype(np.float64)
    return [
        (confusion_statistic(scored.target, prediction, codes, num_groups, num_classes), num_classes**2),
        (macro_auroc_statistic(probabilities, scored.target, codes, num_groups), len(codes)),
        (calibration_statistic(confidence, correct, codes, num_groups), 1),
    ]


def check_probabilities(scored: Scored) -> np.ndarray:
    """The probabilities (N, K) float64.

    Raises:
        DataError: with everything that is wrong with them.
    """
    if scored.probabilities is None:
        raise DataError(
            "the evaluator classification needs a classifier: add a finetune block, or evaluate with knn only."
        )
    values = np.asarray(scored.probabilities, dtype=np.float64)
    problems = []
    if values.shape != (len(scored.target), len(scored.classes)):
        problems.append(f"probabilities are {values.shape}, expected ({len(scored.target)}, {len(scored.classes)})")
    if not np.isfinite(values).all():
        problems.append(f"{int((~np.isfinite(values)).any(-1).sum())} rows of probabilities are not finite")
    elif (abs(values.sum(-1) - 1) > SUM_TOLERANCE).any() or (values < 0).any():
        problems.append("rows of probabilities are not distributions that sum to 1")
    outside = (scored.target < 0) | (scored.target >= len(scored.classes))
    if outside.any():
        problems.append(f"{int(outside.sum())} targets are no class number (first: {scored.ids[outside][0]})")
    if problems:
        raise DataError(f"cannot evaluate the classifier: {'; '.join(problems)}.")
    return values


def binary_auroc(positive: np.ndarray, scores: np.ndarray) -> float:
    """Area under the ROC curve in [0, 1] of scores (N,) for positives (N,) bool; NaN without both."""
    statistic = auroc_statistic(scores, positive, np.zeros(len(scores), dtype=np.int64), 1)
    return float(statistic(np.ones((1, 1)))["auroc"][0])
