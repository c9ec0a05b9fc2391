from dataclasses import replace

import numpy as np
import polars as pl
import pytest
from sklearn import metrics as sk

from appssl.contracts import BagScores, Scored
from appssl.errors import DataError
from appssl.evaluators.mil import DESCRIPTIONS, Config, build, paired

CLASSES = ("negative", "positive")


def both(positive):
    return np.stack([1 - positive, positive], axis=1)


def scored(seed=0, known=True):
    rng = np.random.default_rng(seed)
    bag_target = np.arange(20) % 2
    bags = BagScores(
        names=np.array([f"b{n:02}" for n in range(20)]),
        groups=np.array([f"p{n // 2}" for n in range(20)]),
        target=bag_target,
        probabilities=both(np.clip(0.3 * bag_target + 0.6 * rng.random(20), 0, 1)),
    )
    target = np.repeat(bag_target, 5) * (np.arange(100) % 5 == 0)
    truth = [CLASSES[t] if known and n % 3 else None for n, t in enumerate(target)]
    return Scored(
        ids=np.array([f"t{n:03}" for n in range(100)]),
        groups=np.repeat(bags.groups, 5),
        target=target,
        classes=CLASSES,
        probabilities=both(np.clip(0.2 * target + 0.7 * rng.random(100), 0, 1)),
        columns=pl.DataFrame({"true_label": truth}, schema={"true_label": pl.String}),
        bags=bags,
    )


def evaluate(one):
    return build(Config()).evaluate(one, num_bootstrap=200, seed=0)


def test_values_of_bags_and_of_tiles_with_known_class_equal_scikit_learn():
    one = scored()
    found = evaluate(one)
    known = np.arange(100) % 3 > 0
    assert found["bag_auroc"].value == pytest.approx(sk.roc_auc_score(one.bags.target, one.bags.probabilities[:, 1]))
    tiles = sk.roc_auc_score(one.target[known], one.probabilities[known, 1])
    assert found["tile_auroc"].value == pytest.approx(tiles)
    guess = one.bags.probabilities.argmax(1)
    assert found["bag_balanced_accuracy"].value == pytest.approx(sk.balanced_accuracy_score(one.bags.target, guess))
    assert found["bag_auroc"].num_groups == 10
    assert found.keys() == DESCRIPTIONS.keys()


def test_without_known_tiles_only_bags_are_measured():
    assert {name.partition("_")[0] for name in evaluate(scored(known=False))} == {"bag"}


def test_a_comparison_with_itself_is_zero_and_with_a_better_one_negative():
    one = scored()
    assert all(
        metric.value == metric.low == metric.high == 0
        for metric in paired(one, one, num_bootstrap=200, seed=0).values()
    )
    perfect = replace(one, bags=replace(one.bags, probabilities=both(one.bags.target.astype(float))))
    difference = paired(one, perfect, num_bootstrap=200, seed=0)["bag_auroc"]
    expected = sk.roc_auc_score(one.bags.target, one.bags.probabilities[:, 1]) - 1
    assert difference.value == pytest.approx(expected)
    assert difference.high <= 0


def test_a_model_without_bags_is_refused():
    with pytest.raises(DataError, match="needs a model of bags"):
        evaluate(replace(scored(), bags=None))
