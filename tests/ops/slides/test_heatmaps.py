import io

import numpy as np
from PIL import Image

from appssl.ops.slides.heatmaps import colors, geojson, heatmap


def test_colours_go_from_blue_through_white_to_red():
    low, even, high = colors(np.array([0.0, 0.5, 1.0]))
    assert low[2] > low[0] + 100
    assert np.ptp(even) == 0
    assert high[0] > high[2] + 100


def test_places_are_coloured_by_the_mean_of_their_tiles_and_others_stay():
    image = np.full((40, 60, 3), 240, np.uint8)
    boxes = np.array([[0, 0, 20, 20], [10, 0, 30, 20]], dtype=float)
    content = heatmap(image, boxes, np.array([0.0, 1.0]))
    found = np.asarray(Image.open(io.BytesIO(content)).convert("RGB")).astype(int)
    assert found.shape == (40, 60, 3)
    assert (found[30:, 40:] == 240).all()
    expected = 0.45 * 240 + 0.55 * colors(np.array([0.0, 0.5, 1.0]))
    for x, color in zip((5, 15, 25), expected, strict=True):
        np.testing.assert_allclose(found[10, x], color, atol=1)


def test_rectangles_are_closed_rings_with_their_value():
    found = geojson(np.array([[10, 20]]), (5.0, 6.0), np.array([0.25]), "p_tumour")
    (feature,) = found["features"]
    assert feature["geometry"]["coordinates"] == [[[10, 20], [15, 20], [15, 26], [10, 26], [10, 20]]]
    assert feature["properties"]["measurements"] == {"p_tumour": 0.25}
