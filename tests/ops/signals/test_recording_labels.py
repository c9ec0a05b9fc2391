"""Labels as numbers, in any type of column."""

import numpy as np
import polars as pl
import pytest

from appssl.ops.signals.recording_labels import Labels


@pytest.mark.parametrize(
    ("series", "names"),
    [
        (pl.Series(["b", " a", None, "", "b "]), ["b", "a", None, None, "b"]),
        (pl.Series([7, 3, None, 7, 0]), ["7", "3", None, "7", "0"]),
        (pl.Series([1.5, float("nan"), None, 1.5]), ["1.5", "NaN", None, "1.5"]),
        (pl.Series([True, None, False]), ["true", None, "false"]),
        (pl.Series(["x", "y", None, "x"], dtype=pl.Categorical), ["x", "y", None, "x"]),
        (pl.Series([None, None], dtype=pl.String), [None, None]),
        (pl.Series([None, None]), [None, None]),
    ],
)
def test_labels_of_any_type_are_numbered(series, names):
    labels = Labels(None, (), "here")
    numbers = labels.add(series, np.arange(len(series)))
    assert numbers.dtype == np.int32
    assert [labels.names[k] if k >= 0 else None for k in numbers.tolist()] == names
    again = labels.add(series[1:], np.arange(1, len(series)))
    np.testing.assert_array_equal(again, numbers[1:])
    assert labels.problems() == []


def test_values_of_one_name_and_values_without_are_told_apart():
    labels = Labels({"1": "walk", "2": "walk", "3": "fly"}, ("walk",), "here")
    numbers = labels.add(pl.Series(["1", "2", "3", "4"]), np.array([5, 6, 7, 8]))
    assert [labels.names[k] for k in numbers.tolist()] == ["walk", "walk", "fly", None]
    assert labels.problems() == [
        "here row(s) 7: label '3' is not in classes. Known: walk.",
        "here row(s) 8: label '4' is not in label_names. Known: 1, 2, 3.",
    ]
