import itertools

import numpy as np
import polars as pl
import pytest
import torch
from torch import nn

from appssl.contracts import Meta
from appssl.engine.loading import LabelledExamples, Order, batches, device_of, embed, make_batch, plain_batches
from appssl.errors import DataError, SettingsError
from appssl.ops.random import permutation, rng_for

META = Meta(source="test", domain="wsi", task="classification", classes=("a", "b", "c"))


class Data:
    """Sample n is the vector (n, n + 0.5)."""

    meta = META
    samples = pl.DataFrame({"index": range(20)})

    def read(self, row):
        return np.array([row, row + 0.5], dtype=np.float32)


class Views:
    """Views add noise, `augment` less of it, `plain` none."""

    num_views, input_shape = 3, (2,)

    def views(self, sample, rng):
        return [torch.from_numpy(sample + rng.standard_normal(2).astype(np.float32)) for _ in range(3)]

    def augment(self, sample, rng):
        return torch.from_numpy(sample + 0.1 * rng.standard_normal(2).astype(np.float32))

    def plain(self, sample):
        return torch.from_numpy(sample)


ROWS = np.array([4, 7, 9, 2, 11, 5, 0, 19])


def labelled():
    targets = np.array([0, 2, 2, 0, 2, 2, 0, 2])
    return LabelledExamples(Data(), ROWS, Views(), targets=targets, weights=np.linspace(0, 1, 8, dtype=np.float32))


def equal(one, two):
    if isinstance(one, dict):
        return one.keys() == two.keys() and all(equal(one[k], two[k]) for k in one)
    return all(map(torch.equal, one, two)) if isinstance(one, list) else torch.equal(one, two)


def test_labelled_examples_bring_target_and_weight_of_their_row():
    batch = labelled().batch(np.array([1, 6]), seed=0, epoch=0)
    assert batch["index"].tolist() == [7, 0]
    assert (batch["target"].tolist(), batch["target"].dtype) == ([2, 0], torch.int64)
    assert batch["weight"].tolist() == pytest.approx([1 / 7, 6 / 7])
    assert torch.equal(batch["input"][0], Views().augment(Data().read(7), rng_for(0, 0, 7)))


def test_class_counts_are_sums_of_weights_with_a_place_for_absent_classes():
    counts = labelled().facts["class_counts"]
    assert counts == pytest.approx([(0 + 3 + 6) / 7, 0, (1 + 2 + 4 + 5 + 7) / 7])


def test_an_epoch_is_a_permutation_cut_into_batches_and_its_rest_is_dropped():
    order = Order(num_examples=11, batch_size=4, seed=1)
    assert order.steps_per_epoch == 2
    for epoch in range(3):
        seen = np.concatenate([order.indices(2 * epoch + k, 0) for k in range(2)])
        assert seen.tolist() == permutation(1, epoch, 11)[:8].tolist()
        assert (order.epoch(2 * epoch), order.epoch(2 * epoch + 1)) == (epoch, epoch)


def test_epochs_and_seeds_have_orders_of_their_own():
    firsts = [tuple(Order(1000, 100, seed).indices(step, 0)) for seed in (0, 1) for step in (0, 10)]
    assert len(set(firsts)) == 4


@pytest.mark.parametrize(("world", "accumulate"), [(1, 4), (2, 1), (2, 2), (4, 1)])
def test_devices_and_micro_batches_divide_the_same_batch(world, accumulate):
    whole = Order(32, 8, 7)
    for step in range(6):
        parts = [
            Order(32, 8, 7, accumulate, rank, world).indices(step, micro)
            for rank in range(world)
            for micro in range(accumulate)
        ]
        assert {len(part) for part in parts} == {8 // world // accumulate}
        assert np.concatenate(parts).tolist() == whole.indices(step, 0).tolist()


def test_indices_can_be_changed_without_changing_the_order():
    order = Order(32, 8, 7)
    before = order.indices(0, 0)
    order.indices(0, 0)[:] = 0
    assert order.indices(0, 0).tolist() == before.tolist()


def test_wrong_batch_sizes_say_what_to_set():
    with pytest.raises(DataError, match=r"batch_size is 9, but there are only 8 .* Set fit.batch_size to at most 8"):
        Order(8, 9, 0)
    with pytest.raises(DataError, match=r"8 does not divide into 3 device\(s\) times fit.accumulate 1"):
        Order(8, 8, 0, 1, 0, 3)


@pytest.mark.parametrize("workers", [0, 2])
def test_batches_come_in_order_from_any_step_for_any_number_of_workers(workers):
    examples, order = labelled(), Order(8, 4, seed=3, accumulate=2)
    found = list(batches(examples, order, start=3, stop=7, workers=workers, pin=False))
    expected = [make_batch(examples, order, step, micro) for step, micro in itertools.product(range(3, 7), range(2))]
    assert len(found) == 8
    assert all(map(equal, found, expected))


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("size", [3, 8, 100])
def test_plain_batches_are_all_examples_in_order_without_chance(workers, size):
    found = list(plain_batches(labelled(), size, workers=workers, pin=False))
    assert [len(batch["index"]) for batch in found] == {3: [3, 3, 2], 8: [8], 100: [8]}[size]
    whole = {key: torch.cat([batch[key] for batch in found]) for key in found[0]}
    expected = {
        "index": torch.from_numpy(ROWS),
        "input": torch.stack([Views().plain(Data().read(row)) for row in ROWS]),
        "target": torch.tensor([0, 2, 2, 0, 2, 2, 0, 2]),
    }
    assert equal(whole, expected)


def test_loading_draws_no_random_numbers_of_the_training():
    torch.manual_seed(0)
    expected = torch.rand(3)
    torch.manual_seed(0)
    list(batches(labelled(), Order(8, 4, seed=3), start=0, stop=4, workers=0, pin=False))
    assert torch.equal(torch.rand(3), expected)


def network():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(2, 5), nn.Dropout(0.5), nn.BatchNorm1d(5))


@pytest.mark.parametrize("batch_size", [1, 3, 256])
def test_embedding_equals_the_network_on_plain_views_whatever_the_batch(batch_size):
    model = network()
    found = embed(model, Data(), ROWS, Views(), batch_size=batch_size, threads=1, accelerator="cpu")
    expected = model.eval()(torch.stack([torch.from_numpy(Data().read(row)) for row in ROWS]))
    assert found.dtype == np.float32
    np.testing.assert_allclose(found, expected.detach().numpy(), rtol=1e-6)


def test_workers_embed_the_same():
    alone, helped = (
        embed(network(), Data(), ROWS, Views(), batch_size=3, threads=1, accelerator="cpu", workers=workers)
        for workers in (0, 2)
    )
    assert np.array_equal(alone, helped)


def test_nothing_to_embed_is_an_error():
    with pytest.raises(DataError, match="no rows to embed"):
        embed(network(), Data(), ROWS[:0], Views(), threads=1, accelerator="cpu")


def test_a_device_is_one_that_is_here(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert device_of("auto") == device_of("cpu") == torch.device("cpu")
    for name in ("cuda", "gpu"):
        with pytest.raises(DataError, match=r"no CUDA device is visible here; 'appssl doctor' says"):
            device_of(name)
    with pytest.raises(SettingsError, match=r"--accelerator cudda: no such device\. Did you mean cuda\?"):
        device_of("cudda")
