import albumentations as A
import cv2
import numpy as np
import pytest
import torch

from appssl.ops.images import pixels


def picture(side=96, seed=0):
    """Smooth colours with some noise: every level and many hues occur."""
    rng = np.random.default_rng(seed)
    coarse = cv2.resize(rng.integers(0, 256, (6, 6, 3), dtype=np.uint8), (side, side), interpolation=cv2.INTER_CUBIC)
    return np.clip(coarse + rng.normal(0, 8, coarse.shape), 0, 255).astype(np.uint8)


def jittered(place, value):
    """albumentations' colour jitter that does one thing."""
    ranges = [(1.0, 1.0), (1.0, 1.0), (1.0, 1.0), (0.0, 0.0)]
    ranges[place] = (value, value)
    return A.ColorJitter(*ranges, p=1.0)


@pytest.mark.parametrize("value", [0.2, 0.8, 1.0, 1.7])
@pytest.mark.parametrize(("place", "change"), [(0, pixels.brightness), (1, pixels.contrast), (2, pixels.saturation)])
def test_colours_change_as_albumentations_changes_them(place, change, value):
    expected = jittered(place, value)(image=picture())["image"]
    assert np.abs(change(picture(), value).astype(int) - expected).max() <= 1


@pytest.mark.parametrize("turn", [-0.2, -0.03, 0.0, 0.1])
def test_hues_turn_as_albumentations_turns_them(turn):
    expected = jittered(3, turn)(image=picture())["image"]
    # No turn at all is left alone there; here it goes to hues in steps of two degrees and back.
    assert np.abs(pixels.hue(picture(), turn).astype(int) - expected).max() <= (0 if turn else 6)


def test_grey_and_solarization_are_albumentations_own():
    assert np.array_equal(pixels.grey(picture()), A.ToGray(p=1.0)(image=picture())["image"])
    peer = A.Solarize((128 / 255, 128 / 255), p=1.0)
    assert np.array_equal(pixels.solarize(picture()), peer(image=picture())["image"])


@pytest.mark.parametrize("sigma", [0.1, 0.5, 1.3, 2.0])
def test_blur_equals_convolution_with_a_gaussian(sigma):
    reach = np.arange(-int(np.ceil(3 * sigma)), int(np.ceil(3 * sigma)) + 1)
    kernel = np.exp(-(reach**2) / (2 * sigma**2))
    kernel /= kernel.sum()
    expected = cv2.sepFilter2D(picture().astype(np.float64), -1, kernel, kernel)
    assert np.abs(pixels.gaussian_blur(picture(), sigma) - expected).max() <= 2  # weights in steps of 1/256


def test_a_flat_image_stays_flat_when_blurred():
    flat = np.full((32, 32, 3), 131, np.uint8)
    assert np.abs(pixels.gaussian_blur(flat, 1.7).astype(int) - 131).max() <= 1


def test_fine_stripes_average_out_when_an_image_is_halved():
    stripes = np.zeros((64, 64, 3), np.uint8)
    stripes[:, ::2] = 200
    assert np.unique(pixels.resized(stripes, 32)).tolist() == [100]


@pytest.mark.parametrize("order", [1, -1])
def test_values_are_standardized_channel_by_channel_whatever_the_order_in_memory(order):
    image = picture()[:, ::order]
    mean, std = np.array([0.5, 0.4, 0.3]), np.array([0.2, 0.25, 0.1])
    expected = ((image / 255 - mean) / std).transpose(2, 0, 1)
    found = pixels.Standardize(mean, std)(image)
    assert found.dtype == torch.float32
    assert found.is_contiguous()
    np.testing.assert_allclose(found.numpy(), expected, atol=1e-5)


def test_data_of_one_colour_stay_finite():
    assert torch.isfinite(pixels.Standardize([0.5] * 3, [0.0] * 3)(picture())).all()
