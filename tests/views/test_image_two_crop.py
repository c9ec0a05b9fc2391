"""Random views of images: pure functions of image and generator, with the operations they say."""

import time

import albumentations as A
import cv2
import numpy as np
import polars as pl
import pytest
import torch

from appssl.contracts import Meta
from appssl.errors import DataError, SettingsError
from appssl.ops.images import pixels as operations
from appssl.ops.images.draws import Jitter, crop_box, draw_jitter, jittered
from appssl.ops.random import rng_for
from appssl.samplers import bss
from appssl.settings import validate
from appssl.views import multi_crop
from appssl.views.image_two_crop import Config, build

MEAN, STD = [0.5, 0.4, 0.3], [0.2, 0.25, 0.3]


def views(side=32, **values):
    config = validate(Config, values, file="recipe", owner="views/image_two_crop")
    meta = Meta("webnoisy", "webnoisy", "classification", facts={"size_px": side, "rgb_mean": MEAN, "rgb_std": STD})
    return build(config, meta)


def picture(size=32, seed=0):
    coarse = np.random.default_rng(seed).integers(0, 256, (5, 5, 3)).astype(np.uint8)
    return cv2.resize(coarse, (size, size), interpolation=cv2.INTER_CUBIC)


def pixels(view):
    """Back to 0..255."""
    values = view.numpy().transpose(1, 2, 0) * np.array(STD) + np.array(MEAN)
    return values * 255


def test_plain_is_the_normalized_image():
    expected = (picture() / 255 - MEAN) / STD
    np.testing.assert_allclose(views().plain(picture()).numpy(), expected.transpose(2, 0, 1), atol=1e-5)


@pytest.mark.parametrize("size", [None, 48, 16])
def test_shapes_types_and_number(size):
    built = views(num_views=3, size=size, blur=1.0, solarize=1.0)
    assert built.input_shape == (3, size or 32, size or 32)
    made = [
        *built.views(picture(), rng_for(0, 0, 0)),
        built.augment(picture(), rng_for(0, 0, 0)),
        built.plain(picture()),
    ]
    assert len(made) == 5
    assert all(v.shape == built.input_shape and v.dtype == torch.float32 and v.is_contiguous() for v in made)
    assert all(torch.isfinite(v).all() for v in made)


def test_the_same_generator_gives_the_same_views_and_another_others():
    first = views(blur=0.5).views(picture(), rng_for(1, 2, 3))
    again = views(blur=0.5).views(picture(), rng_for(1, 2, 3))
    other = views(blur=0.5).views(picture(), rng_for(1, 2, 4))
    assert all(torch.equal(a, b) for a, b in zip(first, again, strict=True))
    assert not torch.equal(first[0], other[0])
    assert not torch.equal(first[0], first[1])


def test_the_image_is_not_changed():
    image = picture()
    image.setflags(write=False)  # as a memory map is
    before = image.copy()
    built = views(jitter=1.0, grey=1.0, blur=1.0, solarize=1.0)
    for index in range(20):
        built.views(image, rng_for(0, 0, index))
        built.augment(image, rng_for(0, 0, index))
    assert (image == before).all()


def test_a_full_crop_without_any_change_is_the_image():
    built = views(scale=[1.0, 1.0], ratio=[1.0, 1.0], flip=0.0, jitter=0.0, grey=0.0)
    assert torch.equal(built.views(picture(), rng_for(0, 0, 0))[0], built.plain(picture()))


def test_flip_mirrors():
    built = views(scale=[1.0, 1.0], ratio=[1.0, 1.0], flip=1.0, jitter=0.0, grey=0.0)
    assert torch.equal(built.views(picture(), rng_for(0, 0, 0))[0], built.plain(picture()).flip(2))


def test_grey_has_equal_channels():
    view = pixels(views(grey=1.0).views(picture(), rng_for(0, 0, 0))[0])
    np.testing.assert_allclose(view[..., 0], view[..., 1], atol=1e-3)


def test_crops_have_areas_and_shapes_in_their_ranges():
    rng = rng_for(0, 0, 0)
    boxes = np.array([crop_box(64, 96, (0.2, 0.8), (0.75, 4 / 3), rng) for _ in range(2000)])
    top, left, height, width = boxes.T
    assert (top >= 0).all()
    assert (left >= 0).all()
    assert (top + height <= 64).all()
    assert (left + width <= 96).all()
    share = height * width / (64 * 96)
    assert 0.18 < share.min() < 0.25
    assert 0.55 < share.max() < 0.83
    assert (width / height).min() > 0.7
    assert (width / height).max() < 1.4
    assert top.min() == left.min() == 0


def test_a_shape_that_never_fits_gives_a_central_crop():
    assert crop_box(10, 1000, (1.0, 1.0), (0.75, 4 / 3), rng_for(0, 0, 0)) == (0, 493, 10, 13)


def test_jitter_equals_albumentations_with_the_same_factors():
    expected = picture()
    for number in range(4):  # brightness, contrast, saturation, hue, in this order
        single = [(1.0, 1.0)] * 3 + [(0.0, 0.0)]
        single[number] = [(1.3, 1.3), (0.7, 0.7), (1.2, 1.2), (0.05, 0.05)][number]
        expected = A.ColorJitter(*single, p=1.0)(image=expected)["image"]
    ours = jittered(picture(), Jitter(1.3, 0.7, 1.2, 0.05, (0, 1, 2, 3)))
    difference = np.abs(
        ours.astype(int) - expected
    )  # each of the four is within one level: tests/ops/images/test_pixels.py
    assert difference.mean() < 1.5
    assert np.quantile(difference, 0.99) <= 5


def color_jitter(image, strength, rng):
    return jittered(image, draw_jitter(strength, rng))


def test_stronger_jitter_changes_more():
    changes = [
        np.mean(
            [np.abs(color_jitter(picture(), s, rng_for(0, 0, i)).astype(int) - picture()).mean() for i in range(50)]
        )
        for s in (0.0, 0.25, 1.0)
    ]
    assert changes[0] <= 1 < changes[1] < changes[2]


def test_augment_shifts_and_flips_only():
    image = np.zeros((32, 32, 3), np.uint8)
    image[12:20, 12:20] = 200
    for index in range(20):
        view = pixels(views().augment(image, rng_for(0, 0, index)))
        assert (view > 100).sum() == 8 * 8 * 3  # the square stays whole: it is further from the border than the shift
        rows = np.flatnonzero((view > 100).any(axis=(1, 2)))
        assert 8 <= rows[0] <= 16


def test_augment_without_shift_and_flip_is_plain():
    built = views(pad=0.0, flip=0.0)
    assert torch.equal(built.augment(picture(), rng_for(0, 0, 0)), built.plain(picture()))


def test_one_colour_data_stay_finite():
    meta = Meta("w", "webnoisy", "classification", facts={"size_px": 8, "rgb_mean": [0.5] * 3, "rgb_std": [0.0] * 3})
    assert torch.isfinite(build(Config(), meta).plain(picture(8))).all()


def test_data_without_images_are_refused():
    with pytest.raises(DataError, match=r"needs images.*source wearable.*size_px"):
        build(Config(), Meta("wearable", "wearable", "classification"))


@pytest.mark.parametrize("values", [{"scale": [0.5, 0.2]}, {"scale": [0.0, 1.0]}, {"ratio": [2.0, 1.0]}, {"flip": 1.5}])
def test_ranges_are_checked(values):
    with pytest.raises(SettingsError):
        views(**values)


def levels(made):
    """(V, B, size, size, 3) in 0..255."""
    return np.stack([[pixels(view) for view in of_images] for of_images in made])


RANDOM = {"strength": 1.0, "blur": 0.5, "solarize": 0.2, "scale": [0.08, 1.0], "num_views": 3}


@pytest.mark.parametrize("size", [12, 32, 48])
def test_views_for_the_device_are_drawn_as_those_of_the_loader(size):
    at_once, images = views(size=size, render="device", **RANDOM), [picture(seed=n) for n in range(32)]
    made = at_once.drawn(images, [rng_for(0, 1, n) for n in range(32)]).render()
    assert [tuple(view.shape) for view in made] == [(32, 3, size, size)] * 3
    one_by_one = [views(size=size, **RANDOM).views(image, rng_for(0, 1, n)) for n, image in enumerate(images)]
    apart = np.abs(levels(made) - levels(zip(*one_by_one, strict=True)))
    assert apart.mean() <= 0.5  # the tolerance of tests/ops/images/test_drawn_views.py, where it is reasoned
    assert np.quantile(apart, 0.99) <= 4


def test_single_views_are_the_same_wherever_batches_are_rendered():
    for method in ("views", "augment"):
        pair = [getattr(views(render=where, **RANDOM), method)(picture(), rng_for(0, 0, 0)) for where in WHERE]
        one, two = (made if method == "views" else [made] for made in pair)
        assert all(torch.equal(a, b) for a, b in zip(one, two, strict=True))
    assert torch.equal(*(views(render=where).plain(picture()) for where in WHERE))


WHERE = ("loader", "device")


def drawn_parts(image, rng):
    """What `views` drew, and in which order, before drawing and rendering were taken apart: written out."""
    top, left, height, width = crop_box(*image.shape[:2], (0.08, 1.0), (3 / 4, 4 / 3), rng)
    view = operations.resized(image[top : top + height, left : left + width], 32)
    flip, jitter, grey, blur, solarize = rng.random(5) < (0.5, 0.8, 0.2, 0.5, 0.2)
    if flip:
        view = cv2.flip(view, 1)
    if jitter:
        factors = 1 + 0.8 * (2 * rng.random(3) - 1)
        turn = 0.2 * (2 * rng.random() - 1)
        steps = [
            lambda image: operations.brightness(image, factors[0]),
            lambda image: operations.contrast(image, factors[1]),
            lambda image: operations.saturation(image, factors[2]),
            lambda image: operations.hue(image, turn),
        ]
        for step in rng.permutation(4):
            view = steps[step](view)
    if grey:
        view = operations.grey(view)
    if blur:
        view = operations.gaussian_blur(view, rng.uniform(0.1, 2.0))
    return operations.solarize(view) if solarize else view


def test_numbers_are_drawn_in_an_order_that_must_not_change():
    built, standardize = views(**RANDOM), operations.Standardize(MEAN, STD)
    for index in range(50):
        rng = rng_for(3, 0, index)
        expected = [standardize(drawn_parts(picture(40), rng)) for _ in range(3)]
        found = built.views(picture(40), rng_for(3, 0, index))
        assert all(torch.equal(a, b) for a, b in zip(found, expected, strict=True))


def test_multi_crop_renders_large_and_small_crops_on_the_device():
    facts = {"size_px": 32, "rgb_mean": MEAN, "rgb_std": STD}
    meta = Meta("webnoisy", "webnoisy", "classification", facts=facts)
    one, two = (multi_crop.build(multi_crop.Config(num_small=2, solarize=0.2, render=where), meta) for where in WHERE)
    images = [picture(seed=n) for n in range(24)]
    made = two.drawn(images, [rng_for(0, 1, n) for n in range(24)]).render()
    assert [tuple(view.shape[1:]) for view in made] == [(3, 32, 32)] * 2 + [(3, 16, 16)] * 2
    expected = zip(*(one.views(image, rng_for(0, 1, n)) for n, image in enumerate(images)), strict=True)
    for view, loaded in zip(made, expected, strict=True):
        assert np.abs(levels([view]) - levels([loaded])).mean() <= 0.5


def test_what_changes_views_in_the_loader_refuses_those_of_the_device():
    class Data:
        samples = pl.DataFrame({"index": [0], "split": ["train"]})

        def read(self, row):
            return picture()

    with pytest.raises(SettingsError, match=r"sampler bss.* Set views.render: loader"):
        bss.build(bss.Config(), Data(), views(render="device"))
    assert len(bss.build(bss.Config(), Data(), views())) == 1


def test_a_view_of_32_pixels_takes_less_than_a_millisecond():
    built = views()
    start = time.process_time()
    for index in range(300):
        built.views(picture(), rng_for(0, 0, index))
    # 0.1 ms on the machine it was written on; this only notices a change of kind.
    assert (time.process_time() - start) / 600 < 1e-3
