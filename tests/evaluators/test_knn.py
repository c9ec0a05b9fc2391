import dataclasses

import numpy as np
import pytest
from sklearn import metrics as sk

from appssl.contracts import Scored
from appssl.errors import DataError
from appssl.evaluators import knn
from appssl.evaluators.knn import DESCRIPTIONS, Config, build, paired, predict


def scored(num: int = 60, num_train: int = 90) -> Scored:
    rng = np.random.default_rng(0)
    centres = rng.standard_normal((3, 8))
    target, train_target = rng.integers(0, 3, num), rng.integers(0, 3, num_train)
    return Scored(
        ids=np.array([f"s{i}" for i in range(num)]),
        groups=np.array([f"p{i % 7}" for i in range(num)]),
        target=target,
        classes=("a", "b", "c"),
        features=(centres[target] + rng.standard_normal((num, 8))).astype(np.float32),
        train_features=(centres[train_target] + rng.standard_normal((num_train, 8))).astype(np.float32),
        train_target=train_target,
    )


def literal(one: Scored, k: int, temperature: float) -> np.ndarray:
    """Wu et al. 2018, section 3.4, sample by sample in float64."""
    found = []
    for x in one.features.astype(np.float64):
        cosine = [float(x @ y / (np.linalg.norm(x) * np.linalg.norm(y))) for y in one.train_features.astype(np.float64)]
        nearest = sorted(range(len(cosine)), key=lambda j: (-cosine[j], j))[:k]
        votes = [sum(np.exp(cosine[j] / temperature) for j in nearest if one.train_target[j] == c) for c in range(3)]
        found.append(int(np.argmax(votes)))
    return np.array(found)


@pytest.mark.parametrize(("k", "temperature"), [(1, 0.07), (5, 0.07), (20, 0.07), (20, 10.0), (500, 0.5)])
def test_equals_literal_vote(k, temperature):
    one = scored()
    found = predict(one.features, one.train_features, one.train_target, 3, k=k, temperature=temperature)
    assert (found == literal(one, k, temperature)).all()


def test_metrics_equal_scikit_learn_on_the_votes():
    one = scored()
    votes = literal(one, 20, 0.07)
    found = build(Config()).evaluate(one, num_bootstrap=100, seed=0)
    assert list(found) == list(DESCRIPTIONS)
    assert found["knn_accuracy"].value == pytest.approx(sk.accuracy_score(one.target, votes))
    assert found["knn_balanced_accuracy"].value == pytest.approx(sk.balanced_accuracy_score(one.target, votes))
    assert found["knn_macro_f1"].value == pytest.approx(sk.f1_score(one.target, votes, average="macro"))
    assert found["knn_accuracy"].low < found["knn_accuracy"].value < found["knn_accuracy"].high
    assert found["knn_accuracy"].num_groups == 7


def test_worked_vote():
    """Neighbours at cosine 1 (class 0) and twice 0.8 (class 1): the near one wins only at a low temperature."""
    train = np.array([[1.0, 0.0], [0.8, 0.6], [0.8, -0.6]])
    test, target = np.array([[2.0, 0.0]]), np.array([0, 1, 1])
    assert predict(test, train, target, 2, k=3, temperature=0.07) == [0]  # e^(0.2/0.07) = 17 > 2
    assert predict(test, train, target, 2, k=3, temperature=1.0) == [1]  # e^0.2 = 1.2 < 2
    assert predict(test, train, target, 2, k=1, temperature=1.0) == [0]


def kept(one: Scored) -> Scored:
    return dataclasses.replace(one, per_sample=build(Config()).per_sample(one))


def test_pairs_are_differences_of_the_same_votes_and_narrower_than_independent_ones():
    one = scored(600)
    other = dataclasses.replace(one, features=one.features.copy())
    other.features[:30] = other.features[30:60]
    pair = [kept(one), kept(other)]
    found = paired(*pair, num_bootstrap=400, seed=0)
    assert list(found) == list(DESCRIPTIONS)
    alone = [build(Config()).evaluate(each, num_bootstrap=400, seed=0) for each in (one, other)]
    for name, metric in found.items():
        assert metric.value == pytest.approx(alone[0][name].value - alone[1][name].value)
        assert 0 < metric.high - metric.low < 0.5 * (alone[0][name].high - alone[0][name].low)
    votes = [literal(each, 20, 0.07) for each in (one, other)]
    right = [np.mean(each == one.target) for each in votes]
    assert found["knn_accuracy"].value == pytest.approx(right[0] - right[1])
    same = paired(pair[0], pair[0], num_bootstrap=100, seed=0)
    assert all((metric.value, metric.low, metric.high) == (0, 0, 0) for metric in same.values())


def test_without_the_votes_of_both_nothing_is_paired_and_other_samples_are_refused():
    one = scored()
    assert paired(kept(one), one, num_bootstrap=100, seed=0) == {}
    other = dataclasses.replace(kept(one), ids=one.ids[::-1])
    with pytest.raises(DataError, match="the same ids in another order"):
        paired(kept(one), other, num_bootstrap=100, seed=0)


def test_votes_that_are_known_are_not_counted_again():
    one = scored()
    wrong = dataclasses.replace(one, per_sample={"knn_class": (one.target + 1) % 3})
    assert build(Config()).evaluate(wrong, num_bootstrap=100, seed=0)["knn_accuracy"].value == 0


def test_scale_of_features_does_not_matter():
    one = scored()
    scaled = dataclasses.replace(one, features=one.features * 7, train_features=one.train_features * 0.01)
    assert build(Config()).evaluate(one, num_bootstrap=100, seed=0) == build(Config()).evaluate(
        scaled, num_bootstrap=100, seed=0
    )


def test_blocks_do_not_change_the_votes(monkeypatch):
    one = scored()
    whole = predict(one.features, one.train_features, one.train_target, 3, k=20, temperature=0.07)
    monkeypatch.setattr(knn, "BLOCK_ELEMENTS", 200)
    assert (predict(one.features, one.train_features, one.train_target, 3, k=20, temperature=0.07) == whole).all()


def test_equal_neighbours_are_taken_in_training_order():
    train, target = np.ones((6, 2)), np.array([2, 2, 1, 1, 1, 1])
    assert predict(np.ones((1, 2)), train, target, 3, k=3, temperature=0.07) == [2]


def test_zero_features_do_not_fail_and_unlabelled_training_rows_do_not_vote():
    one = scored()
    features = np.zeros_like(one.features)
    labels = np.where(np.arange(90) < 5, 1, -1)
    found = build(Config()).evaluate(
        dataclasses.replace(one, features=features, train_target=labels), num_bootstrap=100, seed=0
    )
    assert found["knn_accuracy"].value == pytest.approx((one.target == 1).mean())


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"features": None}, "add a pretrain block"),
        ({"train_features": None}, "add a pretrain block"),
        ({"train_target": np.full(90, -1)}, "no labelled training row"),
        ({"features": np.full((60, 8), np.nan)}, "features of test rows that are not finite"),
    ],
)
def test_wrong_input_is_an_error_that_says_what_to_do(change, message):
    with pytest.raises(DataError, match=message):
        build(Config()).evaluate(dataclasses.replace(scored(), **change), num_bootstrap=100, seed=0)
