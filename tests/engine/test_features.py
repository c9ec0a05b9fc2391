"""Features of a frozen network: each sample passes it once, also when the computation was killed on the way."""

import multiprocessing
import os
import resource
import time

import numpy as np
import polars as pl
import pytest
import torch
from torch import nn

from appssl.contracts import Meta
from appssl.engine.features import FeatureData, Features, in_place_of
from appssl.engine.loading import embed
from appssl.errors import AppsslError
from appssl.samplers.bags import Config, build
from tests.bags import BagData, PlainViews

HOW = {"threads": 1, "accelerator": "cpu", "workers": 0}


class Data:
    """600 samples, vectors of 4 normal numbers."""

    meta = Meta(source="test", domain="wsi", task="classification", classes=("a", "b"))
    samples = pl.DataFrame({"index": range(600)})
    values = np.random.default_rng(0).normal(size=(600, 4)).astype(np.float32)

    def read(self, row):
        return self.values[row]


class Network(nn.Module):
    """Counts what passes it, and may end in an error after a number of samples, as when it is killed."""

    num_features = 3

    def __init__(self, limit=10_000):
        super().__init__()
        torch.manual_seed(0)
        self.layer, self.passed, self.limit = nn.Linear(4, 3), 0, limit

    def forward(self, x):
        if self.passed + len(x) > self.limit:
            raise KeyboardInterrupt
        self.passed += len(x)
        return self.layer(x).tanh()


def expected(rows):
    return embed(Network(), Data(), rows, PlainViews(), **HOW)


def close(found, wanted):
    np.testing.assert_allclose(found, wanted, atol=1e-6)


def computed(network, rows, file):
    data = FeatureData(Data(), 3)
    data.compute(network, rows, PlainViews(), file, how=HOW)
    return data


def test_rows_are_given_in_the_order_asked_for_and_pass_the_network_once():
    network = Network()
    features = Features(network, Data(), PlainViews(), HOW)
    for rows in (np.array([5, 2, 9]), np.array([9, 9, 1, 5]), np.array([2]), np.arange(300)):
        close(features.of(rows), expected(rows))
    assert network.passed == 300


def test_features_stand_for_samples(tmp_path):
    rows = np.array([7, 3, 500, 7, 0])
    data = computed(network := Network(), rows, tmp_path / "f")
    assert network.passed == 4
    close(data.read_many(rows), expected(rows))
    close(data.read(500), expected(np.array([500]))[0])
    _, views, stand_in = in_place_of(Data(), PlainViews(), network)
    assert (views.input_shape, stand_in.num_features, data.meta, data.samples) == ((3,), 3, Data.meta, Data.samples)
    sample = views.augment(data.read(3), np.random.default_rng(0))
    assert torch.equal(stand_in(sample), torch.from_numpy(np.array(data.read(3))))


def test_a_computation_that_was_killed_goes_on(tmp_path):
    rows, file, killed = np.arange(600), tmp_path / "f", Network(limit=300)
    with pytest.raises(KeyboardInterrupt):
        computed(killed, rows, file)
    assert (killed.passed, file.stat().st_size) == (256, 256 * 3 * 4)  # batches of 256 pass it
    assert np.array_equal(computed(network := Network(), rows, file).read_many(rows), expected(rows))
    assert network.passed == 600 - 256


@pytest.mark.parametrize("bytes_kept", [0, 1, 256 * 12 - 1, 256 * 12 + 5, 599 * 12])
def test_a_batch_that_was_half_written_is_computed_again(tmp_path, bytes_kept):
    rows, file = np.arange(600), tmp_path / "f"
    computed(Network(), rows, file)
    with file.open("r+b") as stream:
        stream.truncate(bytes_kept)
    assert np.array_equal(computed(Network(), rows, file).read_many(rows), expected(rows))


def test_a_finished_file_is_used_as_it_is(tmp_path):
    rows, file = np.arange(600), tmp_path / "f"
    computed(Network(), rows, file)
    assert np.array_equal(computed(network := Network(limit=0), rows, file).read_many(rows), expected(rows))
    assert network.passed == 0


def test_a_full_disk_is_told_with_what_is_needed(tmp_path):
    """The limit of a file's size stands for the disk's."""
    rows, before = np.arange(600), resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (4_000, before[1]))
    try:
        with pytest.raises(AppsslError, match=r"features cannot be written: .*600 samples need 0\.00 GB there; free"):
            computed(Network(), rows, tmp_path / "f")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert np.array_equal(
        computed(Network(), np.arange(600), tmp_path / "f").read_many(np.arange(600)), expected(np.arange(600))
    )


def test_bags_are_made_of_features(tmp_path):
    """Four bags of five tiles; each tile passes the network once, however often its bag is asked for."""
    bags, network = BagData(4, 5), Network()
    data, views, _ = in_place_of(bags, PlainViews(), network)
    examples = build(Config(tiles_per_bag=8), data, views)
    data.compute(network, examples.rows, PlainViews(), tmp_path / "f", how=HOW)
    for epoch in range(3):
        batch = examples.batch(np.array([2, 0]), seed=0, epoch=epoch)
        assert batch["mask"].all()
        wanted = embed(Network(), bags, np.r_[10:15, 0:5], PlainViews(), **HOW).reshape(2, 5, 3)
        close(batch["input"].sort(dim=1).values.numpy(), np.sort(wanted, axis=1))
    assert network.passed == 20


def _compute(file, seconds):
    network = Network()
    network.register_forward_hook(lambda *_: time.sleep(seconds))
    computed(network, np.arange(600), file)
    file.with_name(f"passed-{os.getpid()}").write_text(str(network.passed))


def test_one_of_several_processes_computes_and_the_others_wait(tmp_path):
    context = multiprocessing.get_context("spawn")
    processes = [context.Process(target=_compute, args=(tmp_path / "f", 0.3)) for _ in range(2)]
    for process in processes:
        process.start()
    for process in processes:
        process.join(120)
    assert [process.exitcode for process in processes] == [0, 0]
    assert sorted(int(found.read_text()) for found in tmp_path.glob("passed-*")) == [0, 600]
    assert np.array_equal(np.fromfile(tmp_path / "f", np.float32).reshape(600, 3), expected(np.arange(600)))
