import numpy as np
import pytest

from appssl.ops.slides.tile_quality import SCORES, Quality, failing, scores

CLEAN = {"sharpness": 20.0, "white": 0.1, "black": 0.0, "grey": 0.0, "fold": 0.1, "ink": 0.0}


def flat(color, side=64):
    return np.full((side, side, 3), color, np.uint8)


def test_sharpness_is_the_deviation_of_the_laplacian():
    stripes = flat(50)
    stripes[:, ::2] = 150  # every pixel has two neighbours of 100 more or less: a Laplacian of +200 or -200
    assert scores(stripes, 4.0)["sharpness"] == pytest.approx(200)
    assert scores(flat(90), 4.0)["sharpness"] == 0


@pytest.mark.parametrize(
    ("name", "color"),
    [("white", (240, 235, 238)), ("black", (20, 25, 15)), ("grey", (150, 155, 148)), ("fold", (110, 15, 70)),
     ("ink", (30, 150, 90)), (None, (200, 130, 170))],
)  # fmt: skip
def test_each_score_is_the_share_of_its_pixels(name, color):
    tile = flat((220, 160, 190))
    tile[:, :16] = color
    found = scores(tile, 4.0)
    assert {key: found[key] for key in SCORES[1:]} == {key: 0.25 if key == name else 0.0 for key in SCORES[1:]}


def test_dark_nuclei_are_no_fold_and_a_large_patch_as_dark_is():
    nucleus, pink = (90, 15, 100), (225, 165, 200)
    tile = flat(pink, 128)
    for y in range(2, 128, 16):
        for x in range(2, 128, 16):
            tile[y : y + 8, x : x + 8] = nucleus  # 4 um wide at 0.5 um/px, a quarter of the area
    assert scores(tile, 0.5)["fold"] < 0.1
    tile[:64] = nucleus
    assert scores(tile, 0.5)["fold"] >= 0.5


def test_tiles_smaller_than_the_averaged_image_are_not_enlarged():
    assert scores(flat((240, 240, 240), 6), 0.05)["white"] == 1


def test_a_clean_tile_passes_and_the_stated_value_would_keep_a_poor_one():
    assert failing(CLEAN, Quality()) is None
    for name, value, reason in [("sharpness", 1.25, "blurred"), *((n, 0.95, n) for n in SCORES[1:])]:
        found = failing({**CLEAN, name: value}, Quality())
        assert found is not None
        setting = "min_sharpness" if name == "sharpness" else f"max_{name}"
        assert found == (reason, f"{name} {value:g}: kept with quality.{setting} {value:g}")
        assert failing({**CLEAN, name: value}, Quality(**{setting: value})) is None


def test_all_limits_that_a_tile_breaks_are_named():
    reason, detail = failing({**CLEAN, "white": 0.95, "sharpness": 0.5}, Quality())
    assert reason == "blurred"
    assert "quality.max_white 0.95" in detail
