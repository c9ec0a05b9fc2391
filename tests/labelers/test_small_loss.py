"""Small loss: finds wrong labels, never loses a row, and says what it cannot judge."""

import json

import numpy as np
import polars as pl
import pytest
from sklearn.metrics import roc_auc_score

from appssl.contracts import LABEL_COLUMNS, LABEL_KINDS
from appssl.errors import DataError
from appssl.labelers.small_loss import Config, build
from appssl.ops.cross_fitting import folds


def table(num=600, noise=0.3, outside=0.1, seed=0, spread=0.6):
    """Three clouds, some labels wrong, some points between all clouds; returns (table, kind of each row)."""
    rng = np.random.default_rng(seed)
    centers = np.eye(3, 8) * 3
    truth = np.arange(num) % 3
    features = centers[truth] + rng.normal(0, spread, (num, 8))
    draw = rng.random(num)
    wrong = draw < noise
    label = np.where(wrong, (truth + rng.integers(1, 3, num)) % 3, truth)
    ood = draw > 1 - outside
    features[ood] = 1 + rng.normal(0, spread, (ood.sum(), 8))
    label[ood] = rng.integers(0, 3, ood.sum())
    kind = np.where(ood, "ood_noise", np.where(wrong, "id_noise", "clean"))
    return rows([f"r{i:04}" for i in range(num)], [f"c{k}" for k in label], features), kind


def rows(ids, labels, features, groups=None):
    width = np.asarray(features).shape[1]
    return pl.DataFrame(
        {
            "id": ids,
            "group": groups or ids,
            "label": pl.Series(labels, dtype=pl.String),
            "split": ["train"] * len(ids),
            "embedding": pl.Series(np.asarray(features, np.float32), dtype=pl.Array(pl.Float32, width)),
        }
    )


def labelled(data, seed=0, **values):
    labeler = build(Config(**values), seed=seed)
    labeler.fit(data)
    return labeler.label(data), labeler


def test_keeps_the_contract():
    data, _ = table(60)
    labels, labeler = labelled(data)
    assert labels.columns == [*LABEL_COLUMNS, "p_clean"]
    assert labels["id"].to_list() == data["id"].to_list()
    assert set(labels["kind"]) <= set(LABEL_KINDS)
    assert labels["confidence"].is_between(0, 1).all()
    assert (labels["weight"] >= 0).all()
    assert all({"why", "loss", "p_clean", "prediction"} <= json.loads(reason).keys() for reason in labels["reason"])
    assert [entry["round"] for entry in labeler.ledger()] == [1, 2]
    json.dumps(labeler.ledger())


def test_ranks_wrong_labels_below_right_ones():
    data, kind = table()
    labels, _ = labelled(data)
    suspicion = 1 - labels["p_clean"].to_numpy()
    assert roc_auc_score(kind != "clean", suspicion) > 0.95
    assert (labels["kind"].to_numpy() == kind).mean() > 0.8


def test_new_labels_are_better_than_the_given_ones():
    data, kind = table(outside=0)
    truth = np.array([f"c{i % 3}" for i in range(len(data))])
    labels, _ = labelled(data)
    used = labels["weight"].to_numpy() > 0
    given = (data["label"].to_numpy() == truth).mean()
    assert (labels["label"].to_numpy() == truth)[used].mean() > 0.97 > 0.8 > given
    assert used.mean() > 0.8
    assert set(kind) == {"clean", "id_noise"}


def test_follows_its_rules():
    data, _ = table()
    labels, _ = labelled(data, threshold=0.6, relabel_confidence=0.8)
    given = data["label"]
    for row, label in zip(labels.to_dicts(), given, strict=True):
        reason = json.loads(row["reason"])
        if row["p_clean"] >= 0.6:
            assert (row["kind"], row["label"], row["weight"]) == ("clean", label, 1.0)
        elif reason["prediction"] != label and reason["probability"] >= 0.8:
            assert (row["kind"], row["label"]) == ("id_noise", reason["prediction"])
            assert row["weight"] == pytest.approx(reason["probability"], abs=1e-4)
        else:
            assert (row["kind"], row["label"], row["weight"]) == ("ood_noise", label, 0.0)


def test_the_order_of_rows_does_not_matter_and_the_seed_moves_the_folds():
    data, _ = table(120)
    one = labelled(data)[0]
    other = labelled(data.reverse())[0].reverse()
    np.testing.assert_allclose(one["p_clean"], other["p_clean"], atol=1e-2)  # sums in another order
    assert labelled(data)[0].equals(one)
    assert not labelled(data, seed=1)[0].equals(one)


def test_folds_keep_groups_whole_and_classes_spread():
    groups = [f"g{i // 2}" for i in range(40)]
    labels = ["a" if i < 20 else "b" for i in range(40)]
    found = folds(groups, labels, 5, 0)
    assert sorted(found.values()) == sorted([*range(5)] * 4)
    for start in (0, 10):
        assert {found[f"g{i}"] for i in range(start, start + 10)} == set(range(5))


def test_rows_without_a_label_are_predicted_or_left_without():
    data, _ = table(300, noise=0, outside=0)
    masked = data.with_columns(label=pl.when(pl.int_range(pl.len()) < 100).then("label"))
    labels, _ = labelled(masked)
    made = labels.tail(200)
    assert set(made["kind"]) == {"pseudo"}
    assert made["p_clean"].null_count() == 200
    taken = made["weight"].to_numpy() > 0
    assert taken.mean() > 0.5
    assert (made["label"].to_numpy() == data["label"].tail(200).to_numpy())[taken].mean() > 0.95
    assert made.filter(pl.col("weight") == 0)["label"].null_count() == (~taken).sum()


def test_a_class_with_one_image_is_kept_and_said_to_be_unjudged():
    data, _ = table(90, noise=0, outside=0)
    data = data.with_columns(label=pl.when(pl.col("id") == "r0000").then(pl.lit("lonely")).otherwise("label"))
    labels, labeler = labelled(data)
    row = labels.filter(pl.col("id") == "r0000").to_dicts()[0]
    assert (row["label"], row["kind"], row["weight"]) == ("lonely", "clean", 1.0)
    assert "too few images" in row["reason"]
    assert labeler.ledger()[-1]["unjudged_classes"] == ["lonely"]


def test_equal_losses_keep_every_label():
    features = np.tile([[0.0, 1.0], [1.0, 0.0]], (20, 1))
    data = rows([f"r{i}" for i in range(40)], ["a", "b"] * 20, features)
    labels, labeler = labelled(data, folds=2, rounds=1)
    assert set(labels["kind"]) == {"clean"}
    assert labeler.ledger()[0]["taken"] == 40


def test_new_rows_are_judged_by_all_folds():
    data, kind = table()
    labeler = build(Config(), seed=0)
    labeler.fit(data)
    fresh, fresh_kind = table(seed=5)
    fresh = fresh.with_columns(id="new" + pl.col("id"), group="new" + pl.col("id"))
    suspicion = 1 - labeler.label(fresh)["p_clean"].to_numpy()
    assert roc_auc_score(fresh_kind != "clean", suspicion) > 0.9
    assert len(kind) == len(fresh_kind)


@pytest.mark.parametrize(
    ("labels", "features", "groups", "message"),
    [
        (["a"] * 6, np.random.default_rng(0).random((6, 2)), None, r"at least two classes.*found 1 \(a\)"),
        ([None] * 6, np.random.default_rng(0).random((6, 2)), None, "no label at all"),
        (["a", "b"] * 3, np.ones((6, 2)), None, "collapsed"),
        (["a", "b"] * 3, np.full((6, 2), np.nan), None, "not finite"),
        (["a", "b"] * 3, np.random.default_rng(0).random((6, 2)), ["g"] * 6, "at least two groups"),
    ],
)
def test_what_cannot_be_judged_is_refused(labels, features, groups, message):
    with pytest.raises(DataError, match=message):
        build(Config(), seed=0).fit(rows(list("uvwxyz"), labels, features, groups))


def test_an_unknown_label_later_is_refused():
    data, _ = table(60)
    _, labeler = labelled(data)
    with pytest.raises(DataError, match="not fitted on: new"):
        labeler.label(data.with_columns(label=pl.lit("new")))
