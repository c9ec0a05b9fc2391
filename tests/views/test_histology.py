"""Histology views: pure functions of (tile, generator), stain changes in optical density, else turns and crops."""

import numpy as np
import pytest
import torch

from appssl.contracts import Meta
from appssl.errors import DataError, SettingsError
from appssl.settings import validate
from appssl.views.histology import STAINS, Config, build, color_jitter, crop_square, mix_stains, stain_jitter, turned

MEAN, STD = [0.7, 0.5, 0.7], [0.15, 0.2, 0.1]
META = Meta("wsi", "wsi", "classification", facts={"size_px": 64, "rgb_mean": MEAN, "rgb_std": STD})


def config(**values):
    return validate(Config, values, file="recipe", owner="views/histology")


def views(**values):
    return build(config(**values), META)


def tile(side=64, seed=0):
    coarse = np.random.default_rng(seed).integers(60, 240, (side // 4, side // 4, 3))
    return np.kron(coarse, np.ones((4, 4, 1))).astype(np.uint8)


def rng(seed=0):
    return np.random.default_rng(seed)


def literal_mix(image, alpha, beta):
    """Pixel by pixel in float64: densities to amounts, scaled and shifted, back to values."""
    unmix = np.linalg.inv(STAINS.astype(np.float64))
    out = np.zeros(image.shape)
    for y in range(image.shape[0]):
        for x in range(image.shape[1]):
            density = -np.log10((image[y, x].astype(np.float64) + 1) / 256)
            amounts = density @ unmix
            out[y, x] = 256 * 10 ** -((amounts * alpha + beta) @ STAINS) - 1
    return np.clip(np.rint(out), 0, 255)


def test_mixing_stains_equals_the_literal_transcription():
    alpha, beta = np.array([1.2, 0.8, 1.05]), np.array([0.02, -0.03, 0.01])
    image = tile(16)
    mixed = mix_stains(image, alpha.astype(np.float32), beta.astype(np.float32))
    assert np.abs(mixed - literal_mix(image, alpha, beta)).max() <= 1  # rounding in float32


def test_stains_are_unit_vectors_and_unchanged_amounts_change_nothing():
    assert np.linalg.norm(STAINS, axis=1) == pytest.approx(1)
    same = mix_stains(tile(), np.ones(3, np.float32), np.zeros(3, np.float32))
    assert (same == tile()).all()
    assert (stain_jitter(tile(), 0.0, rng()) == tile()).all()


def test_more_haematoxylin_darkens_a_nucleus_more_than_eosin_ground():
    nucleus = np.rint(256 * 10 ** -(0.8 * STAINS[0]) - 1).astype(np.uint8).reshape(1, 1, 3)
    ground = np.rint(256 * 10 ** -(0.4 * STAINS[1]) - 1).astype(np.uint8).reshape(1, 1, 3)
    alpha = np.array([1.3, 1.0, 1.0], np.float32)
    change = [i.astype(int) - mix_stains(i, alpha, np.zeros(3, np.float32)) for i in (nucleus, ground)]
    assert change[0].max() > 20
    assert np.abs(change[1]).max() <= 1


def test_the_eight_turns_are_distinct_and_keep_every_pixel():
    image = tile()
    turns = [turned(image, n) for n in range(8)]
    assert len({t.tobytes() for t in turns}) == 8
    assert (turns[0] == image).all()
    assert all((np.sort(t.reshape(-1, 3), axis=0) == np.sort(image.reshape(-1, 3), axis=0)).all() for t in turns)


def test_crops_are_squares_inside_with_areas_in_the_range():
    for seed in range(200):
        top, left, side = crop_square(90, 120, (0.3, 0.8), rng(seed))
        assert 0 <= top <= 90 - side
        assert 0 <= left <= 120 - side
        assert 0.29 <= side**2 / 90**2 <= 0.82
    assert crop_square(50, 50, (1.0, 1.0), rng()) == (0, 0, 50)


def test_views_have_shape_and_type_and_differ():
    made = views(size=32).views(tile(), rng())
    assert len(made) == 2
    assert all(v.shape == (3, 32, 32) and v.dtype == torch.float32 and torch.isfinite(v).all() for v in made)
    assert not torch.equal(*made)
    assert len(views(num_views=3).views(tile(), rng())) == 3


def test_a_view_depends_on_tile_and_generator_only():
    chain, image = views(blur=1.0, jitter=1.0, stain=1.0), tile()
    kept = image.copy()
    one, _ = chain.views(image, rng(3)), chain.views(tile(seed=9), rng(8))
    again = chain.views(image, rng(3))
    assert all(torch.equal(a, b) for a, b in zip(one, again, strict=True))
    assert (image == kept).all()


def test_plain_is_the_normalized_tile_and_resized_when_asked():
    expected = (tile().transpose(2, 0, 1) / 255 - np.array(MEAN)[:, None, None]) / np.array(STD)[:, None, None]
    assert views().plain(tile()).numpy() == pytest.approx(expected, abs=1e-5)
    means = tile().reshape(32, 2, 32, 2, 3).mean(axis=(1, 3)).transpose(2, 0, 1)
    small = (means / 255 - np.array(MEAN)[:, None, None]) / np.array(STD)[:, None, None]
    assert views(size=32).plain(tile()).numpy() == pytest.approx(small, abs=0.05)
    assert views(size=96).plain(tile()).shape == (3, 96, 96)


def test_augment_turns_and_stains_mildly_and_nothing_else():
    chain = views(light_stain_strength=0.0)
    turns = {views().plain(turned(tile(), n)).numpy().tobytes() for n in range(8)}
    seen = {chain.augment(tile(), rng(seed)).numpy().tobytes() for seed in range(60)}
    assert seen == turns
    mild = views().augment(tile(), rng(1))
    assert mild.shape == (3, 64, 64)
    assert mild.numpy().tobytes() not in turns


def test_probabilities_of_zero_leave_only_crop_and_turn():
    chain = views(stain=0.0, jitter=0.0, blur=0.0, scale=[1.0, 1.0])
    turns = {chain.plain(turned(tile(), n)).numpy().tobytes() for n in range(8)}
    assert {v.numpy().tobytes() for seed in range(20) for v in chain.views(tile(), rng(seed))} <= turns


def test_color_jitter_of_no_strength_changes_at_most_rounding():
    assert np.abs(color_jitter(tile(), 0.0, rng()).astype(int) - tile()).max() <= 1


def test_extreme_tiles_stay_finite():
    for value in (0, 255):
        image = np.full((64, 64, 3), value, np.uint8)
        assert all(torch.isfinite(v).all() for v in views(stain=1.0, stain_strength=1.0).views(image, rng()))


def test_data_without_images_and_wrong_ranges_are_refused():
    with pytest.raises(
        DataError, match="views/histology needs tiles; the data of source wearable say nothing of size_px"
    ):
        build(config(), Meta("wearable", "wearable", "classification"))
    for values, message in (
        ({"scale": [0.5, 0.2]}, "smallest <= largest"),
        ({"sigma": [0.0, 1.0]}, "two positive numbers"),
        ({"stains": 0.5}, "Did you mean stain"),
    ):
        with pytest.raises(SettingsError, match=message):
            config(**values)


def test_a_crop_in_um_is_the_same_share_for_any_spacing():
    tiles = Meta("wsi", "wsi", "classification", facts={**META.facts, "spacing_um": 0.5})  # 32 um wide
    assert build(config(crop_um=(8, 16)), tiles).scale == pytest.approx((1 / 16, 1 / 4))
    coarse = Meta("wsi", "wsi", "classification", facts={**META.facts, "spacing_um": 1.0})
    assert build(config(crop_um=(16, 64)), coarse).scale == pytest.approx((1 / 16, 1))


def test_a_crop_in_um_that_cannot_be_is_refused():
    tiles = Meta("wsi", "wsi", "classification", facts={**META.facts, "spacing_um": 0.5})
    with pytest.raises(DataError, match="up to 40, a tile is 32 um wide"):
        build(config(crop_um=(8, 40)), tiles)
    with pytest.raises(DataError, match="crop_um needs the spacing of the tiles"):
        views(crop_um=(8, 16))
    with pytest.raises(SettingsError, match="smallest <= largest"):
        config(crop_um=(16, 8))
