import numpy as np
import polars as pl
import torch

from appssl.samplers.uniform import Config, build
from tests.bags import BagData, PlainViews


def test_every_training_row_is_an_example_once():

    data = BagData(num_bags=4, length=6)
    data.samples = data.samples.with_columns(
        split=pl.when(pl.col("bag") == "bag1").then(pl.lit("test")).otherwise("split")
    )
    found = build(Config(), data, PlainViews())
    seen = found.batch(np.arange(len(found)), seed=0, epoch=0)["index"]
    assert seen.tolist() == [*range(6), *range(12, 24)]


def test_a_batch_is_a_function_of_its_arguments():
    found = build(Config(), BagData(num_bags=2, length=6), PlainViews())
    one, two = (found.batch(np.array([3, 1]), seed=2, epoch=1) for _ in range(2))
    assert all(map(torch.equal, one["views"], two["views"]))
