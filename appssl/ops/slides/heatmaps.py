"""Scores of tiles on their slide: as a picture, and as GeoJSON that QuPath reads."""

from typing import Any

import numpy as np
from PIL import Image

from appssl.ops.slides.figures import small_png

SIDE = 1600  # pixels of the picture, at most
_OPACITY = 0.55
# From blue through white to red: low, even, high. Blue and red are told apart with any colour vision.
_COLORS = np.array([[33, 102, 172], [247, 247, 247], [178, 24, 43]], dtype=np.float64)


def heatmap(image: np.ndarray, boxes: np.ndarray, values: np.ndarray) -> bytes:
    """PNG of a slide with the mean score of the tiles over each place, blue for 0, white for 0.5, red for 1.

    Args:
        image: overview (H, W, 3) uint8. boxes: (N, 4) left, top, right, bottom in its pixels. values: (N,) in 0..1.
    """
    scale = min(1.0, SIDE / max(image.shape[:2]))
    size = (max(1, round(image.shape[1] * scale)), max(1, round(image.shape[0] * scale)))
    pixels = np.asarray(Image.fromarray(image).resize(size, Image.Resampling.BOX)).astype(np.float64)
    total, count = np.zeros(pixels.shape[:2]), np.zeros(pixels.shape[:2])
    for (left, top, right, bottom), value in zip(np.rint(boxes * scale).astype(int), values, strict=True):
        place = np.s_[max(0, top) : max(top + 1, bottom), max(0, left) : max(left + 1, right)]
        total[place] += value
        count[place] += 1
    covered = count > 0
    color = colors(total[covered] / count[covered])
    pixels[covered] = (1 - _OPACITY) * pixels[covered] + _OPACITY * color
    return small_png(Image.fromarray(pixels.round().astype(np.uint8)))


def colors(values: np.ndarray) -> np.ndarray:
    """(N, 3) float64 in 0..255 for values (N,) in 0..1."""
    place = np.clip(values, 0, 1) * 2
    return np.stack([np.interp(place, range(3), channel) for channel in _COLORS.T], axis=1)


def geojson(corners: np.ndarray, size: tuple[float, float], values: np.ndarray, name: str) -> dict[str, Any]:
    """Tiles as rectangles with their score, level-0 pixels, y down, as QuPath has them.

    Args:
        corners: (N, 2) x, y. size: width and height of a tile. values: (N,). name: of what is measured.
    """
    features = []
    for (x, y), value, color in zip(corners.tolist(), values.tolist(), colors(values).round().astype(int), strict=True):
        right, bottom = x + size[0], y + size[1]
        ring = [[x, y], [right, y], [right, bottom], [x, bottom], [x, y]]
        about = {"objectType": "tile", "color": color.tolist(), "measurements": {name: round(value, 6)}}
        geometry = {"type": "Polygon", "coordinates": [ring]}
        features.append({"type": "Feature", "properties": about, "geometry": geometry})
    return {"type": "FeatureCollection", "features": features}
