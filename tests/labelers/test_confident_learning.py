"""Confident learning equals its definition in loops, finds wrong labels, and says what it cannot judge."""

import json

import numpy as np
import pytest
from sklearn.metrics import roc_auc_score

from appssl.contracts import LABEL_COLUMNS, LABEL_KINDS
from appssl.errors import DataError
from appssl.labelers.confident_learning import (
    Config,
    build,
    confident_class,
    confident_joint,
    margin,
    thresholds,
)
from tests.labelers.test_small_loss import rows, table


def labelled(data, seed=0, **values):
    labeler = build(Config(**values), seed=seed)
    labeler.fit(data)
    return labeler.label(data), labeler


def literal(probabilities, target):
    """Thresholds and confident joint, row by row."""
    count = len(probabilities[0])
    t = []
    for k in range(count):
        own = [p[k] for p, y in zip(probabilities, target, strict=True) if y == k]
        t.append(sum(own) / len(own) if own else float("inf"))
    joint = [[0] * count for _ in range(count)]
    for p, y in zip(probabilities, target, strict=True):
        reached = [(p[k], -k) for k in range(count) if p[k] >= t[k]]
        if reached and y >= 0:
            joint[y][-max(reached)[1]] += 1
    return t, joint


def test_equals_the_definition_in_loops():
    rng = np.random.default_rng(0)
    for _ in range(20):
        probabilities = rng.dirichlet(np.full(4, 0.6), 40)
        target = rng.integers(-1, 3, 40)  # one class has no row, some rows no label
        t, joint = literal(probabilities.tolist(), target.tolist())
        np.testing.assert_allclose(thresholds(probabilities, target), t, rtol=1e-12)
        assert confident_joint(probabilities, target, np.array(t)).tolist() == joint


def test_a_small_example_by_hand():
    probabilities = np.array([[0.9, 0.1], [0.7, 0.3], [0.2, 0.8], [0.45, 0.55], [0.4, 0.6]])
    target = np.array([0, 0, 0, 1, 1])
    # t_0 = (0.9 + 0.7 + 0.2) / 3 = 0.6, t_1 = (0.55 + 0.6) / 2 = 0.575
    np.testing.assert_allclose(thresholds(probabilities, target), [0.6, 0.575])
    assert confident_class(probabilities, np.array([0.6, 0.575])).tolist() == [0, 0, 1, -1, 1]
    assert confident_joint(probabilities, target, np.array([0.6, 0.575])).tolist() == [[2, 1], [0, 1]]
    assert margin(probabilities[2], 0) == pytest.approx(0.2)  # (1 + 0.2 - 0.8) / 2


def test_keeps_the_contract():
    data, _ = table(60)
    labels, labeler = labelled(data)
    assert labels.columns == [*LABEL_COLUMNS, "p_clean"]
    assert labels["id"].to_list() == data["id"].to_list()
    assert set(labels["kind"]) <= set(LABEL_KINDS)
    assert labels["confidence"].is_between(0, 1).all()
    assert labels["p_clean"].is_between(0, 1).all()
    entry = labeler.ledger()[0]
    assert np.array(entry["confident_joint"]).sum() <= len(data)
    json.dumps(labeler.ledger())


def test_finds_wrong_labels_and_gives_right_ones():
    data, kind = table(outside=0)
    labels, labeler = labelled(data)
    assert roc_auc_score(kind != "clean", 1 - labels["p_clean"].to_numpy()) > 0.95
    truth = np.array([f"c{i % 3}" for i in range(len(data))])
    changed = (labels["kind"] == "id_noise").to_numpy()
    assert (labels["label"].to_numpy() == truth)[changed].mean() > 0.97
    assert changed[kind != "clean"].mean() > 0.8
    assert labeler.ledger()[0]["noise_rate"] == pytest.approx((kind != "clean").mean(), abs=0.05)


def test_where_no_class_is_confident_the_label_stays():
    data, _ = table(300)
    labels, _ = labelled(data)
    hard = labels.filter(kind="hard_clean")
    assert len(hard) > 0
    assert hard["weight"].unique().to_list() == [1.0]
    given = data.filter(data["id"].is_in(hard["id"].implode()))["label"].to_list()
    assert hard["label"].to_list() == given


def test_rows_without_label_get_the_confident_class_and_order_does_not_matter():
    data, _ = table(120, noise=0.1, outside=0)
    hidden = data.with_columns(label=data["label"].set(data["id"] == "r0000", None))
    labels, _ = labelled(hidden)
    first = labels.filter(id="r0000").row(0, named=True)
    assert (first["kind"], first["label"], first["p_clean"]) == ("pseudo", "c0", None)
    turned, _ = labelled(hidden.reverse())
    assert (
        turned.sort("id")
        .drop("confidence", "weight", "reason", "p_clean")
        .equals(labels.sort("id").drop("confidence", "weight", "reason", "p_clean"))
    )


def test_a_class_of_one_row_is_kept():
    data, _ = table(60, noise=0)
    data = data.with_columns(label=data["label"].set(data["id"] == "r0000", "lonely"))
    labels, labeler = labelled(data)
    row = labels.filter(id="r0000").row(0, named=True)
    assert (row["label"], row["weight"], row["kind"]) == ("lonely", 1.0, "clean")
    assert labeler.ledger()[0]["unjudged_classes"] == ["lonely"]


def test_what_cannot_be_judged_is_refused():
    features = np.random.default_rng(0).normal(size=(4, 3))
    for data, message in (
        (rows(list("abcd"), ["x"] * 4, features), "at least two classes"),
        (rows(list("abcd"), list("xyxy"), features, groups=["g"] * 4), "two groups"),
    ):
        with pytest.raises(DataError, match=message):
            build(Config(), seed=0).fit(data)
    _, labeler = labelled(table(60)[0])
    with pytest.raises(DataError, match="not fitted on: new"):
        labeler.label(rows(["a"], ["new"], np.zeros((1, 8))))
