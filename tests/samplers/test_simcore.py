import pickle

import numpy as np
import polars as pl
import pytest
import torch
from sklearn.datasets import load_digits, load_sample_image
from sklearn.decomposition import PCA

from appssl.contracts import Meta
from appssl.errors import DataError
from appssl.ops.coreset import centroids, search, unit
from appssl.samplers.simcore import Config, build


class Images:
    """Small gray images as data and views in one."""

    num_views, input_shape = 2, (1, 8, 8)

    def __init__(self, images, origin, splits=None):
        self.images = np.asarray(images, np.float32)
        self.meta = Meta("test", "webnoisy", "classification")
        index = pl.Series(range(len(images)), dtype=pl.Int64)
        splits = splits or ["train"] * len(images)
        self.samples = pl.DataFrame({"index": index, "origin": pl.Series(origin, dtype=pl.String), "split": splits})

    def read(self, row):
        return self.images[row]

    def plain(self, sample):
        return torch.from_numpy(sample)[None]

    def views(self, sample, rng):
        return [self.plain(sample + rng.normal(size=sample.shape).astype(np.float32)) for _ in range(2)]


def noise(num=60, targets=20, seed=0, side=8):
    images = np.random.default_rng(seed).normal(size=(num, side, side))
    return Images(images, ["input"] * targets + ["mix"] * (num - targets))


def digits_and_textures(seed):
    """200 digits of three classes as targets; all other digits and patches of two photographs as the open set."""
    rng = np.random.default_rng(seed)
    images, own = load_digits(return_X_y=True)
    photos = [load_sample_image(name).mean(axis=2) / 16 for name in ("china.jpg", "flower.jpg")]
    corners = rng.integers(0, 400, (3000, 2))
    patches = [photos[n % 2][top : top + 8, left : left + 8] for n, (top, left) in enumerate(corners)]
    classes = rng.choice(10, 3, replace=False)
    targets = rng.permutation(np.flatnonzero(np.isin(own, classes)))[:200]
    everything = np.concatenate([images.reshape(-1, 8, 8), patches])
    origin = np.where(np.isin(np.arange(len(everything)), targets), "input", "mix").tolist()
    return Images(everything, origin), np.isin(own, classes)


def test_the_coreset_is_the_search_on_components_of_the_targets():
    both = noise()
    made = build(Config(num_components=5, num_centroids=6, stop_ratio=0.8, reference_round=2), both, both)
    flat = both.images.reshape(60, -1)
    space = PCA(5, svd_solver="full").fit(flat[:20])
    features = unit(space.transform(flat))
    found = search(centroids(features[:20], 6), features[20:], budget=1000, stop_ratio=0.8, reference_round=2)
    assert 6 < len(found.rows) < 40
    assert made.rows.tolist() == [*range(20), *(20 + found.rows)]
    assert made.coreset.objective == pytest.approx(found.objective, abs=1e-4)


@pytest.mark.parametrize("seed", [0, 1])
def test_of_digits_and_textures_it_chooses_digits_of_the_target_classes(seed):
    both, is_alike = digits_and_textures(seed)
    made = build(Config(num_centroids=20), both, both)
    added = np.setdiff1d(made.rows, made.targets)
    alike = np.zeros(len(both.images), bool)
    alike[: len(is_alike)] = is_alike
    random_rate = alike[both.samples["origin"].to_numpy() == "mix"].mean()
    assert made.coreset.reason == "similarity"
    assert len(added) >= 20
    assert alike[added].mean() >= max(0.8, 10 * random_rate)  # margins of the published protocol in small


def test_images_are_shrunk_by_means_of_equal_areas():
    both = noise(num=30, targets=10, side=8)
    small = Images(both.images.reshape(30, 4, 2, 4, 2).mean(axis=(2, 4)), both.samples["origin"].to_list())
    how = {"num_components": 4, "num_centroids": 3, "stop_ratio": 0.0, "budget": 0.8}
    assert build(Config(**how, side=4), both, both).rows.tolist() == build(Config(**how), small, small).rows.tolist()


def test_an_epoch_is_all_targets_and_the_coreset_and_nothing_else():
    both = noise()
    made = build(Config(num_centroids=6, budget=0.5, stop_ratio=0.0), both, both)
    assert (len(made), made.coreset.reason) == (30, "budget")
    assert made.targets.tolist() == list(range(20))
    batch = made.batch(np.arange(30), seed=0, epoch=0)
    assert batch["index"].tolist() == made.rows.tolist()
    assert sorted(set(made.rows.tolist())) == made.rows.tolist()
    assert [view.shape for view in batch["views"]] == [(30, 1, 8, 8)] * 2
    again = pickle.loads(pickle.dumps(made)).batch(np.arange(30), seed=0, epoch=0)
    assert torch.equal(again["views"][1], batch["views"][1])


def test_as_many_at_random_to_compare_with():
    both, is_alike = digits_and_textures(0)
    nearest, drawn = (build(Config(num_centroids=20, choose=how), both, both) for how in ("nearest", "random"))
    assert len(nearest) == len(drawn)
    assert set(drawn.targets.tolist()) <= set(drawn.rows.tolist())
    added = np.setdiff1d(drawn.rows, drawn.targets)
    assert np.isin(added, np.flatnonzero(is_alike)).mean() < 0.3


def test_other_columns_and_rows_without_a_value():
    both = noise(num=40)
    both.samples = both.samples.with_columns(
        label=pl.Series(["a", "b", None, None] * 10), split=pl.Series(["train"] * 36 + ["test"] * 4)
    )
    any_label = build(Config(column="label", target=(), num_centroids=5, stop_ratio=0.0), both, both)
    assert any_label.targets.tolist() == [row for row in range(36) if row % 4 < 2]
    assert len(any_label) == 36  # the open set is used up, test rows are left alone
    one = build(Config(column="label", target=("a",), num_centroids=5), both, both)
    assert one.targets.tolist() == list(range(0, 36, 4))


def test_a_wrong_division_is_refused_with_the_values_there_are():
    both = noise()
    with pytest.raises(DataError, match=r"no column orign\. Did you mean origin\?"):
        build(Config(column="orign"), both, both)
    with pytest.raises(DataError, match=r"none of 60 training samples are targets.*has the values input, mix"):
        build(Config(target=("web",)), both, both)
    with pytest.raises(DataError, match="all of 60 training samples are targets"):
        build(Config(target=()), both, both)
