"""The labels that cleanlab calls wrong, from the same probabilities as confident learning of our own."""

import json
import sys

import cleanlab.count
import cleanlab.filter
import cleanlab.rank
import numpy as np
import pytest
from sklearn.metrics import roc_auc_score

from appssl.contracts import LABEL_COLUMNS, LABEL_KINDS
from appssl.errors import DataError, SettingsError
from appssl.labelers import confident_learning
from appssl.labelers.cleanlab import Config, build
from appssl.labelers.confident_learning import confident_joint, thresholds
from tests.labelers.test_small_loss import table


def labelled(data, **values):
    labeler = build(Config(**values), seed=0)
    labeler.fit(data)
    return labeler.label(data), labeler


def test_our_confident_joint_is_that_of_its_authors():
    rng = np.random.default_rng(1)
    for _ in range(10):
        probabilities, target = rng.dirichlet(np.full(4, 0.6), 200), rng.integers(0, 4, 200)
        ours = confident_joint(probabilities, target, thresholds(probabilities, target))
        theirs = cleanlab.count.compute_confident_joint(target, probabilities, calibrate=False)
        np.fill_diagonal(ours, 0)  # theirs has 1 at least there
        np.fill_diagonal(theirs, 0)
        assert ours.tolist() == theirs.tolist()


@pytest.mark.parametrize("choice", ["prune_by_noise_rate", "both", "confident_learning", "low_self_confidence"])
def test_wrong_is_what_cleanlab_calls_wrong(choice):
    data, _ = table(300)
    labels, labeler = labelled(data, filter_by=choice)
    own = confident_learning.build(confident_learning.Config(), seed=0)
    probabilities, target = own.fit_classifiers(data)
    wrong = cleanlab.filter.find_label_issues(target, probabilities, filter_by=choice, n_jobs=1)
    assert (labels["kind"] == "id_noise").to_list() == wrong.tolist()
    scores = cleanlab.rank.get_label_quality_scores(target, probabilities)
    np.testing.assert_array_equal(labels["p_clean"].to_numpy(), scores)
    assert labeler.ledger()[0]["taken"] == len(data) - wrong.sum()


def test_finds_wrong_labels_and_gives_right_ones():
    data, kind = table(outside=0)
    labels, _ = labelled(data)
    assert roc_auc_score(kind != "clean", 1 - labels["p_clean"].to_numpy()) > 0.95
    truth = np.array([f"c{i % 3}" for i in range(len(data))])
    changed = (labels["kind"] == "id_noise").to_numpy()
    assert changed.any()
    assert (labels["label"].to_numpy() == truth)[changed].mean() > 0.97


def test_keeps_the_contract_and_labels_rows_without_one():
    data, _ = table(120)
    hidden = data.with_columns(label=data["label"].set(data["id"] == "r0000", None))
    labels, labeler = labelled(hidden)
    assert labels.columns == [*LABEL_COLUMNS, "p_clean"]
    assert labels["id"].to_list() == data["id"].to_list()
    assert set(labels["kind"]) <= set(LABEL_KINDS)
    first = labels.filter(id="r0000").row(0, named=True)
    assert (first["kind"], first["p_clean"]) == ("pseudo", None)
    assert first["label"] in {"c0", "c1", "c2"}
    json.dumps(labeler.ledger())


def test_a_class_of_one_row_is_kept():
    data, _ = table(60, noise=0)
    data = data.with_columns(label=data["label"].set(data["id"] == "r0000", "lonely"))
    labels, labeler = labelled(data)
    row = labels.filter(id="r0000").row(0, named=True)
    assert (row["label"], row["weight"], row["kind"]) == ("lonely", 1.0, "clean")
    assert labeler.ledger()[0]["unjudged_classes"] == ["lonely"]


def test_labels_that_were_not_fitted_and_a_package_that_is_missing_are_told(monkeypatch):
    _, labeler = labelled(table(60)[0])
    other = table(6)[0]
    with pytest.raises(DataError, match="cleanlab was not fitted on: new"):
        labeler.label(other.with_columns(label=other["label"].set(other["id"] == "r0000", "new")))
    monkeypatch.setitem(sys.modules, "cleanlab", None)
    with pytest.raises(SettingsError, match=r"pip install 'appssl\[cleanlab\]', or use confident_learning"):
        build(Config(), seed=0).fit(table(60)[0])
