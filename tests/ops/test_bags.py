import numpy as np
import polars as pl
import pytest

from appssl.errors import DataError
from appssl.ops.bags import index_bags, some
from tests.bags import CLASSES, BagData

FACTS = {"bag": "bag"}


def test_bags_hold_their_rows_labels_and_groups():
    data = BagData(num_bags=3, length=4)
    bags = index_bags(data.samples.sample(fraction=1.0, shuffle=True, seed=1), FACTS, CLASSES)
    assert list(bags.names) == ["bag0", "bag1", "bag2"]
    assert bags.targets.tolist() == [0, 1, 0]
    assert list(bags.groups) == ["patient0", "patient0", "patient1"]
    assert bags.of(1).tolist() == [4, 5, 6, 7]
    assert bags.bag_of_position.tolist() == [0] * 4 + [1] * 4 + [2] * 4


def test_rows_without_label_are_in_no_bag():
    samples = BagData(num_bags=2, length=3).samples
    samples = samples.with_columns(label=pl.when(pl.col("index") > 0).then("label"))
    assert index_bags(samples, FACTS, CLASSES).of(0).tolist() == [1, 2]


def test_a_bag_with_two_labels_or_two_patients_is_refused_by_name():
    samples = BagData(num_bags=2, length=3).samples
    mixed = samples.with_columns(
        label=pl.when(pl.col("index") == 0).then(pl.lit("positive")).otherwise("label"),
        group=pl.when(pl.col("index") == 4).then(pl.lit("other")).otherwise("group"),
    )
    with pytest.raises(DataError, match=r"'bag0' has labels negative, positive.*'bag1' has groups other, patient0"):
        index_bags(mixed, FACTS, CLASSES)


def test_data_without_bags_or_labels_is_refused():
    samples = BagData(num_bags=2, length=3).samples
    with pytest.raises(DataError, match="slide_labels"):
        index_bags(samples, {}, CLASSES)
    with pytest.raises(DataError, match="no bag of this part has a label"):
        index_bags(samples.with_columns(label=pl.lit(None, pl.String)), FACTS, CLASSES)


def test_some_rows_are_drawn_once_each_and_keep_their_order():
    rows, rng = np.arange(100, 120), np.random.default_rng(0)
    found = some(rows, 7, rng)
    assert len(set(found.tolist())) == 7
    assert (np.diff(found) > 0).all()
    assert some(rows, 20, rng) is rows
