import dataclasses

import numpy as np
import pytest
from sklearn import metrics as sk

from appssl import registry
from appssl.contracts import Scored
from appssl.errors import DataError
from appssl.evaluators.classification import DESCRIPTIONS, Config, binary_auroc, build, paired


def scored(num: int = 200, seed: int = 0, skill: float = 1.0) -> Scored:
    rng = np.random.default_rng(0)
    target = rng.integers(0, 4, num)
    noise = np.random.default_rng([seed, 1]).random((num, 4))
    values = noise + skill * np.eye(4)[target]
    return Scored(
        ids=np.array([f"s{i}" for i in range(num)]),
        groups=np.array([f"p{i % 17}" for i in range(num)]),
        target=target,
        classes=("a", "b", "c", "d"),
        probabilities=values / values.sum(1, keepdims=True),
    )


def evaluate(one: Scored, num: int = 100):
    return build(Config()).evaluate(one, num_bootstrap=num, seed=0)


def test_values_equal_scikit_learn():
    one = scored()
    found, prediction = evaluate(one), one.probabilities.argmax(1)
    assert found["accuracy"].value == pytest.approx(sk.accuracy_score(one.target, prediction))
    assert found["balanced_accuracy"].value == pytest.approx(sk.balanced_accuracy_score(one.target, prediction))
    assert found["macro_f1"].value == pytest.approx(sk.f1_score(one.target, prediction, average="macro"))
    assert found["auroc"].value == pytest.approx(sk.roc_auc_score(one.target, one.probabilities, multi_class="ovr"))


def test_worked_numbers():
    """Predictions 0 0 1 1 for targets 0 0 0 1; confidences 0.9, 0.8, 0.6, 0.7, each in a bin of its own."""
    one = Scored(
        ids=np.array(list("abcd")),
        groups=np.array(list("wxyz")),
        target=np.array([0, 0, 0, 1]),
        classes=("no", "yes"),
        probabilities=np.array([[0.9, 0.1], [0.8, 0.2], [0.4, 0.6], [0.3, 0.7]]),
    )
    found = evaluate(one)
    assert found["accuracy"].value == pytest.approx(3 / 4)
    assert found["balanced_accuracy"].value == pytest.approx((2 / 3 + 1) / 2)
    assert found["macro_f1"].value == pytest.approx((4 / 5 + 2 / 3) / 2)
    assert found["auroc"].value == pytest.approx(1.0)
    assert found["calibration_error"].value == pytest.approx((0.1 + 0.2 + 0.6 + 0.3) / 4)


def test_gives_exactly_the_described_metrics_inside_their_ranges():
    found = evaluate(scored())
    assert list(found) == ["accuracy", "balanced_accuracy", "macro_f1", "auroc", "calibration_error"]
    assert found.keys() == DESCRIPTIONS.keys()
    for name, metric in found.items():
        low, high, _ = DESCRIPTIONS[name]
        assert low <= metric.low <= metric.high <= high
        assert metric.num_groups == 17


def test_perfect_and_confident_is_perfect():
    one = scored()
    perfect = evaluate(dataclasses.replace(one, probabilities=np.eye(4)[one.target]))
    assert [m.value for m in perfect.values()] == pytest.approx([1, 1, 1, 1, 0])


def test_does_not_depend_on_the_order_of_samples_or_names_of_groups():
    one = scored()
    order = np.random.default_rng(1).permutation(len(one.ids))
    shuffled = dataclasses.replace(
        one,
        **{name: getattr(one, name)[order] for name in ("ids", "groups", "target", "probabilities")},
    )
    for name, metric in evaluate(one).items():
        again = evaluate(shuffled)[name]
        assert (again.value, again.low, again.high) == pytest.approx((metric.value, metric.low, metric.high))


def test_one_group_has_no_interval_and_one_class_has_no_auroc():
    one = dataclasses.replace(scored(), groups=np.full(200, "p"), target=np.zeros(200, dtype=np.int64))
    found = evaluate(one)
    assert "auroc" not in found
    assert found["accuracy"].low is None
    assert found["accuracy"].num_groups == 1


def test_paired_difference_is_the_difference_and_its_interval_is_narrower_than_unpaired():
    first, second = scored(skill=0.6), scored(skill=0.5)
    found, one, two = paired(first, second, num_bootstrap=300, seed=0), evaluate(first, 300), evaluate(second, 300)
    for name, metric in found.items():
        assert metric.value == pytest.approx(one[name].value - two[name].value)
    difference = found["accuracy"]
    assert difference.high - difference.low < (one["accuracy"].high - two["accuracy"].low)


def test_paired_with_itself_is_zero():
    found = paired(scored(), scored(), num_bootstrap=100, seed=0)
    assert all((m.value, m.low, m.high) == (0, 0, 0) for m in found.values())


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"ids": np.array([f"t{i}" for i in range(200)])}, "200 only in the first"),
        ({"ids": np.array([f"s{199 - i}" for i in range(200)])}, "another order"),
        ({"groups": np.full(200, "x")}, "200 groups differ"),
        ({"target": np.zeros(200, dtype=np.int64)}, "targets differ"),
        ({"classes": ("a", "b", "c", "e")}, "classes differ"),
    ],
)
def test_paired_refuses_other_samples(change, message):
    with pytest.raises(DataError, match=message):
        paired(scored(), dataclasses.replace(scored(), **change), num_bootstrap=100, seed=0)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"probabilities": None}, "add a finetune block"),
        ({"probabilities": np.ones((200, 3)) / 3}, r"\(200, 3\), expected \(200, 4\)"),
        ({"probabilities": np.ones((200, 4))}, "sum to 1"),
        ({"probabilities": np.full((200, 4), np.nan)}, "200 rows of probabilities are not finite"),
        ({"target": np.full(200, -1)}, "200 targets are no class number .first: s0"),
    ],
)
def test_wrong_input_is_an_error_that_says_what_to_do(change, message):
    with pytest.raises(DataError, match=message):
        evaluate(dataclasses.replace(scored(), **change))


def test_binary_auroc_equals_scikit_learn_with_ties():
    rng = np.random.default_rng(0)
    positive, scores = rng.random(80) < 0.3, np.round(rng.random(80), 1)
    assert binary_auroc(positive, scores) == pytest.approx(sk.roc_auc_score(positive, scores))
    assert np.isnan(binary_auroc(np.ones(3, dtype=bool), np.arange(3.0)))


def test_is_found_by_name():
    assert registry.load("evaluators", "classification").Config().plain() == {"name": "classification"}
