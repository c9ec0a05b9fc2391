"""What is said of judged labels where the truth is known, against counts and pairs written out."""

import json

import polars as pl
import pytest

from appssl.artifact import ArtifactWriter
from appssl.errors import AppsslError
from appssl.ops.journal import Journal
from appssl.stages.labels import label_metrics, write_labels

CLASSES = ("cat", "dog")
GIVEN = ["cat", "cat", "dog", "dog", "cat", "dog"]
TRUTH = ["cat", "dog", "dog", "__ood__", "__ood__", "dog"]  # right, wrong, right, outside, outside, right
P_CLEAN = [0.9, 0.3, 0.8, 0.5, 0.85, 0.6]
P_OOD = [0.1, 0.2, 0.05, 0.9, 0.7, 0.75]


def labels(**columns):
    kinds = ["clean", "id_noise", "clean", "ood_noise", "clean", "hard_clean"]
    values = {
        "id": [f"i{n}" for n in range(6)],
        "label": ["cat", "dog", "dog", "dog", "cat", "dog"],
        "confidence": P_CLEAN,
        "weight": [1.0, 0.8, 1.0, 0.0, 1.0, 1.0],
        "kind": kinds,
        "reason": ["{}"] * 6,
        "p_clean": P_CLEAN,
        "p_ood": P_OOD,
    }
    return pl.DataFrame({**values, **columns})


def known(**columns):
    return pl.DataFrame({"id": [f"i{n}" for n in range(6)], "label": GIVEN, "true_label": TRUTH, **columns})


def share_of_pairs(positive, negative):
    """AUROC: the share of pairs in which the positive has the larger score."""
    pairs = [(p, n) for p in positive for n in negative]
    return sum((p > n) + 0.5 * (p == n) for p, n in pairs) / len(pairs)


def mean_precision(positive, negative):
    """Average precision without ties: mean over positives of the share of positives at and above each."""
    return sum(
        sum(q >= p for q in positive) / (sum(q >= p for q in positive) + sum(n >= p for n in negative))
        for p in positive
    ) / len(positive)


@pytest.mark.parametrize(("name", "score"), [("noise", [1 - p for p in P_CLEAN]), ("ood_score", P_OOD)])
def test_detection_is_that_of_pairs_with_right_labels(name, score):
    found = label_metrics(labels(), known(), CLASSES)
    right = [score[n] for n in (0, 2, 5)]
    for kind, wrong in (("", (1, 3, 4)), ("_ood", (3, 4)), ("_id", (1,))):
        positive = [score[n] for n in wrong]
        assert found[f"{name}_auroc{kind}"] == pytest.approx(share_of_pairs(positive, right))
        assert found[f"{name}_average_precision{kind}"] == pytest.approx(mean_precision(positive, right))


def test_shares_and_label_accuracy_are_counts():
    found = label_metrics(labels(), known(), CLASSES)
    assert found["share_clean"] == 0.5
    assert found["share_id_noise"] == found["share_ood_noise"] == found["share_hard_clean"] == pytest.approx(1 / 6)
    assert found["share_pseudo"] == found["share_novel"] == 0
    assert found["given_label_accuracy"] == 0.5
    assert found["used_share"] == pytest.approx(5 / 6)  # i3 has weight 0
    assert found["used_label_accuracy"] == pytest.approx(4 / 5)  # i4 shows none of the classes


def test_only_what_is_defined_is_measured():
    assert set(label_metrics(labels(), known(true_label=[None] * 6), CLASSES)) == {
        f"share_{kind}" for kind in ("clean", "id_noise", "ood_noise", "hard_clean", "pseudo", "novel")
    }
    without = label_metrics(labels().drop("p_ood"), known(), CLASSES)
    assert not any(name.startswith("ood_score") for name in without)
    all_right = label_metrics(labels(), known(true_label=GIVEN), CLASSES)
    assert not any("auroc" in name or "precision" in name for name in all_right)
    no_outside = label_metrics(labels(), known(true_label=["cat", "dog", "dog", "dog", "cat", "dog"]), CLASSES)
    assert "noise_auroc_ood" not in no_outside
    assert no_outside["noise_auroc_id"] == no_outside["noise_auroc"] == 1
    assert not any("auroc" in name for name in label_metrics(labels(), known(label=["dog"] * 4 + ["cat"] * 2,
                   true_label=["cat"] * 4 + ["dog"] * 2), CLASSES))  # nothing is right  # fmt: skip


def test_samples_of_unknown_truth_count_in_shares_only():
    truth = [*TRUTH[:5], None]
    found = label_metrics(labels(), known(true_label=truth), CLASSES)
    assert found["share_hard_clean"] == pytest.approx(1 / 6)
    assert found["given_label_accuracy"] == pytest.approx(2 / 5)


def test_a_method_that_breaks_its_contract_is_named(tmp_path):
    writer = ArtifactWriter(tmp_path / "out", "labels", settings_digest="", inputs={})

    def write(table):
        write_labels(table, known(), CLASSES, writer, Journal(tmp_path), step=1)

    with pytest.raises(AppsslError, match=r"broke its contract: \['reason'\]"):
        write(labels().drop("reason"))
    with pytest.raises(AppsslError, match="labels are of other rows than it was given"):
        write(labels().reverse())
    with pytest.raises(AppsslError, match=r"unknown kinds \['noisy'\]; allowed: clean, id_noise"):
        write(labels(kind=["clean"] * 5 + ["noisy"]))


def test_table_metrics_and_journal_hold_the_same(tmp_path):
    writer = ArtifactWriter(tmp_path / "out", "labels", settings_digest="", inputs={})
    write_labels(labels(), known(), CLASSES, writer, Journal(tmp_path), step=7)
    made = writer.finish()
    expected = label_metrics(labels(), known(), CLASSES)
    assert made.table("labels.parquet").equals(labels())
    assert made.json("metrics.json") == {name: {"value": value} for name, value in expected.items()}
    line = json.loads((tmp_path / "metrics.jsonl").read_text().splitlines()[-1])
    assert line["step"] == 7
    assert line["values"] == {f"labels/{name}": value for name, value in expected.items()}
