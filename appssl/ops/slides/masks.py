"""Tissue masks as GeoJSON that QuPath reads and writes, in level-0 pixels, y down.

A mask is exported along the edges of its pixels, so that the same file given back gives the same mask. A pixel of a
mask that is given belongs to it when its centre lies inside a polygon.
"""

import json
from pathlib import Path
from typing import Any

import numpy as np
import shapely

from appssl.errors import NOT_JSON

_SHAPES = ("Polygon", "MultiPolygon")
LARGEST_FILE, MOST_SHAPES = 256 << 20, 100_000  # of a mask; a million points are 40 MiB
_CROSSINGS = 1 << 22  # edges times rows that are worked on at once: 300 MB
_MOST_CROSSINGS = 1 << 27  # of one ring, 10 s; a million points along tissue cross a few million rows
_HOW = "draw it again, or repair it in QuPath, and export it as GeoJSON"


class BadMask(Exception):
    """A file that cannot be used as a mask; the text says what was found and what to do."""


def to_geojson(mask: np.ndarray, size: tuple[int, int]) -> dict[str, Any]:
    """A feature per part of the mask, with its holes and its area.

    Args:
        mask: (H, W) bool. size: width and height of the slide, level-0 pixels.
    """
    steps = np.diff(np.pad(mask, ((0, 0), (1, 1))).astype(np.int8), axis=1)
    rows, first = np.nonzero(steps == 1)
    last = np.nonzero(steps == -1)[1]
    runs = shapely.box(first, rows, last, rows + 1)
    scale = np.array(size) / mask.shape[::-1]
    parts = shapely.get_parts(shapely.normalize(shapely.union_all(runs)))
    features = []
    for part in shapely.transform(parts, lambda corners: (corners * scale).round(3)):
        about = {"objectType": "annotation", "classification": {"name": "tissue"}}
        geometry = json.loads(shapely.to_geojson(part))
        features.append({"type": "Feature", "properties": about, "geometry": geometry})
    return {"type": "FeatureCollection", "features": features}


def read_mask(path: Path, size: tuple[int, int], shape: tuple[int, int]) -> np.ndarray:
    """The polygons of a GeoJSON file as a mask, (H, W) bool; empty if none of them covers the slide.

    Args:
        size: width and height of the slide, level-0 pixels. shape: H, W of the mask.
    Raises:
        BadMask: if the file is missing or no GeoJSON, or a geometry is no polygon or crosses itself.
    """
    mask = np.zeros(shape, bool)
    scale = np.array(shape[::-1]) / np.array(size)
    for polygon in _polygons(path):
        _fill(mask, shapely.transform(polygon, lambda corners: corners * scale))
    return mask


def _polygons(path: Path) -> list[Any]:
    try:
        if (size := path.stat().st_size) > LARGEST_FILE:
            raise BadMask(f"has {size >> 20} MiB, at most {LARGEST_FILE >> 20} are read; draw it with fewer points")
        content = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise BadMask(f"cannot be read ({error.strerror}); correct the path") from None
    except NOT_JSON as error:
        raise BadMask(f"is no JSON ({error}); {_HOW}") from None
    found = []
    geometries = _geometries(content)
    if len(geometries) > MOST_SHAPES:
        raise BadMask(f"has {len(geometries):,} shapes, at most {MOST_SHAPES:,} are read; are these cells, not tissue?")
    for number, geometry in enumerate(geometries, 1):
        kind = geometry.get("type") if isinstance(geometry, dict) else None
        if kind not in _SHAPES:
            raise BadMask(f"shape {number} is {kind or 'nothing'}, not {' or '.join(_SHAPES)}; {_HOW}")
        try:
            shape = shapely.from_geojson(json.dumps(geometry, allow_nan=False))
        except (shapely.GEOSException, *NOT_JSON) as error:
            raise BadMask(f"shape {number} cannot be understood ({error}); {_HOW}") from None
        if not shapely.is_valid(shape):
            raise BadMask(f"shape {number} is no area: {shapely.is_valid_reason(shape)} (level-0 x y); {_HOW}")
        found += shapely.get_parts(shape).tolist()
    return found


def _geometries(content: Any) -> list[Any]:
    """Of a feature collection, a list of features as QuPath writes them, a feature or a geometry."""
    if isinstance(content, dict) and content.get("type") == "FeatureCollection":
        content = content.get("features")
    features = content if isinstance(content, list) else [content]
    return [item.get("geometry") if isinstance(item, dict) and "geometry" in item else item for item in features]


def _fill(mask: np.ndarray, polygon: Any) -> None:
    """Sets pixels of a mask (H, W) whose centre lies inside a polygon; holes are outside."""
    corners = shapely.get_coordinates(polygon)
    if not np.isfinite(corners).all():  # of the file's numbers, or where scaling them left the range of float64
        raise BadMask(f"a corner lies at infinity; {_HOW}")
    shape = np.array(mask.shape)
    low = np.clip(np.floor(corners.min(0))[::-1], 0, shape).astype(int)  # row, column
    high = np.clip(np.ceil(corners.max(0))[::-1], low, shape).astype(int)
    if (high > low).all():
        window = mask[low[0] : high[0], low[1] : high[1]]
        window |= _filled(polygon, low, window.shape)


def _filled(polygon: Any, first: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
    """Pixels inside a polygon by the parity of edges left of them, (h, w) bool of the window that begins at `first`."""
    toggles = np.zeros((shape[0], shape[1] + 1), np.int32)
    for ring in (polygon.exterior, *polygon.interiors):
        corners = shapely.get_coordinates(ring) - first[::-1]
        begin, end = corners[:-1], corners[1:]
        upper, lower = np.where((begin[:, 1:] <= end[:, 1:]), (begin, end), (end, begin))
        rows = np.clip(np.ceil(np.stack([upper[:, 1], lower[:, 1]]) - 0.5), 0, shape[0]).astype(int)
        crossings = np.cumsum(rows[1] - rows[0])
        if crossings[-1] > _MOST_CROSSINGS:
            raise BadMask(f"its {len(begin):,} edges cross {crossings[-1]:,} rows; draw it with fewer points")
        blocks = crossings // _CROSSINGS
        for edges in np.split(np.arange(len(begin)), np.flatnonzero(np.diff(blocks)) + 1):
            _toggle(toggles, upper[edges], lower[edges], *rows[:, edges])
    inside: np.ndarray = toggles[:, :-1].cumsum(axis=1) % 2 == 1
    return inside


def _toggle(toggles: np.ndarray, upper: np.ndarray, lower: np.ndarray, first: np.ndarray, last: np.ndarray) -> None:
    """Counts, right of each edge, the rows it crosses: those whose centre lies between its ends, the upper included."""
    counts = last - first
    edge = np.repeat(np.arange(len(counts)), counts)
    rows = np.arange(len(edge)) - np.repeat(counts.cumsum() - counts, counts) + first[edge]
    along = (rows + 0.5 - upper[edge, 1]) / (lower[edge, 1] - upper[edge, 1])
    x = upper[edge, 0] + along * (lower[edge, 0] - upper[edge, 0])
    columns = np.clip(np.ceil(x - 0.5), 0, toggles.shape[1] - 1).astype(int)
    np.add.at(toggles, (rows, columns), 1)
