"""What a chain of pretraining stages learned and forgot, by the models that stand on the encoder after each stage.

With a_st the accuracy of the model after stage s on the test samples of stage t (of its part of the data), T stages:

    average_accuracy = 1/T sum_t a_Tt
    forgetting       = 1/(T - 1) sum_{t<T} (max_{t<=s<T} a_st - a_Tt)
    after_S_on_T     = a_st, for s >= t
    loss_rise        = 1/(T - 1) sum_{t<T} (L_Tt - L_tt), L_st the training's loss after stage s on samples of stage t

with 95 % bootstrap intervals over groups but for loss_rise, which has none. After one stage only average_accuracy is
there. A model must have been evaluated after each stage: the recipes of earlier stages stand in `evaluate.compare`.
If each model knows the classes of its stages only (`finetune.where`), later ones have more to tell apart, and part of
what is called forgetting is that.

Source: Singh et al., Beyond Cosine Decay, CoLLAs 2025, arXiv 2503.02844 (average accuracy, forgetting, upstream loss).
Deviations: the best earlier accuracy is over stages that had seen the part.
"""

from typing import Literal

import numpy as np

from appssl.contracts import Metric, Scored
from appssl.errors import DataError
from appssl.evaluators.classification import as_metrics
from appssl.ops.bootstrap import bootstrap_statistic, divide, group_codes, sum_per_group
from appssl.settings import Settings

DESCRIPTIONS = {
    "average_accuracy": (0.0, 1.0, +1),
    "forgetting": (-1.0, 1.0, -1),
    "loss_rise": (-np.inf, np.inf, -1),
}
NEEDS_STAGES = True  # `Scored.stages` is given to evaluators that say so


class Config(Settings):
    name: Literal["forgetting"] = "forgetting"


class Forgetting:
    def evaluate(self, scored: Scored, *, num_bootstrap: int, seed: int) -> dict[str, Metric]:
        """
        Raises:
            DataError: without a chain of stages, or if a stage has no test samples.
        """
        stages = scored.stages
        if not stages:
            raise DataError("forgetting needs a model on an encoder with pretrain.onward or pretrain.after.")
        empty = [stage.recipe for stage in stages if not stage.own.any()]
        if empty:
            raise DataError(f"forgetting: no test samples are of the stage {', '.join(empty)} (pretrain.where).")
        codes, num_groups = group_codes(scored.groups)
        pairs = [(s, t) for s in range(len(stages)) for t in range(s + 1)]
        right = [(stages[s].probabilities.argmax(1) == scored.target) & stages[t].own for s, t in pairs]
        columns = np.stack([*right, *(stage.own for stage in stages)], axis=1).astype(np.float64)

        def statistic(sums: np.ndarray) -> dict[str, np.ndarray]:
            found = {(s, t): divide(sums[:, i], sums[:, len(pairs) + t]) for i, (s, t) in enumerate(pairs)}
            return _summary(found, len(stages))

        sums = sum_per_group(columns, codes, num_groups)
        metrics = as_metrics(bootstrap_statistic(sums, statistic, num=num_bootstrap, seed=seed), num_groups)
        rises = [
            now - then
            for t, (stage, now) in enumerate(zip(stages[:-1], stages[-1].losses, strict=False))
            if now is not None and (then := stage.losses[t]) is not None
        ]
        if rises:
            metrics["loss_rise"] = Metric(float(np.mean(rises)), None, None, num_groups)
        return metrics


def build(config: Config) -> Forgetting:
    return Forgetting()


def _summary(accuracy: dict[tuple[int, int], np.ndarray], num_stages: int) -> dict[str, np.ndarray]:
    """Values by name from accuracies (B,) of pairs (s, t) from 0."""
    last = num_stages - 1
    found = {"average_accuracy": np.mean([accuracy[last, t] for t in range(num_stages)], axis=0)}
    if last:
        best = [np.max([accuracy[s, t] for s in range(t, last)], axis=0) for t in range(last)]
        found["forgetting"] = np.mean([best[t] - accuracy[last, t] for t in range(last)], axis=0)
        found |= {f"after_{s + 1}_on_{t + 1}": values for (s, t), values in accuracy.items()}
    return found
