import numpy as np
import polars as pl
import torch

from appssl.samplers.bags import Config, build
from tests.bags import BagData, PlainViews


def made(epoch=0, indices=(0, 1, 2), **values):

    data = BagData(num_bags=4, length=6)
    return data, build(Config(**values), data, PlainViews()).batch(np.array(indices), seed=0, epoch=epoch)


def test_a_batch_holds_whole_bags_with_their_labels():
    data, batch = made()
    assert batch["input"].shape == (3, 6, 4)
    assert batch["mask"].all()
    assert batch["target"].tolist() == [0, 1, 0]
    assert torch.equal(batch["input"][1], torch.as_tensor(data.values[6:12]).float())
    assert batch["index"].tolist() == [0, 6, 12]


def test_a_large_bag_is_seen_by_another_part_in_every_epoch():
    seen = [made(epoch, indices=(1,), tiles_per_bag=2)[1]["input"][0] for epoch in range(8)]
    assert all(len(tiles) == 2 for tiles in seen)
    assert len({tuple(tiles.flatten().tolist()) for tiles in seen}) > 1
    assert torch.equal(seen[3], made(3, indices=(1,), tiles_per_bag=2)[1]["input"][0])


def test_smaller_bags_are_filled_up_where_the_mask_is_false():

    data = BagData(num_bags=2, length=6)
    data.samples = data.samples.head(9)  # bag 1 keeps three rows
    batch = build(Config(), data, PlainViews()).batch(np.array([0, 1]), seed=0, epoch=0)
    assert batch["mask"].sum(1).tolist() == [6, 3]
    assert (batch["input"][1, 3:] == 0).all()


def test_only_the_training_part_is_seen():

    data = BagData(num_bags=4, length=6)
    is_test = pl.col("bag").is_in(["bag0", "bag1"])
    data.samples = data.samples.with_columns(split=pl.when(is_test).then(pl.lit("test")).otherwise("split"))
    assert len(build(Config(), data, PlainViews())) == 2
