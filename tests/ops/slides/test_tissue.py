"""Tissue is told from glass, halos, ink and darkness; shares of tiles are exact."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import ndimage

from appssl.ops.slides.slide import geometry, open_slide, overview
from appssl.ops.slides.tissue import (
    background_color,
    beside_ink,
    cleaned,
    covered_share,
    edge_share,
    evenly,
    find_tissue,
    grid,
    is_ink,
    optical_densities,
    otsu,
)
from tests.real_data import DATA, on_real_data

AREAS = {"min_part_um2": 10_000, "min_hole_um2": 10_000}
GLASS = (236, 219, 234)  # pinkish grey, as on some real slides


def glass(side=200, color=GLASS, seed=0):
    noise = np.random.default_rng(seed).normal(0, 1.5, (side, side, 3))
    return np.clip(np.array(color) + noise, 0, 255).astype(np.uint8)


def stained(image, box, seed=1):
    """Puts textured pink and purple into a box (top, bottom, left, right)."""
    rng = np.random.default_rng(seed)
    top, bottom, left, right = box
    shape = (bottom - top, right - left, 1)
    mix = rng.uniform(0, 1, shape)
    image[top:bottom, left:right] = mix * np.array([110, 60, 140]) + (1 - mix) * np.array([225, 150, 200])
    return image


def tissue(image, **values):
    return find_tissue(image, spacing_um=8.0, **{**AREAS, **values})


def test_a_stained_section_on_tinted_glass_is_found():
    found = tissue(stained(glass(), (60, 140, 40, 120)))
    truth = np.zeros((200, 200), bool)
    truth[60:140, 40:120] = True
    overlap = (found.mask & truth).sum() / (found.mask | truth).sum()
    assert not found.is_dark
    assert overlap > 0.85  # smoothing over 16 um moves the border by about two pixels


def test_plain_glass_of_any_usual_color_has_no_tissue():
    for color in ((255, 255, 255), GLASS, (200, 200, 200), (240, 235, 215)):
        found = tissue(glass(color=color))
        assert not found.mask.any(), color
        assert "tissue_share 0" in found.explained


def test_a_smooth_halo_of_stain_is_no_tissue():
    image = glass().astype(np.float64)
    y, x = np.mgrid[:200, :200]
    halo = np.exp(-((x - 100) ** 2 + (y - 100) ** 2) / (2 * 40**2))
    image -= halo[..., None] * np.array([5, 70, 25])
    assert not tissue(image.astype(np.uint8)).mask.any()


def test_an_image_full_of_tissue_is_all_tissue():
    assert tissue(stained(glass(40), (0, 40, 0, 40))).mask.all()


def test_bright_signal_on_black_is_called_dark():
    image = np.zeros((100, 100, 3), np.uint8)
    image[40:60, 40:60, 2] = 250
    found = tissue(image)
    assert found.is_dark
    assert not found.mask.any()
    assert "black_share 0.96" in found.explained


def test_blue_and_green_ink_is_no_tissue_but_stains_are():
    white = np.full(3, 255.0)
    ink = np.array([[[30, 80, 190], [40, 160, 70]]], np.uint8)
    stains = np.array([[[110, 60, 140], [225, 150, 200], [80, 68, 117], [214, 130, 174]]], np.uint8)
    assert is_ink(*optical_densities(ink, white)).all()
    assert not is_ink(*optical_densities(stains, white)).any()


def test_parts_of_which_a_quarter_is_ink_are_strokes_and_other_ink_is_no_part_of_it():
    mask, ink = np.zeros((20, 20), bool), np.zeros((20, 20), bool)
    mask[1:9, 1:9] = True  # 64 pixels, 16 of them ink
    ink[1:3, 1:9] = True
    mask[11:19, 1:9] = True  # 64 pixels, 15 of them ink
    ink[11:13, 1:9] = True
    ink[12, 8] = False
    ink[5, 15] = True  # beside any tissue
    found = beside_ink(mask, ink)
    assert found[1:9, 1:9].all()
    assert found.sum() == 64


def test_small_parts_and_holes_follow_their_areas():
    image = stained(glass(), (40, 160, 40, 160))
    image[95:105, 95:105] = glass(10, seed=3)  # 80 um wide
    assert tissue(image).mask[100, 100]
    speck = stained(glass(), (20, 30, 20, 30))  # about 6400 um2, more after smoothing
    assert tissue(speck, min_part_um2=0).mask.any()
    assert not tissue(speck, min_part_um2=50_000).mask.any()


def test_cleaned_counts_pixels():
    mask = np.zeros((12, 12), bool)
    mask[1:9, 1:9] = True
    mask[4:6, 4:6] = False  # a hole of 4
    mask[10, 10:12] = True  # a part of 2
    assert cleaned(mask, 0, 0).sum() == mask.sum()
    assert cleaned(mask, 3, 0)[10].sum() == 0
    assert cleaned(mask, 0, 5)[4:6, 4:6].all()
    assert not cleaned(mask, 0, 4)[4:6, 4:6].any()


def literal_cleaned(mask, min_part, min_hole):
    """Part by part, by flooding: first every hole that is too small, then every part that with its holes is."""

    def enclosing(mask):
        parts, count = ndimage.label(mask, np.ones((3, 3)))
        for n in range(1, count + 1):
            part = parts == n
            outside, _ = ndimage.label(np.pad(~part, 1, constant_values=True))
            yield part, (outside != outside[0, 0])[1:-1, 1:-1]

    filled = mask.copy()
    for part, upto in enclosing(mask):
        holes, count = ndimage.label(upto & ~part)
        for n in range(1, count + 1):
            if (holes == n).sum() < min_hole:
                filled |= holes == n
    out = filled.copy()
    for _, upto in enclosing(filled):
        if upto.sum() < min_part:
            out &= ~upto
    return out


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 10_000), st.floats(0.2, 0.9), st.integers(0, 40), st.integers(0, 20))
def test_cleaned_equals_flooding_part_by_part(seed, share, min_part, min_hole):
    rng = np.random.default_rng(seed)
    mask = rng.random(rng.integers(1, 24, 2)) < share
    assert (cleaned(mask, min_part, min_hole) == literal_cleaned(mask, min_part, min_hole)).all()


def test_otsu_is_the_split_with_the_largest_between_class_variance():
    rng = np.random.default_rng(0)
    values = np.concatenate([rng.normal(0.1, 0.03, 3000), rng.normal(0.5, 0.1, 1000)])
    low, high = values.min(), values.max()
    candidates = np.linspace(low, high, 257)[1:-1]

    def between(t):
        a, b = values[values < t], values[values >= t]
        return 0 if not len(a) or not len(b) else len(a) * len(b) * (a.mean() - b.mean()) ** 2

    # Not quite the largest, for bin centres stand for the values of a bin.
    assert between(otsu(values)) >= 0.9999 * max(map(between, candidates))
    assert otsu(np.full(10, 0.3)) == 0.3


def test_the_background_is_the_bright_smooth_part():
    image = stained(glass(), (0, 150, 0, 200))
    smooth = edge_share(image, 9) < 0.25
    assert np.abs(background_color(image, smooth) - GLASS).max() <= 1
    nothing_smooth = np.zeros(image.shape[:2], bool)
    assert background_color(image, nothing_smooth).tolist() == [240, 240, 240]


def literal_share(mask, box):
    left, top, right, bottom = box
    total = 0.0
    for y in range(mask.shape[0]):
        for x in range(mask.shape[1]):
            width = max(0.0, min(right, x + 1) - max(left, x))
            height = max(0.0, min(bottom, y + 1) - max(top, y))
            total += mask[y, x] * width * height
    return total / ((right - left) * (bottom - top))


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 10_000), st.integers(1, 9), st.integers(1, 9))
def test_covered_share_equals_the_sum_over_pixels(seed, height, width):
    rng = np.random.default_rng(seed)
    mask = rng.random((height, width)) < 0.5
    low = rng.uniform(-1, [width, height], (5, 2))
    boxes = np.hstack([low, low + rng.uniform(0.05, 6, (5, 2))])
    expected = [literal_share(mask, box) for box in boxes]
    assert covered_share(mask, boxes) == pytest.approx(expected, abs=1e-9)


def test_the_grid_does_not_drift_and_stays_inside():
    corners = grid((1000, 500), (100.3, 100.3), (90.3, 90.3))
    x = np.unique(corners[:, 0])
    assert np.abs(x - np.arange(len(x)) * 90.3).max() <= 0.5
    assert corners.min() == 0
    assert (corners[:, 0] + 100.3).max() <= 1000.5
    assert len(corners) == 10 * 5
    assert len(grid((50, 500), (100, 100), (90, 90))) == 0
    assert grid((100, 100), (100, 100), (100, 100)).tolist() == [[0, 0]]


@given(st.integers(0, 300), st.integers(1, 50))
def test_evenly_takes_distinct_places_spread_over_all(count, limit):
    chosen = evenly(count, limit)
    assert len(chosen) == min(count, limit) == len(set(chosen.tolist()))
    assert all(0 <= n < count for n in chosen)
    if 1 < limit < count:
        assert np.ptp(np.diff(chosen)) <= 1


@on_real_data
@pytest.mark.parametrize(
    ("path", "low", "high"),
    [
        ("her2st-breast/her2st_C2.tif", 0.14, 0.20),
        ("her2st-breast/her2st_C3.tif", 0.14, 0.20),  # pink halo of stain, uneven grey-pink glass, a smudge
        ("cmu-1-small-region/CMU-1-Small-Region.svs", 0.33, 0.45),
        ("monuseg-tiles/tiles/TCGA-21-5786-01Z-00-DX1.tif", 0.98, 1.0),  # very pale, no glass at all
        ("monuseg-tiles/tiles/TCGA-E2-A1B5-01Z-00-DX1.tif", 0.98, 1.0),
    ],
)
def test_the_share_of_tissue_on_real_slides_is_right(path, low, high):
    slide = open_slide(DATA / "wsi" / path)
    found = tissue(overview(slide, geometry(slide), 8.0))
    assert low <= found.mask.mean() <= high


@on_real_data
def test_a_real_fluorescence_slide_is_called_dark():
    slide = open_slide(DATA / "wsi/hamamatsu-ndpi-dapi/test3-DAPI-2-387.ndpi")
    assert tissue(overview(slide, geometry(slide), 8.0)).is_dark
