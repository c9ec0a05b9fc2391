import dataclasses

import numpy as np
import pytest
from sklearn import metrics as sk

from appssl.contracts import Scored
from appssl.errors import DataError
from appssl.evaluators.forest import DESCRIPTIONS, Config, build, drawn, fitted, predict


def scored(num: int = 60, num_train: int = 90) -> Scored:
    rng = np.random.default_rng(0)
    centers = rng.standard_normal((3, 8))
    target, train_target = rng.integers(0, 3, num), rng.integers(0, 3, num_train)
    return Scored(
        ids=np.array([f"s{i}" for i in range(num)]),
        groups=np.array([f"p{i % 7}" for i in range(num)]),
        target=target,
        classes=("a", "b", "c"),
        features=(centers[target] + rng.standard_normal((num, 8))).astype(np.float32),
        train_features=(centers[train_target] + rng.standard_normal((num_train, 8))).astype(np.float32),
        train_target=train_target,
    )


def literal(forest, features):
    """Every row down every tree, one split after the other; the mean of the shares in the leaves."""
    found = []
    for row in features:
        shares = np.zeros(len(forest.classes_))
        for one in forest.estimators_:
            tree, node = one.tree_, 0
            while tree.children_left[node] >= 0:
                left = row[tree.feature[node]] <= tree.threshold[node]
                node = tree.children_left[node] if left else tree.children_right[node]
            counts = tree.value[node][0]
            shares += counts / counts.sum() / len(forest.estimators_)
        found.append(forest.classes_[int(np.argmax(shares))])
    return np.array(found)


@pytest.mark.parametrize(("trees", "min_leaf"), [(1, 1), (15, 1), (15, 8)])
def test_equals_the_walk_down_every_tree(trees, min_leaf):
    one, config = scored(), Config(trees=trees, min_leaf=min_leaf)
    forest = fitted(one.train_features, one.train_target, config, seed=3)
    assert (predict(forest, one.features) == literal(forest, one.features)).all()


def test_metrics_equal_scikit_learn_on_its_classes():
    one, config = scored(), Config(trees=15)
    votes = literal(fitted(one.train_features, one.train_target, config, seed=0), one.features)
    found = build(config).evaluate(one, num_bootstrap=100, seed=0)
    assert list(found) == list(DESCRIPTIONS)
    assert found["forest_accuracy"].value == pytest.approx(sk.accuracy_score(one.target, votes))
    assert found["forest_balanced_accuracy"].value == pytest.approx(sk.balanced_accuracy_score(one.target, votes))
    assert found["forest_macro_f1"].value == pytest.approx(sk.f1_score(one.target, votes, average="macro"))
    assert found["forest_accuracy"].low < found["forest_accuracy"].value < found["forest_accuracy"].high
    assert found["forest_accuracy"].num_groups == 7


def test_worked_split():
    """One feature, classes 0 below 1 and 2 above 3: every tree that sees both splits between them."""
    train, target = np.array([[0.0], [1], [3], [4]] * 10), np.array([0, 0, 2, 2] * 10)
    forest = fitted(train, target, Config(trees=25), seed=0)
    assert predict(forest, np.array([[-5.0], [1.4], [2.6], [9]])).tolist() == [0, 0, 2, 2]


def test_what_no_line_divides_is_divided():
    """Exclusive or: a linear classifier is right in half of the cases."""
    rng = np.random.default_rng(1)
    points = rng.uniform(-1, 1, (600, 2))
    target = ((points[:, 0] > 0) ^ (points[:, 1] > 0)).astype(np.int64)
    forest = fitted(points[:400], target[:400], Config(trees=50), seed=0)
    assert (predict(forest, points[400:]) == target[400:]).mean() > 0.9


def test_units_of_features_do_not_matter():
    one, config = scored(), Config(trees=15)
    factors = 2.0 ** np.arange(-4, 4, dtype=np.float32)  # powers of two: thresholds are scaled without rounding
    scaled = dataclasses.replace(one, features=one.features * factors, train_features=one.train_features * factors)
    assert build(config).evaluate(one, num_bootstrap=100, seed=0) == build(config).evaluate(
        scaled, num_bootstrap=100, seed=0
    )


def test_a_seed_decides_the_forest():
    one, config = scored(), Config(trees=3)
    first, same, other = (build(config).evaluate(one, num_bootstrap=100, seed=seed) for seed in (0, 0, 1))
    assert first == same
    assert first["forest_accuracy"].value != other["forest_accuracy"].value


def test_a_share_is_taken_of_every_class_and_a_smaller_one_lies_in_it():
    target = np.repeat([0, 1, 4], [50, 9, 1])
    tenth, half, all_of_it = (drawn(target, fraction, seed=2) for fraction in (0.1, 0.5, 1.0))
    assert np.bincount(target[tenth]).tolist() == [5, 1, 0, 0, 1]
    assert set(tenth) < set(half)
    assert all_of_it.tolist() == list(range(60))
    assert tenth.tolist() != drawn(target, 0.1, seed=3).tolist()


def test_only_the_share_is_learned_from():
    one = scored()
    rows = drawn(one.train_target, 0.1, seed=0)
    part = dataclasses.replace(one, train_features=one.train_features[rows], train_target=one.train_target[rows])
    less = build(Config(trees=15, label_fraction=0.1)).evaluate(one, num_bootstrap=100, seed=0)
    assert less == build(Config(trees=15)).evaluate(part, num_bootstrap=100, seed=0)
    assert less != build(Config(trees=15)).evaluate(one, num_bootstrap=100, seed=0)


def test_unlabelled_rows_do_not_count_and_one_class_is_all_that_is_said():
    one = scored()
    labels = np.where(np.arange(90) < 5, 1, -1)
    features = one.train_features.copy()
    features[50] = np.nan  # of a row without label
    changed = dataclasses.replace(one, train_target=labels, train_features=features)
    found = build(Config(trees=3)).evaluate(changed, num_bootstrap=100, seed=0)
    assert found["forest_accuracy"].value == pytest.approx((one.target == 1).mean())


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"features": None}, "backbone: summary_features"),
        ({"train_features": None}, "add a pretrain block"),
        ({"train_target": np.full(90, -1)}, "no labelled training row"),
        ({"features": np.full((60, 8), np.nan)}, "features of test rows are not finite"),
        ({"train_features": np.full((90, 8), np.inf)}, "features of train rows are not finite"),
    ],
)
def test_wrong_input_is_an_error_that_says_what_to_do(change, message):
    with pytest.raises(DataError, match=message):
        build(Config()).evaluate(dataclasses.replace(scored(), **change), num_bootstrap=100, seed=0)
