"""Self-training: rounds with a ledger that can be checked."""

import json

import numpy as np
import polars as pl
import pytest

from appssl.contracts import LABEL_COLUMNS
from appssl.errors import DataError
from appssl.labelers.self_training import Config, build
from appssl.ops.linear import embedding_matrix, fit_linear


def table(num=300, known=30, seed=0, spread=0.8):
    rng = np.random.default_rng(seed)
    truth = np.arange(num) % 3
    features = (np.eye(3, 6) * 3)[truth] + rng.normal(0, spread, (num, 6))
    names = [f"c{k}" for k in truth]
    data = pl.DataFrame(
        {
            "id": [f"r{i:04}" for i in range(num)],
            "group": [f"r{i:04}" for i in range(num)],
            "label": pl.Series([name if i < known else None for i, name in enumerate(names)], dtype=pl.String),
            "split": ["train"] * num,
            "embedding": pl.Series(features.astype(np.float32), dtype=pl.Array(pl.Float32, 6)),
        }
    )
    return data, np.array(names)


def trained(data, seed=0, **values):
    labeler = build(Config(**values), seed=seed)
    labeler.fit(data)
    return labeler.label(data), labeler.ledger()


def literal_rounds(data, threshold, num_rounds):
    """Without holdout: the rows and classes taken in each round, step by step."""
    features, labels = embedding_matrix(data["embedding"]), data["label"].to_list()
    names = sorted({label for label in labels if label})
    known = {i: (names.index(label), 1.0) for i, label in enumerate(labels) if label}
    history = []
    for _ in range(num_rounds):
        index = sorted(known)
        target, weight = np.array([known[i][0] for i in index]), np.array([known[i][1] for i in index])
        probabilities = fit_linear(features[index], target, len(names), weight=weight).probabilities(features)
        new = {
            i: (int(probabilities[i].argmax()), float(probabilities[i].max()))
            for i in range(len(labels))
            if i not in known and probabilities[i].max() >= threshold
        }
        history.append(new)
        known |= new
        if not new:
            break
    return history, names


def test_equals_the_rounds_written_out():
    data, _ = table()
    labels, ledger = trained(data, threshold=0.9, rounds=3, holdout=0.0)
    history, names = literal_rounds(data, 0.9, 3)
    assert [entry["taken"] for entry in ledger] == [len(new) for new in history]
    for number, new in enumerate(history, 1):
        for i, (k, score) in new.items():
            row = labels.row(i, named=True)
            assert row["label"] == names[k]
            assert row["weight"] == pytest.approx(score, abs=1e-6)
            assert json.loads(row["reason"])["round"] == number


def test_given_labels_are_kept_and_the_rest_is_pseudo():
    data, truth = table()
    labels, _ = trained(data)
    assert labels.columns == list(LABEL_COLUMNS)
    assert labels["id"].to_list() == data["id"].to_list()
    given, made = labels.head(30), labels.tail(270)
    assert given["label"].to_list() == data["label"].head(30).to_list()
    assert set(given["kind"]) == {"clean"}
    assert set(given["weight"]) == {1.0}
    assert set(made["kind"]) == {"pseudo"}
    taken = made["weight"].to_numpy() > 0
    assert (made["label"].to_numpy() == truth[30:])[taken].mean() > 0.95


def test_rows_below_the_threshold_stay_without_label_and_weight():
    data, _ = table(spread=2.0)
    labels, ledger = trained(data, threshold=0.99)
    left = labels.tail(270).filter(pl.col("weight") == 0)
    assert 0 < len(left) == 270 - sum(entry["taken"] for entry in ledger)
    assert left["label"].null_count() == len(left)
    assert "no class reached the threshold" in left["reason"][0]


def test_the_ledger_says_what_happened():
    data, _ = table()
    labels, ledger = trained(data, rounds=4)
    made = labels.tail(270).filter(pl.col("weight") > 0)
    assert sum(entry["taken"] for entry in ledger) == len(made)
    for entry in ledger:
        assert entry["taken"] == sum(entry["class_counts"].values())
        assert entry["threshold"] == 0.9
        assert len(entry["model"]) == 64
        assert 0 <= entry["heldout_accuracy"] <= 1
        assert entry["num_heldout"] == 6
    digests = {entry["round"]: entry["model"] for entry in ledger}
    assert all(digests[(reason := json.loads(text))["round"]] == reason["model"] for text in made["reason"])
    json.dumps(ledger)


def test_ends_when_nothing_new_is_taken():
    data, _ = table()
    assert trained(data, threshold=1.0, rounds=9)[1][-1]["taken"] == 0
    assert len(trained(data, threshold=1.0, rounds=9)[1]) == 1
    assert len(trained(data, threshold=0.0, rounds=9)[1]) == 2


def test_held_out_rows_are_never_learned_from():
    data, _ = table(known=60)
    labeler = build(Config(rounds=1, threshold=1.0, holdout=0.3), seed=0)
    labeler.fit(data)
    first = labeler.ledger()[0]
    # Turning labels of held-out rows around changes the measured accuracy, not the model.
    numbers = {"c0": 0, "c1": 1, "c2": 2}
    target = np.array([numbers.get(label, -1) for label in data["label"]])
    held_out = labeler._held_out(data["group"].to_list(), target)
    turned = [f"c{(t + 1) % 3}" if h else label for t, h, label in zip(target, held_out, data["label"], strict=True)]
    labeler.fit(data.with_columns(label=pl.Series(turned, dtype=pl.String)))
    assert held_out.sum() == first["num_heldout"] == 18
    assert labeler.ledger()[0]["model"] == first["model"]
    assert labeler.ledger()[0]["heldout_accuracy"] < first["heldout_accuracy"]


def test_a_class_keeps_its_only_row_for_training():
    data, _ = table(known=3)
    _, ledger = trained(data, holdout=0.9)
    assert ledger[0]["num_heldout"] == 0
    assert ledger[0]["heldout_accuracy"] is None


def test_same_seed_same_labels():
    data, _ = table()
    assert trained(data)[0].equals(trained(data)[0])


def test_without_unlabelled_rows_everything_stays():
    data, _ = table(known=300)
    labels, ledger = trained(data)
    assert labels["label"].to_list() == data["label"].to_list()
    assert [entry["taken"] for entry in ledger] == [0]


@pytest.mark.parametrize(("known", "message"), [(0, "no label at all"), (1, r"found 1 \(c0\)")])
def test_too_few_classes_are_refused(known, message):
    data, _ = table(known=known)
    with pytest.raises(DataError, match=message):
        build(Config(), seed=0).fit(data)
