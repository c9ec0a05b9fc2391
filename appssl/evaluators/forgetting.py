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

from collections.abc import Mapping, Sequence
from typing import Literal

import numpy as np

from appssl.contracts import Metric, Scored
from appssl.errors import DataError
from appssl.evaluators.classification import as_metrics, same_samples
from appssl.ops.bootstrap import bootstrap_statistic, divide, group_codes, sum_per_group
from appssl.settings import Settings

DESCRIPTIONS = {
    "average_accuracy": (0.0, 1.0, +1),
    "forgetting": (-1.0, 1.0, -1),
    "loss_rise": (-np.inf, np.inf, -1),
}
PER_SAMPLE = ("in_stage_*", "class_after_*")
NEEDS_STAGES = True  # `Scored.stages` is given to evaluators that say so


class Config(Settings):
    name: Literal["forgetting"] = "forgetting"


class Forgetting:
    def evaluate(self, scored: Scored, *, num_bootstrap: int, seed: int) -> dict[str, Metric]:
        """See `per_sample` for errors."""
        found = _measured(scored, [self.per_sample(scored)], num_bootstrap, seed)
        stages = scored.stages
        rises = [
            now - then
            for t, (stage, now) in enumerate(zip(stages[:-1], stages[-1].losses, strict=False))
            if now is not None and (then := stage.losses[t]) is not None
        ]
        if rises:
            found["loss_rise"] = Metric(float(np.mean(rises)), None, None, len(np.unique(scored.groups)))
        return found

    def per_sample(self, scored: Scored) -> dict[str, np.ndarray]:
        """in_stage_T (N,) float64, 1 for rows of the part of stage T; class_after_S (N,) int64, predicted after S.

        Raises:
            DataError: without a chain of stages, or if a stage has no test samples.
        """
        if not scored.stages:
            raise DataError("forgetting needs a model on an encoder with pretrain.onward or pretrain.after.")
        empty = [stage.recipe for stage in scored.stages if not stage.own.any()]
        if empty:
            raise DataError(f"forgetting: no test samples are of the stage {', '.join(empty)} (pretrain.where).")
        found: dict[str, np.ndarray] = {}
        for number, stage in enumerate(scored.stages, 1):
            found[f"in_stage_{number}"] = stage.own.astype(np.float64)
            found[f"class_after_{number}"] = stage.probabilities.argmax(1)
        return found


def build(config: Config) -> Forgetting:
    return Forgetting()


def paired(first: Scored, second: Scored, *, num_bootstrap: int, seed: int) -> dict[str, Metric]:
    """first - second for every metric but loss_rise, on the same resamples of the same samples; {} if one of them has
    no chain, or one of other stages.

    Raises:
        DataError: if ids, groups, targets or classes of the two differ.
    """
    same_samples(first, second)
    ours, theirs = first.per_sample, second.per_sample
    parts = _parts(ours)
    if not parts or len(parts) != len(_parts(theirs)) or not all(map(np.array_equal, parts, _parts(theirs))):
        return {}
    return _measured(first, [ours, theirs], num_bootstrap, seed)


def _parts(known: Mapping[str, np.ndarray]) -> list[np.ndarray]:
    """Which rows are of the part of each stage, in order."""
    return [known[f"in_stage_{t + 1}"] for t in range(sum(name.startswith("in_stage_") for name in known))]


def _measured(
    scored: Scored, chains: Sequence[Mapping[str, np.ndarray]], num_bootstrap: int, seed: int
) -> dict[str, Metric]:
    """Metrics of one chain, or of the first minus the second; both are of the same stages."""
    codes, num_groups = group_codes(scored.groups)
    parts = _parts(chains[0])
    num_stages = len(parts)
    pairs = [(s, t) for s in range(num_stages) for t in range(s + 1)]
    right = [(chain[f"class_after_{s + 1}"] == scored.target) * parts[t] for chain in chains for s, t in pairs]
    sums = sum_per_group(np.stack([*parts, *right], axis=1), codes, num_groups)

    def statistic(sums: np.ndarray) -> dict[str, np.ndarray]:
        of_chains = []
        for start in range(num_stages, sums.shape[1], len(pairs)):
            shares = {(s, t): divide(sums[:, start + i], sums[:, t]) for i, (s, t) in enumerate(pairs)}
            of_chains.append(_summary(shares, num_stages))
        ours, *others = of_chains
        return {name: values - others[0][name] for name, values in ours.items()} if others else ours

    return as_metrics(bootstrap_statistic(sums, statistic, num=num_bootstrap, seed=seed), num_groups)


def _summary(accuracy: dict[tuple[int, int], np.ndarray], num_stages: int) -> dict[str, np.ndarray]:
    """Values by name from accuracies (B,) of pairs (s, t) from 0."""
    last = num_stages - 1
    found = {"average_accuracy": np.mean([accuracy[last, t] for t in range(num_stages)], axis=0)}
    if last:
        best = [np.max([accuracy[s, t] for s in range(t, last)], axis=0) for t in range(last)]
        found["forgetting"] = np.mean([best[t] - accuracy[last, t] for t in range(last)], axis=0)
        found |= {f"after_{s + 1}_on_{t + 1}": values for (s, t), values in accuracy.items()}
    return found
