import pickle

import numpy as np
import polars as pl
import pytest
import torch

from appssl.contracts import Context, Meta
from appssl.errors import DataError, SettingsError
from appssl.learners import joint_embedding
from appssl.ops.random import rng_for
from appssl.samplers import uniform
from appssl.samplers.one_mask import Config, build
from appssl.settings import validate
from appssl.views import item_features
from tests.bags import PlainViews

FIELDS = [
    {"name": "a", "start": 0, "length": 1},
    {"name": "b", "start": 1, "length": 2},
    {"name": "c", "start": 3, "length": 1},
    {"name": "d", "start": 4, "length": 1},
]
META = Meta("recsys", "recsys", "ranking", facts={"fields": FIELDS, "vocab_size": 40})


class Items:
    """Items whose field a tells all of d, and b all of c; in the last, of the test part, it is the other way round."""

    meta = META

    def __init__(self, num=40):
        rng = np.random.default_rng(0)
        a, b = rng.integers(0, 5, num), rng.integers(0, 4, num)
        self.tokens = np.stack([1 + a, 6 + b, 20 + b, 10 + b, 30 + a], axis=1)
        self.tokens[num // 2 :, [3, 4]] = np.stack([10 + a, 30 + b], axis=1)[num // 2 :]
        split = ["train"] * (num // 2) + ["test"] * (num - num // 2)
        self.samples = pl.DataFrame({"index": pl.Series(range(num), dtype=pl.Int64), "split": split})

    def read(self, row):
        return self.tokens[row]


def views(**values):
    return item_features.build(validate(item_features.Config, values, file="r.yaml", owner="views/item_features"), META)


def made(data=None, **values):
    return build(Config(), data or Items(), views(**{"masking": "correlated", "dropout": 0.0, **values}))


def hidden(view):
    """Which fields are hidden in all rows; each is hidden in all or none."""
    spans = [view[:, f["start"] : f["start"] + f["length"]] for f in FIELDS]
    assert all(bool((span != 0).all()) or not span.any() for span in spans)
    return tuple(bool((span == 0).all()) for span in spans)


def test_all_items_of_a_batch_hide_what_a_seed_feature_and_its_nearest_say():
    sampler = made()
    found = {hidden(sampler.batch(np.arange(6), seed=0, epoch=epoch)["views"][0]) for epoch in range(40)}
    # n = floor(4 / 2) = 2 beside the seed: the one that tells all of it, and the more informative of the others
    assert len(found) >= 2
    for first in found:
        assert sum(first) == 3
        assert (first[0] and first[3]) or (first[1] and first[2])
    for epoch in range(10):
        one, two = sampler.batch(np.arange(6), seed=0, epoch=epoch)["views"]
        assert [a != b for a, b in zip(hidden(one), hidden(two), strict=True)] == [True] * 4


def test_information_is_that_of_the_training_items():
    nearest = made().masks.nearest
    assert nearest[[0, 1, 2, 3], 0].tolist() == [3, 2, 1, 0]
    swapped = Items()
    swapped.samples = swapped.samples.with_columns(split=pl.lit("train"))
    swapped.tokens = np.concatenate([swapped.tokens[20:], swapped.tokens[20:]])
    assert made(swapped).masks.nearest[[0, 1, 2, 3], 0].tolist() == [2, 3, 0, 1]


@pytest.mark.parametrize("masking", ["correlated", "random", "none"])
def test_a_batch_is_a_function_of_seed_epoch_and_its_first_item(masking):
    sampler = made(masking=masking, dropout=0.3)
    again = pickle.loads(pickle.dumps(sampler))
    indices = np.array([7, 3, 11, 0])
    one, two = (s.batch(indices, seed=3, epoch=2) for s in (sampler, again))
    assert one["index"].tolist() == [7, 3, 11, 0]
    assert all(torch.equal(a, b) for a, b in zip(one["views"], two["views"], strict=True))
    expected = sampler.masks.views(Items().tokens[indices], rng_for(3, 2, 2**62 + 7))
    assert all((a.numpy() == b).all() for a, b in zip(one["views"], expected, strict=True))


def test_masks_vary_with_epoch_seed_and_batch():
    sampler = made(masking="random")

    def masks(seed=0, epoch=0):
        return [hidden(sampler.batch(np.array([n, 1]), seed=seed, epoch=epoch)["views"][0]) for n in range(15)]

    assert masks() == masks()
    assert masks() != masks(epoch=1)
    assert masks() != masks(seed=1)
    assert len(set(masks())) > 1


def test_only_training_items_once_an_epoch():
    sampler = made()
    assert len(sampler) == 20
    assert sorted(sampler.batch(np.arange(20), seed=0, epoch=0)["index"].tolist()) == list(range(20))


def test_its_batches_are_what_pretraining_learns_from():
    torch.manual_seed(0)
    backbone = torch.nn.EmbeddingBag(41, 8)
    backbone.num_features = 8
    config = validate(joint_embedding.Config, {"objective": "one_way_ntxent"}, file="r.yaml", owner="learner")
    learner = joint_embedding.build(config, Context(META, backbone, (5,), num_samples=20, num_views=2))
    step = learner(made().batch(np.arange(8), seed=0, epoch=0))
    step.loss.backward()
    assert float(backbone.weight.grad.abs().sum()) > 0


def test_errors_other_views_no_sampler_and_a_single_feature():
    with pytest.raises(SettingsError, match="one_mask draws the masks of views item_features"):
        build(Config(), Items(), PlainViews())
    with pytest.raises(SettingsError, match=r"set pretrain\.sampler to one_mask, or masking to random"):
        uniform.build(uniform.Config(), Items(), views(masking="correlated")).batch(np.arange(1), seed=0, epoch=0)
    one = Meta("recsys", "recsys", "ranking", facts={"fields": FIELDS[:1]})
    with pytest.raises(DataError, match="needs two or more features; the items have one"):
        item_features.build(item_features.Config(masking="correlated"), one)
    nothing = Items()
    nothing.samples = nothing.samples.with_columns(split=pl.lit("test"))
    with pytest.raises(DataError, match="no training samples"):
        made(nothing)
