import pickle

import numpy as np
import polars as pl
import pytest
import torch

from appssl.contracts import Meta
from appssl.errors import DataError
from appssl.ops.rows import rendered
from appssl.samplers.g_simclr import Config, GuidedBatches, build, collisions, dealt_batches, guided_batches

LABELS = np.array([0, 0, 1, 2, 1, 0, 2, 1, 0])


class Images:
    """Small images of four colors as data and views in one; `plain` has values beyond 0..1."""

    num_views, input_shape = 2, (3, 8, 8)

    def __init__(self, num=96, splits=None):
        rng = np.random.default_rng(0)
        self.color = np.arange(num) % 4
        colors = np.array([[1, 0, 0], [0, 1, 0], [0, 0, 1], [1, 1, 1]], np.float32)
        self.images = 4 * colors[self.color][:, :, None, None] - 2 + 0.1 * rng.normal(size=(num, 3, 8, 8))
        index = pl.Series(range(num), dtype=pl.Int64)
        self.samples = pl.DataFrame({"index": index, "split": splits or ["train"] * num})
        self.meta = Meta("test", "webnoisy", "classification")

    def read(self, row):
        return self.images[row].astype(np.float32)

    def plain(self, sample):
        return torch.from_numpy(sample)

    def views(self, sample, rng):
        return [self.plain(sample + rng.normal(size=sample.shape).astype(np.float32)) for _ in range(2)]


def examples(labels, size, **values):
    data = Images(len(labels))
    return GuidedBatches(Config(images=size, **values), data, data, np.arange(len(labels)), np.asarray(labels))


def literal_guided(labels, size):
    seen, ranked = {}, []
    for i, c in enumerate(labels):
        seen[c] = seen.get(c, 0) + 1
        ranked.append((seen[c], c, i))
    order = [i for _, _, i in sorted(ranked)]
    return [order[start : start + size] for start in range(0, len(order) - size + 1, size)]


def epoch_of(made, epoch=0, seed=0):
    return [made.batch(np.array([n]), seed=seed, epoch=epoch)["index"].tolist() for n in range(len(made))]


@pytest.mark.parametrize("size", [2, 5, 16])
def test_guided_batches_equal_the_order_written_out(size):
    labels = np.random.default_rng(size).integers(0, 7, 103)
    assert guided_batches(labels, size).tolist() == literal_guided(labels.tolist(), size)


def test_worked_number():
    found = guided_batches(LABELS, 3)
    assert found.reshape(-1).tolist() == [0, 2, 3, 1, 4, 6, 5, 7, 8]
    assert [collisions(LABELS[batch]) for batch in found] == [0, 0, 1]
    assert collisions(np.array([4, 4, 4, 1, 1, 0])) == 3 + 1


def test_clusters_of_equal_size_never_meet():
    labels = np.random.default_rng(0).permutation(np.repeat(np.arange(16), 10))
    for compose in ("ranks", "deal"):
        made = examples(labels, 16, compose=compose)
        assert made.collisions(seed=0, epoch=3).tolist() == [0] * 10
    random = [collisions(batch) for batch in np.random.default_rng(1).integers(0, 64, (4000, 64))]
    assert np.mean(random) == pytest.approx(31.5, abs=0.5)  # of a random batch: 64 * 63 / 2 / 64


def test_dealing_spreads_pairs_evenly_where_ranks_pile_them_up():
    labels = np.random.default_rng(0).choice(16, 800, p=np.random.default_rng(1).dirichlet(np.full(16, 2.0)))
    ranks, dealt = (
        np.array([collisions(labels[b]) for b in how(labels, 16)]) for how in (guided_batches, dealt_batches)
    )
    assert dealt.max() < ranks.max()
    assert dealt.sum() < ranks.sum()
    fits = np.repeat(np.arange(40), [20] * 20 + [10] * 20)  # no cluster is larger than the number of batches
    assert [collisions(fits[batch]) for batch in dealt_batches(fits, 30)] == [0] * 20


@pytest.mark.parametrize("compose", ["ranks", "deal"])
def test_no_image_comes_twice_in_an_epoch_and_the_last_incomplete_batch_is_left_out(compose):
    labels = np.random.default_rng(0).integers(0, 5, 38)
    made = examples(labels, 6, compose=compose)
    batches = epoch_of(made)
    assert [len(batch) for batch in batches] == [6] * 6
    assert len({row for batch in batches for row in batch}) == 36
    assert made.collisions(seed=0, epoch=0).tolist() == [collisions(labels[batch]) for batch in batches]


def test_ranks_are_new_in_every_epoch_unless_they_are_fixed():
    labels = np.random.default_rng(0).integers(0, 5, 40)
    made, fixed = examples(labels, 5), examples(labels, 5, reshuffle=False)
    assert epoch_of(made) == epoch_of(pickle.loads(pickle.dumps(made)))
    assert epoch_of(made) != epoch_of(made, epoch=1)
    assert epoch_of(made) != epoch_of(made, seed=1)
    assert epoch_of(fixed) == epoch_of(fixed, epoch=1, seed=1) == literal_guided(labels.tolist(), 5)


def test_batches_of_a_step_are_told_apart_and_views_are_drawn_anew():
    made = examples(LABELS, 3, reshuffle=False)
    batch = rendered(made.batch(np.array([2, 0]), seed=0, epoch=0))
    assert batch["block"].tolist() == [0, 0, 0, 1, 1, 1]
    assert batch["index"].tolist() == [5, 7, 8, 0, 2, 3]
    assert [view.shape for view in batch["views"]] == [(6, 3, 8, 8)] * 2
    assert not torch.equal(batch["views"][0], rendered(made.batch(np.array([2, 0]), seed=0, epoch=1))["views"][0])


HOW = {"images": 4, "widths": (4, 8), "epochs": 3, "threads": 1}


def test_images_that_look_alike_are_kept_apart():
    data = Images()
    made = build(Config(**HOW), data, data)
    pairs = {(color, cluster) for color, cluster in zip(data.color, made.clusters, strict=True)}
    assert len(pairs) == 4  # the clusters are the colors
    for epoch in range(2):
        for batch in epoch_of(made, epoch):
            assert sorted(data.color[batch]) == [0, 1, 2, 3]


def test_only_training_images_are_in_batches_and_building_twice_is_the_same():
    data = Images(96, splits=["train"] * 48 + ["test"] * 48)
    torch.manual_seed(5)
    before = torch.get_rng_state()
    made = build(Config(**HOW), data, data)
    assert torch.equal(torch.get_rng_state(), before)
    assert {row for batch in epoch_of(made) for row in batch} == set(range(48))
    assert (made.clusters == build(Config(**HOW), data, data).clusters).all()
    assert len(set(build(Config(**HOW, num_clusters=7), data, data).clusters)) == 7


def test_too_few_images_and_other_data_are_refused():
    data = Images(10)
    with pytest.raises(DataError, match=r"10 training samples for batches of 4 and 11 clusters\. Set sampler\.images"):
        build(Config(images=4, num_clusters=11), data, data)
    signals = Images(20)
    signals.images = signals.images[:, :, 0]
    with pytest.raises(DataError, match=r"needs images \(C, H, W\); these views have shape \(3, 8\)"):
        build(Config(**HOW), signals, signals)
