import numpy as np
import polars as pl

from appssl.ops.per_sample import from_columns, to_columns

CLASSES = ("a", "b c", "\u00e9")
VALUES = {"votes": np.array([2, 0, 1, 1]), "share": np.array([0.0, 0.25, 1.0, 0.5])}


def test_what_is_written_comes_back_and_classes_have_their_names():
    table = pl.DataFrame(to_columns(VALUES, CLASSES))
    assert table["votes"].to_list() == ["\u00e9", "a", "b c", "b c"]
    found = from_columns(table, ["share", "votes", "unknown"], CLASSES)
    assert list(found) == ["share", "votes"]
    for name, values in found.items():
        assert values.dtype == VALUES[name].dtype
        assert values.tolist() == VALUES[name].tolist()


def test_a_column_with_gaps_is_none():
    table = pl.concat([pl.DataFrame(to_columns(VALUES, CLASSES)), pl.DataFrame({"share": [1.0]})], how="diagonal")
    assert list(from_columns(table, VALUES, CLASSES)) == ["share"]
