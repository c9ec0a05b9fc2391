import polars as pl
import pytest

from appssl.errors import DataError
from appssl.ops.images.decisions import COLUMNS, decided, leave_out_decided, read_decisions, settled

CLASSES = ("cat", "dog")
GIVEN = {"a": "cat", "b": "dog", "n": None}
TEXT = dict.fromkeys(COLUMNS, pl.String)


def read(tmp_path, *rows, known=("a", "b", "n", "unused"), name="d.csv"):
    frame = pl.DataFrame(list(rows), schema=TEXT, orient="row")
    (frame.write_csv if name.endswith("csv") else frame.write_parquet)(tmp_path / name)
    return read_decisions(tmp_path / name, f"review/{name}", classes=CLASSES, given=GIVEN, known=known)


@pytest.mark.parametrize("name", ["d.csv", "d.parquet"])
def test_decisions_are_read_and_keep_means_the_given_label(tmp_path, name):
    rows = [("a", "keep", None), ("b", "relabel", "cat"), ("n", "irrelevant", "dog"), ("unused", "keep", None)]
    found = read(tmp_path, *rows, name=name)
    assert found.rows() == [
        ("a", "keep", "cat"), ("b", "relabel", "cat"), ("n", "irrelevant", None), ("unused", "keep", None),
    ]  # fmt: skip


def test_keep_holds_the_label_that_the_reviewer_saw(tmp_path):
    assert read(tmp_path, ("a", "keep", "dog")).rows() == [("a", "keep", "dog")]


def test_no_decisions_yet_are_no_error(tmp_path):
    assert read(tmp_path).rows() == []


@pytest.mark.parametrize(
    ("row", "message"),
    [
        (("x", "keep", "cat"), "id 'x' is none of the images"),
        (("a", "relabel", "catt"), "label 'catt' is in no class list. Did you mean cat?"),
        (("a", "relabel", None), "relabel needs a label"),
        (("n", "keep", None), "keep needs a label: the image has none"),
        (("a", "keeep", "cat"), "decision 'keeep' is not one of keep, relabel, irrelevant, duplicate."),
        (("a", None, "cat"), "decision '' is not one of"),
        ((None, "keep", "cat"), "the id is empty"),
        (("b", "duplicate", None), "id 'b' is decided in row 1 already"),
    ],
)  # fmt: skip
def test_what_is_wrong_is_told_with_file_and_row(tmp_path, row, message):
    with pytest.raises(DataError) as caught:
        read(tmp_path, ("b", "keep", "dog"), row)
    assert f"review/d.csv row 2: {message}" in str(caught.value)
    assert "1 problem" in str(caught.value)


def test_all_problems_come_together(tmp_path):
    with pytest.raises(DataError, match=r"(?s)2 problem.*row 1.*row 3"):
        read(tmp_path, ("x", "keep", "cat"), ("a", "keep", "cat"), ("b", "relabel", "cow"))


def test_a_table_that_lacks_a_column_or_is_not_there_is_refused(tmp_path):
    pl.DataFrame({"id": ["a"], "desicion": ["keep"], "label": ["cat"]}).write_csv(tmp_path / "d.csv")
    with pytest.raises(DataError, match=r"no column 'decision'. Did you mean desicion\?"):
        read_decisions(tmp_path / "d.csv", "d.csv", classes=CLASSES, given=GIVEN)
    with pytest.raises(DataError, match=r"gone\.csv: there is no such table"):
        read_decisions(tmp_path / "gone.csv", "gone.csv", classes=CLASSES, given=GIVEN)


def test_decided_sets_label_and_truth_and_leaves_the_rest():
    units = pl.DataFrame({"id": ["a", "b", "c", "d"], "label": ["cat", "dog", "cat", "cat"], "true_label": [None] * 4})
    rows = [("c", "keep", "cat"), ("b", "relabel", "cat"), ("d", "irrelevant", None), ("z", "keep", None)]
    found = decided(units.cast(pl.String), pl.DataFrame(rows, schema=TEXT, orient="row"))
    assert found.rows() == [
        ("a", "cat", None, None), ("b", "cat", "cat", "relabel"), ("c", "cat", "cat", "keep"),
        ("d", "cat", None, "irrelevant"),
    ]  # fmt: skip


def test_only_kept_images_are_left_out():
    units = pl.DataFrame(
        {
            "decision": ["irrelevant", "duplicate", "irrelevant", "keep", None],
            "outcome": ["kept", "kept", "failed", "kept", "kept"],
            "reason": ["", "", "truncated", "", ""],
            "detail": [""] * 5,
        }
    )
    found = leave_out_decided(units, "review/decisions.csv")
    assert found["outcome"].to_list() == ["left_out", "left_out", "failed", "kept", "kept"]
    assert found["reason"].to_list() == ["reviewed_irrelevant", "reviewed_duplicate", "truncated", "", ""]
    assert found["detail"].to_list() == ["decided in review/decisions.csv"] * 2 + [""] * 3


LABELS = pl.DataFrame(
    {
        "id": ["a", "b", "c"],
        "label": ["dog", "dog", "cat"],
        "confidence": [0.8, 0.3, 0.9],
        "weight": [0.8, 0.0, 0.9],
        "kind": ["id_noise", "ood_noise", "pseudo"],
        "reason": ["r"] * 3,
        "p_clean": [0.1, 0.2, None],
        "p_ood": [0.3, 0.9, 0.5],
    }
)


def test_no_labeler_overrules_a_reviewer():
    samples = pl.DataFrame({"id": ["c", "b", "a"], "label": ["cat", "dog", "cat"], "reviewed": [False, True, True]})
    found = settled(LABELS, samples)
    sure = ("clean", '{"why": "reviewed"}', 1.0, 0.0)
    assert found.columns == LABELS.columns
    assert found.rows() == [("a", "cat", 1.0, 1.0, *sure), ("b", "dog", 1.0, 1.0, *sure), LABELS.row(2)]


def test_a_hidden_label_stays_hidden_and_p_clean_is_not_invented():
    samples = pl.DataFrame({"id": ["a", "b", "c"], "label": [None, "dog", "cat"], "reviewed": [True, False, False]})
    assert settled(LABELS, samples).equals(LABELS)
    assert "p_clean" not in settled(LABELS.drop("p_clean"), samples.with_columns(reviewed=True)).columns


def test_without_reviews_the_table_is_as_it_was():
    assert settled(LABELS, pl.DataFrame({"id": ["a"], "label": ["cat"]})) is LABELS
