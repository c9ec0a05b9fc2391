import pickle

import numpy as np
import polars as pl
import pytest
import torch

from appssl.contracts import Meta
from appssl.errors import DataError, SettingsError
from appssl.ops.rows import rendered
from appssl.samplers import uniform
from appssl.samplers.bss import Config, build
from appssl.settings import validate
from appssl.views import image_two_crop, multi_crop
from tests.bags import BagData, PlainViews

FACTS = {"size_px": 16, "rgb_mean": [0.5, 0.4, 0.3], "rgb_std": [0.2, 0.25, 0.3]}
META = Meta("test", "webnoisy", "classification", ("a",), facts=FACTS)
MEAN, STD = (torch.tensor(FACTS[name])[:, None, None] for name in ("rgb_mean", "rgb_std"))
STILL = {"scale": [1.0, 1.0], "flip": 0.0, "jitter": 0.0, "grey": 0.0}


class Images:
    """Images of 16 pixels without black or white, so that nothing is cut off; the last are of the test part."""

    def __init__(self, num=20, *, same=False):
        rng = np.random.default_rng(0)
        self.images = np.clip(rng.normal(rng.uniform(90, 160, (num, 1, 1, 3)), 8, (num, 16, 16, 3)), 60, 190)
        self.images = self.images[[0] * num if same else range(num)].astype(np.uint8)
        index = pl.Series(range(num), dtype=pl.Int64)
        self.samples = pl.DataFrame(
            {"index": index, "split": ["train"] * (num - 2) + ["test"] * 2, "group": ["g"] * num}
        )
        self.meta = META

    def read(self, row):
        return self.images[row]


def made(data=None, views=None, **values):
    config = validate(Config, values, file="r.yaml", owner="samplers/bss")
    return build(config, data or Images(), views or crops())


def crops(**values):
    config = validate(image_two_crop.Config, {**STILL, **values}, file="r.yaml", owner="views/image_two_crop")
    return image_two_crop.build(config, META)


def shown(view):
    """In 0..1."""
    return view * STD + MEAN


def batch_of(sampler, indices=range(8), seed=0, epoch=0):
    return rendered(sampler.batch(np.array(indices), seed=seed, epoch=epoch))


def test_all_images_of_a_view_get_the_amplitudes_of_one_and_keep_their_phases():
    plain = batch_of(uniform.build(uniform.Config(), Images(), crops()))
    found = batch_of(made(area=[1.0, 1.0]))
    assert torch.equal(found["index"], plain["index"])
    styles = []
    for before, after in zip(plain["views"], found["views"], strict=True):
        old, new = (torch.fft.fft2(shown(view).double()) for view in (before, after))
        (style,) = [n for n in range(8) if torch.allclose(new.abs(), old[n].abs().expand_as(new.abs()), atol=1e-4)]
        aligned = (old.conj() * new / (old.abs() * new.abs())).real
        torch.testing.assert_close(aligned, torch.ones_like(aligned), rtol=0, atol=1e-3)
        torch.testing.assert_close(after[style], before[style], rtol=0, atol=1e-5)
        styles.append(style)
    assert styles[0] != styles[1]  # with this seed; drawn for each view


def test_means_become_equal_for_any_area_and_only_low_frequencies_change():
    plain = batch_of(uniform.build(uniform.Config(), Images(), crops()))
    found = batch_of(made(area=[0.1, 0.1]))  # floor(sqrt(0.1) * 8) = 2
    for before, after in zip(plain["views"], found["views"], strict=True):
        means = shown(after).mean((2, 3))
        torch.testing.assert_close(means, means[:1].expand_as(means), rtol=0, atol=1e-6)
        old, new = (torch.fft.fft2(shown(view).double()) for view in (before, after))
        torch.testing.assert_close(new[..., 3:14, :], old[..., 3:14, :], rtol=0, atol=1e-4)
        assert not torch.allclose(new[..., 2, :3], old[..., 2, :3], atol=1e-2)


def test_every_image_has_a_style_of_its_own_where_asked_for():
    plain = batch_of(uniform.build(uniform.Config(), Images(), crops()))
    found = batch_of(made(style="image"))
    before, after = (shown(batch["views"][0]).mean((2, 3)) for batch in (plain, found))
    nearest = torch.cdist(after, before).min(1)
    assert nearest.values.max() < 1e-5
    assert 3 < len(set(nearest.indices.tolist())) <= 8


def test_every_image_is_the_style_image_equally_often():
    sampler, data = made(area=[0.0, 1.0]), Images()
    colors = data.images.mean((1, 2))
    drawn = []
    for epoch in range(300):
        color = 255 * shown(batch_of(sampler, range(4), epoch=epoch)["views"][0])[0].mean((1, 2)).numpy()
        drawn.append(int(np.abs(colors[:4] - color).sum(1).argmin()))
    counts = np.bincount(drawn, minlength=4)
    assert (np.abs(counts - 75) < 4 * (300 * 3 / 16) ** 0.5).all()


def test_a_probability_of_zero_changes_nothing():
    plain = batch_of(uniform.build(uniform.Config(), Images(), crops()))
    for before, after in zip(plain["views"], batch_of(made(probability=0.0))["views"], strict=True):
        torch.testing.assert_close(after, before, rtol=0, atol=1e-5)
    is_changed = [
        not torch.allclose(view, plain["views"][0], atol=1e-3)
        for epoch in range(100)
        for view in batch_of(made(probability=0.3), epoch=epoch)["views"]
    ]
    assert 0.15 < np.mean(is_changed) < 0.45


def test_a_batch_is_a_function_of_its_arguments_also_in_another_process():
    sampler = made(views=crops(scale=[0.3, 1.0], flip=0.5), jitter=0.5, grey=0.5, blur=0.5)
    first = batch_of(sampler)
    again = batch_of(pickle.loads(pickle.dumps(sampler)))
    assert all(map(torch.equal, first["views"], again["views"]))
    for changed in ({"seed": 1}, {"epoch": 1}):
        assert not torch.equal(first["views"][0], batch_of(sampler, **changed)["views"][0])


def test_parts_of_so_many_images_are_the_same_for_any_number_of_processes():
    sampler = made(images=4, jitter=1.0)
    whole = batch_of(sampler, range(12))["views"]
    parts = [batch_of(sampler, range(start, start + size))["views"] for start, size in ((0, 8), (8, 4))]
    for number, view in enumerate(whole):
        assert torch.equal(view, torch.cat([part[number] for part in parts]))
    means = shown(batch_of(made(images=4), range(8))["views"][0]).mean((2, 3))
    torch.testing.assert_close(means[:4], means[:1].expand(4, 3), rtol=0, atol=1e-5)
    assert not torch.allclose(means[0], means[4], atol=1e-3)


def test_color_grey_and_blur_are_the_same_for_all_images_of_a_view():
    data = Images(same=True)
    found = batch_of(made(data, probability=0.0, jitter=1.0, strength=0.8))["views"]
    for view in found:
        assert torch.equal(view, view[:1].expand_as(view))
    assert not torch.allclose(found[0], found[1], atol=1e-2)
    jittered = (255 * shown(found[0][0])).round().permute(1, 2, 0)
    mean = torch.from_numpy(data.images[0].mean((0, 1)))
    assert (jittered.mean((0, 1)) - mean).abs().max() > 3
    greys = [batch_of(made(probability=0.0, grey=0.5), epoch=epoch)["views"][0] for epoch in range(40)]
    is_grey = [[float(image.std(0).max()) < 1e-6 for image in shown(view)] for view in greys]
    assert all(len(set(row)) == 1 for row in is_grey)
    assert 8 < sum(row[0] for row in is_grey) < 32
    blurred = batch_of(made(probability=0.0, blur=1.0))["views"][0]
    plain = batch_of(made(probability=0.0))["views"][0]
    ratio = shown(blurred).var((1, 2, 3)) / shown(plain).var((1, 2, 3))
    assert (ratio < 0.999).all()


def test_batches_of_another_sampler_and_views_of_several_sizes():
    views = multi_crop.build(multi_crop.Config(num_small=2), META)
    sampler = made(views=views, sampler={"name": "balanced", "by": "group"})
    found = batch_of(sampler, range(6))
    assert len(sampler) == 18
    assert [tuple(view.shape) for view in found["views"]] == [(6, 3, 16, 16)] * 2 + [(6, 3, 8, 8)] * 2
    assert all(torch.isfinite(view).all() and view.dtype == torch.float32 for view in found["views"])
    assert (found["index"] < 18).all()
    assert len(batch_of(sampler, [3])["views"]) == 4  # a batch of one is its own style


def test_values_stay_between_black_and_white():
    data = Images()
    data.images = np.random.default_rng(1).choice([0, 255], (20, 16, 16, 3)).astype(np.uint8)
    values = torch.stack([shown(view) for view in batch_of(made(data))["views"]])
    assert values.min() > -1e-6
    assert values.max() < 1 + 1e-6
    assert ((values > 0.01) & (values < 0.99)).any()


def test_what_it_cannot_use_is_refused():
    bags = BagData(num_bags=2, length=6)
    with pytest.raises(DataError, match=r"sampler bss needs images; these views have shape \(4,\)"):
        build(Config(), bags, PlainViews())
    with pytest.raises(SettingsError, match="area must be two shares of the frequencies"):
        made(area=[0.5, 0.2])
    with pytest.raises(SettingsError, match=r"sampler\.names is not a setting of samplers/uniform"):
        made(sampler={"names": 1})


class Labelled:
    """Examples without views."""

    def batch(self, indices, *, seed, epoch):
        return {"index": torch.zeros(1, dtype=torch.int64)}


def test_a_sampler_without_views_is_named():
    sampler = made()
    sampler.examples = Labelled()
    with pytest.raises(SettingsError, match="sampler uniform makes no views"):
        batch_of(sampler)
