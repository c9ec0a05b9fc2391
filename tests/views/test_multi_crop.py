"""Two large crops and small ones: shapes, areas, and the same changes as of views/image_two_crop."""

import cv2
import numpy as np
import pytest
import torch

from appssl.contracts import Meta
from appssl.errors import DataError, SettingsError
from appssl.ops.random import rng_for
from appssl.settings import validate
from appssl.views import image_two_crop
from appssl.views.multi_crop import Config, build

FACTS = {"size_px": 32, "rgb_mean": [0.5, 0.4, 0.3], "rgb_std": [0.2, 0.25, 0.3]}
META = Meta("webnoisy", "webnoisy", "classification", facts=FACTS)
NO_CHANGE = {"flip": 0.0, "jitter": 0.0, "grey": 0.0, "blur": 0.0}


def views(**values):
    return build(validate(Config, values, file="recipe", owner="views/multi_crop"), META)


def picture(size=32, seed=0):
    coarse = np.random.default_rng(seed).integers(0, 256, (5, 5, 3)).astype(np.uint8)
    return cv2.resize(coarse, (size, size), interpolation=cv2.INTER_CUBIC)


def test_large_crops_come_first_and_are_those_of_image_two_crop():
    built = views(num_small=3, blur=0.3, solarize=0.3)
    two = image_two_crop.Config(scale=(0.14, 1.0), strength=1.0, blur=0.3, solarize=0.3)
    expected = image_two_crop.build(two, META).views(picture(), rng_for(0, 0, 4))
    found = built.views(picture(), rng_for(0, 0, 4))
    assert all(torch.equal(a, b) for a, b in zip(found[:2], expected, strict=True))


@pytest.mark.parametrize(("num_small", "size", "small"), [(0, None, None), (4, None, None), (2, 48, 20), (1, 16, 16)])
def test_shapes_types_and_number(num_small, size, small):
    built = views(num_small=num_small, size=size, small_size=small)
    side, small = size or 32, small or (size or 32) // 2
    assert built.num_views == 2 + num_small
    assert built.input_shape == (3, side, side)
    found = built.views(picture(), rng_for(0, 0, 0))
    assert [tuple(v.shape) for v in found] == [(3, side, side)] * 2 + [(3, small, small)] * num_small
    assert all(v.dtype == torch.float32 and torch.isfinite(v).all() for v in found)
    assert built.augment(picture(), rng_for(0, 0, 0)).shape == built.plain(picture()).shape == built.input_shape


def test_small_crops_show_their_share_of_the_image():
    """A ramp from left to right: the range of values in a crop is its width."""
    ramp = np.repeat(np.linspace(0, 255, 256).astype(np.uint8)[None, :, None], 256, 0).repeat(3, 2)
    built = views(num_small=8, small_size=96, size=96, scale=[0.5, 0.5], small_scale=[0.04, 0.04], **NO_CHANGE)
    for index in range(20):
        found = built.views(ramp, rng_for(0, 0, index))
        widths = [float((v[0].max() - v[0].min()) * 0.2) for v in found]  # standard deviation of the facts
        for width, share in zip(widths, [0.5] * 2 + [0.04] * 8, strict=True):
            assert (share * 3 / 4) ** 0.5 - 0.03 < width < (share * 4 / 3) ** 0.5 + 0.03


def test_views_are_pure_functions_of_image_and_generator():
    built = views(num_small=2)
    first, again, other = (built.views(picture(), rng_for(1, 2, n)) for n in (3, 3, 4))
    assert all(torch.equal(a, b) for a, b in zip(first, again, strict=True))
    assert not any(torch.equal(a, b) for a, b in zip(first, other, strict=True))
    assert not torch.equal(first[2], first[3])


def test_what_it_cannot_be_is_refused():
    with pytest.raises(SettingsError, match=r"small_size is 40 pixels; it must be between 8 and .* 32"):
        views(small_size=40)
    with pytest.raises(SettingsError, match="small_scale must be two shares"):
        views(small_scale=[0.5, 0.2])
    with pytest.raises(SettingsError, match="scale must be two shares"):
        views(scale=[0.0, 1.0])
    with pytest.raises(DataError, match=r"views/multi_crop needs images; the data of source wearable have no size_px"):
        build(Config(), Meta("wearable", "wearable", "classification"))
