import polars as pl
import pytest

from appssl.errors import DataError
from appssl.ops.images.near_duplicates import groups, leave_out_leaks, refuse_leaks

A, B = 0x0123456789ABCDEF, 0xFEDCBA9876543210  # 64 bits apart


def units(*rows):
    """Rows of (id, split, hash)."""
    names = [name for name, _, _ in rows]
    return pl.DataFrame(
        {
            "id": names,
            "split": [split for _, split, _ in rows],
            "label": ["rose"] * len(rows),
            "hash": pl.Series([value for _, _, value in rows], dtype=pl.UInt64),
            "outcome": ["kept"] * len(rows),
            "reason": [""] * len(rows),
            "detail": [""] * len(rows),
            "copy_of": pl.Series([None] * len(rows), dtype=pl.String),
        }
    )


def left_out(table):
    return dict(table.filter(outcome="left_out").select("id", "copy_of").iter_rows())


def test_the_copy_in_training_goes_and_names_the_nearest_one():
    found = leave_out_leaks(units(("a", "train", A), ("b", "test", A ^ 7), ("c", "test", A ^ 1), ("d", "train", B)), 4)
    assert left_out(found) == {"a": "c"}
    row = found.row(0, named=True)
    assert row["reason"] == "near_duplicate_across_splits"
    assert row["detail"] == "near-duplicate of c (1 of 64 bits differ; train and test, labels rose and rose)"
    assert found["id"].to_list() == ["a", "b", "c", "d"]


def test_test_stays_before_val_before_train_also_with_equal_hashes():
    rows = [("t", "train", A), ("v", "val", A), ("x", "test", A)]
    assert left_out(leave_out_leaks(units(*rows), 0)) == {"t": "x", "v": "x"}
    assert left_out(leave_out_leaks(units(*rows[:2]), 0)) == {"t": "v"}


def test_distance_decides():
    rows = units(("a", "train", A), ("b", "test", A ^ 0b11111))
    assert left_out(leave_out_leaks(rows, 4)) == {}
    assert left_out(leave_out_leaks(rows, 5)) == {"a": "b"}


def test_images_without_a_hash_or_already_left_out_are_no_duplicates():
    rows = units(("a", "train", None), ("b", "test", None), ("c", "train", A), ("d", "test", A))
    rows = rows.with_columns(outcome=pl.when(pl.col("id") == "d").then(pl.lit("failed")).otherwise("outcome"))
    assert left_out(leave_out_leaks(rows, 4)) == {}
    assert len(groups(rows, 4)) == 0


def test_groups_hold_what_is_joined_through_others_and_their_distance_to_the_first():
    rows = units(
        ("c", "train", A ^ 0b1110), ("a", "train", A), ("b", "val", A ^ 0b10), ("e", "train", B), ("f", "train", B)
    )
    found = groups(rows, 2)
    assert found.select("group", "id", "bits").rows() == [
        ("a", "a", 0), ("a", "b", 1), ("a", "c", 3), ("e", "e", 0), ("e", "f", 0),
    ]  # fmt: skip


def test_refused_leaks_are_named_with_what_to_do():
    with pytest.raises(
        DataError, match=r"1 image\(s\).*a \(1 bits from b, test\).*near_duplicates: leave_out.*columns.group"
    ):
        refuse_leaks(units(("a", "train", A), ("b", "test", A ^ 1)), 4)
    refuse_leaks(units(("a", "train", A), ("b", "train", A ^ 1)), 4)
