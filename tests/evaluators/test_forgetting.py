from dataclasses import replace

import numpy as np
import polars as pl
import pytest

from appssl.contracts import Scored, TrainedStage
from appssl.errors import DataError
from appssl.evaluators.forgetting import PER_SAMPLE, Config, build, paired
from appssl.ops.per_sample import from_columns, to_columns

LOSSES = ((1.0,), (1.3, 0.9), (1.5, 1.1, 0.8))


def chain(num_stages=3, num=90, seed=0, losses=LOSSES):
    rng = np.random.default_rng(seed)
    target = np.arange(num) % 6
    stages = tuple(
        TrainedStage(f"r{s + 1}", np.isin(target, (2 * s, 2 * s + 1)), rng.dirichlet(np.ones(6), num), losses[s])
        for s in range(num_stages)
    )
    return Scored(
        ids=np.array([f"i{i}" for i in range(num)]),
        groups=np.array([f"g{i % 30}" for i in range(num)]),
        target=target,
        classes=tuple("abcdef"),
        probabilities=stages[-1].probabilities if stages else None,
        stages=stages,
    )


def evaluated(scored):
    return build(Config()).evaluate(scored, num_bootstrap=200, seed=0)


def by_hand(scored):
    """The equations, counted row by row."""
    last = len(scored.stages) - 1

    def accuracy(s, t):
        rows = [i for i in range(len(scored.ids)) if scored.stages[t].own[i]]
        right = [i for i in rows if int(np.argmax(scored.stages[s].probabilities[i])) == scored.target[i]]
        return len(right) / len(rows)

    average = sum(accuracy(last, t) for t in range(last + 1)) / (last + 1)
    lost = [max(accuracy(s, t) for s in range(t, last)) - accuracy(last, t) for t in range(last)]
    return average, sum(lost) / last, accuracy


@pytest.mark.parametrize("num_stages", [2, 3])
def test_values_are_those_counted_by_hand(num_stages):
    scored = chain(num_stages)
    found = evaluated(scored)
    average, lost, accuracy = by_hand(scored)
    assert found["average_accuracy"].value == pytest.approx(average)
    assert found["forgetting"].value == pytest.approx(lost)
    for s in range(num_stages):
        for t in range(num_stages):
            name = f"after_{s + 1}_on_{t + 1}"
            assert (name in found) == (t <= s)
            assert name not in found or found[name].value == pytest.approx(accuracy(s, t))
    assert all(m.low <= m.value <= m.high for name, m in found.items() if name not in ("loss_rise", "forgetting"))


def test_the_loss_rises_by_what_it_was_after_its_own_stage():
    assert evaluated(chain())["loss_rise"].value == pytest.approx(((1.5 - 1.0) + (1.1 - 0.9)) / 2)
    other = ((1.0,), (None, 0.9), (None, 1.1, 0.8))  # the first stage had other data
    assert evaluated(chain(losses=other))["loss_rise"].value == pytest.approx(0.2)


def test_a_model_that_does_not_change_forgets_nothing():
    first = chain()
    same = tuple(TrainedStage(s.recipe, s.own, first.stages[0].probabilities, s.losses) for s in first.stages)
    found = evaluated(Scored(**{**vars(first), "stages": same, "probabilities": same[0].probabilities}))
    assert (found["forgetting"].value, found["forgetting"].low, found["forgetting"].high) == (0, 0, 0)


def test_after_one_stage_there_is_nothing_to_forget():
    assert list(evaluated(chain(1))) == ["average_accuracy"]


def test_a_model_without_stages_and_a_stage_without_test_samples_are_refused():
    with pytest.raises(DataError, match=r"pretrain.onward or pretrain.after"):
        evaluated(chain(0))
    one = chain(2)
    nobody = TrainedStage("r9", np.zeros(90, bool), one.stages[0].probabilities, (1.0,))
    with pytest.raises(DataError, match=r"no test samples are of the stage r9"):
        evaluated(Scored(**{**vars(one), "stages": (nobody, one.stages[1])}))


def kept(scored):
    return replace(scored, per_sample=build(Config()).per_sample(scored))


@pytest.mark.parametrize("num_stages", [2, 3])
def test_chains_are_compared_sample_by_sample(num_stages):
    first, second = kept(chain(num_stages)), kept(chain(num_stages, seed=1))
    found = paired(first, second, num_bootstrap=200, seed=0)
    ours, theirs = by_hand(first), by_hand(second)
    assert found["average_accuracy"].value == pytest.approx(ours[0] - theirs[0])
    assert found["forgetting"].value == pytest.approx(ours[1] - theirs[1])
    assert found["after_2_on_1"].value == pytest.approx(ours[2](1, 0) - theirs[2](1, 0))
    assert "loss_rise" not in found


def test_a_chain_differs_from_itself_by_nothing():
    scored = kept(chain())
    for metric in paired(scored, scored, num_bootstrap=50, seed=0).values():
        assert (metric.value, metric.low, metric.high) == (0, 0, 0)


def test_chains_of_other_stages_are_not_compared():
    scored = chain()
    others = [chain(2), replace(scored, stages=scored.stages[::-1])]
    for other in [*map(kept, others), scored]:
        assert paired(kept(scored), other, num_bootstrap=50, seed=0) == {}
        assert paired(other, kept(scored), num_bootstrap=50, seed=0) == {}


def test_what_is_kept_comes_back_from_a_table():
    scored = kept(chain())
    table = pl.DataFrame(to_columns(scored.per_sample, scored.classes))
    back = from_columns(table, PER_SAMPLE, scored.classes)
    assert back.keys() == scored.per_sample.keys()
    assert all(np.array_equal(back[name], values) for name, values in scored.per_sample.items())
