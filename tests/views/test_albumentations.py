import albumentations as A
import numpy as np
import pytest
import torch

from appssl.contracts import Meta
from appssl.errors import DataError, SettingsError
from appssl.ops.random import rng_for
from appssl.views.albumentations import Config, build

META = Meta("w", "webnoisy", "classification", facts={"size_px": 32, "rgb_mean": [0.5] * 3, "rgb_std": [0.25] * 3})
CROP = {"name": "RandomResizedCrop", "size": [24, 24], "scale": [0.2, 1.0]}


def picture(side=32):
    return np.random.default_rng(3).integers(0, 256, (side, side, 3), dtype=np.uint8)


def views(*transforms, **options):
    return build(Config(transforms=transforms or (CROP,), **options), META)


def test_a_view_is_what_the_library_makes_with_that_seed_standardized():
    made = views(CROP, {"name": "Solarize", "p": 1.0}, num_views=1)
    peer = A.Compose([A.RandomResizedCrop((24, 24), scale=(0.2, 1.0)), A.Solarize(p=1.0)])
    peer.set_random_seed(int(rng_for(1, 2, 3).integers(2**32)))
    expected = (peer(image=picture())["image"].transpose(2, 0, 1) / 255 - 0.5) / 0.25
    (found,) = made.views(picture(), rng_for(1, 2, 3))
    np.testing.assert_allclose(found.numpy(), expected, atol=1e-5)
    assert made.input_shape == (3, 24, 24)


def test_views_are_functions_of_the_generator_and_differ_from_each_other():
    first, second = views().views(picture(), rng_for(0, 0, 0))
    again, _ = views().views(picture(), rng_for(0, 0, 0))
    assert torch.equal(first, again)
    assert not torch.equal(first, second)


def test_light_and_plain_views_have_the_size_of_the_strong_ones():
    made = views(light=({"name": "HorizontalFlip", "p": 1.0},))
    plain = made.plain(picture())
    assert plain.shape == (3, 24, 24)
    assert torch.equal(made.augment(picture(), rng_for(0, 0, 0)), plain.flip(2))


@pytest.mark.parametrize(
    ("transforms", "message"),
    [
        ([{"name": "RandomResizeCrop"}], r"views\.transforms\[0\]\.name.*Did you mean RandomResizedCrop"),
        ([CROP, {"p": 0.5}], r"views\.transforms\[1\]\.name: albumentations has no transform None"),
        ([CROP, {"name": "Blur", "blur_limits": 3}], r"transforms\[1\]\.blur_limits: Blur has no such argument"),
        ([{**CROP, "size": "large"}], r"transforms\[0\]: RandomResizedCrop refuses its arguments"),
        ([CROP, {"name": "Normalize"}], "makes float32.*Leave out Normalize"),
        ([{"name": "RandomCrop", "height": 8, "width": 16}], r"shape \(8, 16, 3\); square"),
    ],
)
def test_wrong_transforms_say_which_and_what_to_do(transforms, message):
    with pytest.raises(SettingsError, match=message):
        views(*transforms)


def test_data_without_images_are_refused():
    with pytest.raises(DataError, match=r"needs images.*source wearable"):
        build(Config(transforms=(CROP,)), Meta("wearable", "wearable", "classification"))
