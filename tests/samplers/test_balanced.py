import pickle

import numpy as np
import polars as pl
import pytest
import torch

from appssl.errors import DataError
from appssl.samplers.balanced import Config, build
from tests.bags import BagData, PlainViews


def data(sizes=(2, 10, 30)):
    found = BagData(num_bags=1, length=sum(sizes))
    names = [f"slide{n}" for n, size in enumerate(sizes) for _ in range(size)]
    found.samples = found.samples.with_columns(group=pl.Series(names))
    return found


def groups_of(examples, epoch=0):
    rows = examples.batch(np.arange(len(examples)), seed=0, epoch=epoch)["index"].numpy()
    return rows, examples.data.samples["group"].to_numpy()[rows]


def test_every_value_has_an_equal_part_of_an_epoch():
    rows, groups = groups_of(build(Config(), data(), PlainViews()))
    assert len(rows) == 42
    assert {name: int((groups == name).sum()) for name in set(groups)} == {"slide0": 14, "slide1": 14, "slide2": 14}


def test_within_a_value_no_row_comes_again_before_all_have_come():
    rows, groups = groups_of(build(Config(), data(), PlainViews()))
    counts = {name: np.unique(rows[groups == name], return_counts=True)[1] for name in set(groups)}
    assert set(counts["slide0"]) == {7}
    assert set(counts["slide1"]) == {1, 2}
    assert set(counts["slide2"]) == {1}


def test_epochs_differ_and_workers_do_not():
    examples = build(Config(), data(), PlainViews())
    first, again = groups_of(examples)[0], groups_of(pickle.loads(pickle.dumps(examples)))[0]
    assert np.array_equal(first, again)
    assert not np.array_equal(first, groups_of(examples, epoch=1)[0])
    parts = [examples.batch(np.array([k]), seed=0, epoch=0)["index"] for k in range(42)]
    assert torch.cat(parts).tolist() == first.tolist()


def test_another_column_can_be_balanced():
    found = BagData(num_bags=2, length=8)  # 2 positive of 16 rows
    examples = build(Config(by="true_label"), found, PlainViews())
    rows = examples.batch(np.arange(16), seed=0, epoch=0)["index"].numpy()
    assert (found.samples["true_label"].to_numpy()[rows] == "positive").sum() == 8


def test_a_column_that_is_not_there_or_has_gaps_is_refused():
    found = data()
    found.samples = found.samples.rename({"bag": "slide_id"})
    with pytest.raises(DataError, match=r"no column slide_ib.*slide_id"):
        build(Config(by="slide_ib"), found, PlainViews())
    found.samples = found.samples.with_columns(slide_id=pl.lit(None, pl.String))
    with pytest.raises(DataError, match="42 training samples have no slide_id"):
        build(Config(by="slide_id"), found, PlainViews())
