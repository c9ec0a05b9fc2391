"""Each change alone, for images in batches: as OpenCV makes it, and as the equation says."""

import cv2
import numpy as np
import pytest
import torch

from appssl.ops.images import batch_pixels, pixels

WHOLE = 1  # level of 255: both paths round to whole levels, on this or that side of a half


def picture(height=48, width=64, seed=0):
    """Smooth colours with some noise: every level and many hues occur."""
    rng = np.random.default_rng(seed)
    coarse = rng.integers(0, 256, (6, 6, 3), dtype=np.uint8)
    smooth = cv2.resize(coarse, (width, height), interpolation=cv2.INTER_CUBIC)
    return np.clip(smooth + rng.normal(0, 8, smooth.shape), 0, 255).astype(np.uint8)


def batch(*images):
    return torch.from_numpy(np.stack(images)).permute(0, 3, 1, 2).float()


def shown(views):
    """(N, H, W, 3) int."""
    assert torch.equal(views, views.round())
    return views.permute(0, 2, 3, 1).numpy().astype(int)


def values(*numbers):
    return torch.tensor(numbers, dtype=torch.float32)


def all_colors(step=5):
    levels = np.arange(0, 256, step, dtype=np.uint8)
    return np.stack(np.meshgrid(levels, levels, levels, indexing="ij"), -1).reshape(len(levels), -1, 3)


def cropped(image, boxes, side, flips=None):
    images = torch.from_numpy(np.stack([image] * len(boxes)))
    flips = values(*(flips or [0] * len(boxes)))
    return batch_pixels.resized_crops(images, values(*boxes), flips, side)


BOXES = [
    (0, 0, 48, 64),
    (5, 7, 20, 30),
    (0, 40, 31, 24),
    (37, 0, 11, 9),
    (28, 33, 20, 31),
    (47, 63, 1, 1),
    (3, 0, 1, 64),
]


@pytest.mark.parametrize("side", [8, 10, 16, 24, 64])
def test_crops_are_resized_as_opencv_resizes_them(side):
    views = shown(cropped(picture(), BOXES, side))
    for view, (top, left, height, width) in zip(views, BOXES, strict=True):
        expected = pixels.resized(picture()[top : top + height, left : left + width], side)
        assert np.abs(view - expected).max() <= WHOLE


def bilinear(image, side):
    """Pixel by pixel: half-pixel centers, borders repeated."""
    height, width, _ = image.shape
    made = np.zeros((side, side, 3))
    for row in range(side):
        for column in range(side):
            y = min(max((row + 0.5) * height / side - 0.5, 0), height - 1)
            x = min(max((column + 0.5) * width / side - 0.5, 0), width - 1)
            for i in {int(y), min(int(y) + 1, height - 1)}:
                for j in {int(x), min(int(x) + 1, width - 1)}:
                    made[row, column] += (1 - abs(y - i)) * (1 - abs(x - j)) * image[i, j]
    return made


def area(image, side):
    """Pixel by pixel: the mean of the part of the image that an output covers."""
    height, width, _ = image.shape
    made = np.zeros((side, side, 3))
    for row in range(side):
        for column in range(side):
            for i in range(height):
                for j in range(width):
                    down = min(i + 1, (row + 1) * height / side) - max(i, row * height / side)
                    across = min(j + 1, (column + 1) * width / side) - max(j, column * width / side)
                    made[row, column] += max(down, 0) * max(across, 0) * image[i, j]
    return made * side**2 / (height * width)


@pytest.mark.parametrize(("box", "side"), [((3, 9, 20, 14), 17), ((40, 60, 8, 4), 9), ((0, 0, 30, 13), 8)])
def test_between_pixels_crops_are_bilinear(box, side):
    top, left, height, width = box
    expected = bilinear(picture()[top : top + height, left : left + width].astype(np.float64), side)
    assert np.abs(shown(cropped(picture(), [box], side))[0] - expected).max() <= 0.5 + 1e-3  # rounded, in float32


@pytest.mark.parametrize(("box", "side"), [((3, 9, 17, 25), 8), ((0, 0, 48, 64), 9), ((16, 32, 32, 32), 16)])
def test_crops_of_twice_the_side_are_averaged(box, side):
    top, left, height, width = box
    expected = area(picture()[top : top + height, left : left + width].astype(np.float64), side)
    assert np.abs(shown(cropped(picture(), [box], side))[0] - expected).max() <= 0.5 + 1e-3


def test_a_crop_of_the_side_of_the_view_is_copied_and_mirrored_where_asked_for():
    views = shown(cropped(picture(), [(3, 5, 32, 32)] * 2, 32, flips=[0, 1]))
    assert np.array_equal(views[0], picture()[3:35, 5:37])
    assert np.array_equal(views[1], views[0][:, ::-1])


def test_each_image_of_a_batch_has_a_crop_of_its_own():
    images = [picture(seed=n) for n in range(len(BOXES))]
    together = batch_pixels.resized_crops(
        torch.from_numpy(np.stack(images)), values(*BOXES), torch.zeros(len(BOXES)), 12
    )
    for number, image in enumerate(images):
        assert torch.equal(together[number], cropped(image, [BOXES[number]], 12)[0])


FACTORS = (0.2, 0.8, 1.0, 1.3, 1.8)


@pytest.mark.parametrize(
    ("change", "grey", "mean"), [(pixels.brightness, 0, 0), (pixels.contrast, 0, 1), (pixels.saturation, 1, 0)]
)
def test_colors_change_as_opencv_changes_them(change, grey, mean):
    image, own = picture(), values(*FACTORS)
    found = shown(batch_pixels.recolored(batch(*[image] * 5), own, grey * (1 - own), mean * (1 - own)))
    for view, factor in zip(found, FACTORS, strict=True):
        assert np.abs(view - change(image, factor)).max() <= WHOLE


def test_no_change_of_colors_changes_nothing():
    images = batch(picture(), picture(seed=1))
    one, zero = torch.ones(2), torch.zeros(2)
    assert torch.equal(batch_pixels.recolored(images, one, zero, zero), images)


@pytest.mark.parametrize("turn", [-0.2, -0.1, -0.003, 0.0, 0.03, 0.2])
def test_hues_turn_as_opencv_turns_them_for_all_colors(turn):
    colors = all_colors()
    found = shown(batch_pixels.hue(batch(colors), values(np.floor(180 * turn))))[0]
    assert np.abs(found - pixels.hue(colors, turn)).max() <= WHOLE


def test_grey_has_no_hue_to_turn():
    greys = np.arange(256, dtype=np.uint8).reshape(16, 16, 1).repeat(3, 2)
    assert torch.equal(batch_pixels.hue(batch(greys), values(37)), batch(greys))


def test_grey_and_solarization_are_those_of_opencv_for_all_colors():
    colors = all_colors()
    assert np.array_equal(shown(batch_pixels.grey(batch(colors)).expand(-1, 3, -1, -1))[0], pixels.grey(colors))
    assert np.array_equal(shown(batch_pixels.solarize(batch(colors)))[0], pixels.solarize(colors))


SIGMAS = (0.0, 0.1, 0.334, 0.5, 1.3, 1.99, 2.0)


def test_blur_is_convolution_with_a_gaussian_whose_borders_are_mirrored():
    image = picture(24, 24)
    found = shown(batch_pixels.gaussian_blur(batch(*[image] * len(SIGMAS)), values(*SIGMAS), 2.0))
    assert np.array_equal(found[0], image)
    for view, sigma in zip(found[1:], SIGMAS[1:], strict=True):
        reach = np.arange(-int(np.ceil(3 * sigma)), int(np.ceil(3 * sigma)) + 1)
        kernel = np.exp(-(reach**2) / (2 * sigma**2))
        kernel /= kernel.sum()
        expected = cv2.sepFilter2D(image.astype(np.float64), -1, kernel, kernel)
        assert np.abs(view - expected).max() <= 0.5 + 1e-3
        # Some versions of OpenCV have weights in steps of 1/256, which is two levels: tests/ops/images/test_pixels.py.
        assert np.abs(view - pixels.gaussian_blur(image, sigma)).max() <= 2 + WHOLE


def test_the_widest_blur_fits_into_the_smallest_view():
    image = picture(8, 8)
    found = shown(batch_pixels.gaussian_blur(batch(image), values(2.0), 2.0))[0]
    assert np.abs(found - pixels.gaussian_blur(image, 2.0)).max() <= 2 + WHOLE


def test_flat_images_stay_flat():
    flat = torch.full((1, 3, 16, 16), 131.0)
    assert torch.equal(batch_pixels.gaussian_blur(flat, values(1.7), 2.0), flat)
    image = torch.full((1, 16, 16, 3), 131, dtype=torch.uint8)
    for side in (8, 13, 31):
        assert (batch_pixels.resized_crops(image, values((2, 3, 9, 10)), torch.zeros(1), side) == 131).all()


def test_arguments_are_not_changed():
    images, some = batch(picture(32, 32)), values(0.7)
    before = images.clone()
    batch_pixels.recolored(images, some, some, some)
    for change in (batch_pixels.grey, batch_pixels.solarize):
        change(images)
    batch_pixels.hue(images, values(5))
    batch_pixels.gaussian_blur(images, some, 2.0)
    assert torch.equal(images, before)
