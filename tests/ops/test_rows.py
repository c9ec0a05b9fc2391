import numpy as np
import polars as pl
import pytest
import torch

from appssl.errors import DataError
from appssl.ops.random import rng_for
from appssl.ops.rows import batch_of_views, raw_samples, training_rows
from tests.bags import BagData, PlainViews


def samples(*splits):
    return pl.DataFrame({"index": range(len(splits)), "split": splits}, schema_overrides={"split": pl.String})


def test_training_rows_are_those_of_the_training_part_labelled_or_not():
    found = training_rows(samples("train", "test", "train", "val"))
    assert found.tolist() == [0, 2]
    assert found.dtype == "int64"


def test_without_training_rows_nothing_can_be_learned():
    with pytest.raises(DataError, match="no training samples"):
        training_rows(samples("test"))


def test_views_depend_on_seed_epoch_and_row_only():
    data, views = BagData(num_bags=2, length=8), PlainViews()
    batch = batch_of_views(data, np.array([9, 4]), views, seed=5, epoch=3)
    assert batch["index"].tolist() == [9, 4]
    expected = views.views(data.read(9), rng_for(5, 3, 9))
    assert all(torch.equal(view[0], alone) for view, alone in zip(batch["views"], expected, strict=True))
    other = batch_of_views(data, np.array([9, 4]), views, seed=5, epoch=4)
    assert not torch.equal(batch["views"][0], other["views"][0])


def test_rows_are_read_in_the_order_of_the_data_and_stay_in_that_of_the_batch():
    data, views, read = BagData(num_bags=2, length=8), PlainViews(), []
    plain = data.read
    data.read = lambda row: read.append(row) or plain(row)
    batch = batch_of_views(data, np.array([9, 4, 12, 4]), views, seed=5, epoch=3)
    assert read == [4, 4, 9, 12]
    for place, row in enumerate((9, 4, 12, 4)):
        assert torch.equal(batch["views"][0][place], views.views(plain(row), rng_for(5, 3, row))[0])


def test_samples_are_read_at_once_where_the_data_can():
    data = BagData(num_bags=2, length=8)
    one_by_one = list(raw_samples(data, np.array([9, 4])))
    assert len(one_by_one) == 2
    asked = []
    data.read_many = lambda rows: asked.append(rows.tolist()) or np.stack([data.read(int(row)) for row in rows])
    for sample, alone in zip(raw_samples(data, np.array([9, 4])), one_by_one, strict=True):
        np.testing.assert_array_equal(sample, alone)
    assert asked == [[9, 4]]
