import pickle

import numpy as np
import polars as pl
import pytest
import torch

from appssl.contracts import Meta
from appssl.errors import DataError
from appssl.ops.mmd import mmd2
from appssl.samplers.one_person import Config, build
from tests.bags import BagData, PlainViews


def data(sizes=(7, 20, 3)):
    found = BagData(num_bags=1, length=sum(sizes))
    names = [f"person{n}" for n, size in enumerate(sizes) for _ in range(size)]
    found.samples = found.samples.with_columns(group=pl.Series(names))
    return found


def epoch_of(examples, epoch=0, seed=0):
    return [examples.batch(np.array([n]), seed=seed, epoch=epoch)["index"].tolist() for n in range(len(examples))]


def test_every_window_is_once_in_an_epoch_and_a_block_is_of_one_person():
    examples = build(Config(windows=8), data(), PlainViews())
    blocks = epoch_of(examples)
    assert [len(block) for block in blocks] == [7, 7, 7, 6, 3]
    assert sorted(row for block in blocks for row in block) == list(range(30))
    groups = examples.data.samples["group"].to_numpy()
    assert all(len(set(groups[block])) == 1 for block in blocks)


def test_blocks_of_a_step_are_told_apart():
    batch = build(Config(windows=8), data(), PlainViews()).batch(np.array([4, 0]), seed=0, epoch=0)
    assert batch["block"].tolist() == [0] * 3 + [1] * 7
    assert len(batch["index"]) == 10
    assert len(batch["views"][0]) == 10


def test_orders_differ_with_epoch_and_seed_and_not_with_workers():
    examples = build(Config(windows=8), data(), PlainViews())
    first = epoch_of(examples)
    assert epoch_of(pickle.loads(pickle.dumps(examples))) == first
    assert epoch_of(examples, epoch=1) != first
    assert epoch_of(examples, seed=1) != first


class Devices:
    """Windows of three devices, and the devices as views."""

    num_views, input_shape = 3, (3, 10)

    def __init__(self):
        facts = {"channels": ["acc_x", "acc_y", "acc_z"], "devices": ["a", "b", "c"]}
        self.meta = Meta("test", "wearable", "classification", facts=facts)
        rows = {"index": range(9), "group": ["p"] * 5 + ["q"] * 4, "split": ["train"] * 9}
        self.samples = pl.DataFrame(rows, schema_overrides={"index": pl.Int64})
        self.signal = np.random.default_rng(0).standard_normal((9, 3, 3, 10)) + np.arange(3)[:, None, None]

    def read(self, row):
        return self.signal[row].astype(np.float32)

    def views(self, sample, rng):
        return list(torch.from_numpy(sample))


def test_discrepancies_of_devices_are_means_over_blocks():
    both = Devices()
    found = build(Config(windows=3, device_distances=True), both, both).facts["device_distances"]
    norms = torch.from_numpy(np.linalg.norm(both.signal, axis=2)).float()  # (rows, devices, time)
    blocks = [[0, 1, 2], [3, 4], [5, 6], [7, 8]]
    for a in range(3):
        for b in range(3):
            each = [float(mmd2(norms[rows, a], norms[rows, b][None])) for rows in blocks]
            assert found[a][b] == pytest.approx(np.mean(each), rel=1e-5)
    assert build(Config(windows=3), both, both).facts == {}


def test_a_person_with_one_window_is_refused():
    with pytest.raises(DataError, match="person2 has a single training window"):
        build(Config(), data((5, 5, 1)), PlainViews())
