"""Tissue masks as GeoJSON that QuPath reads and writes, in level-0 pixels, y down.

A mask is exported along the edges of its pixels, so that the same file given back gives the same mask. A pixel of a
mask that is given belongs to it when its centre lies inside a polygon.
"""

import json
from pathlib import Path
from typing import Any

import numpy as np
import shapely

_SHAPES = ("Polygon", "MultiPolygon")
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
        mask |= _filled(shapely.transform(polygon, lambda corners: corners * scale), shape)
    return mask


def _polygons(path: Path) -> list[Any]:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise BadMask(f"cannot be read ({error.strerror}); correct the path") from None
    except ValueError as error:
        raise BadMask(f"is no JSON ({error}); {_HOW}") from None
    found = []
    for number, geometry in enumerate(_geometries(content), 1):
        kind = geometry.get("type") if isinstance(geometry, dict) else None
        if kind not in _SHAPES:
            raise BadMask(f"shape {number} is {kind or 'nothing'}, not {' or '.join(_SHAPES)}; {_HOW}")
        try:
            shape = shapely.from_geojson(json.dumps(geometry, allow_nan=False))
        except (shapely.GEOSException, ValueError) as error:
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


def _filled(polygon: Any, shape: tuple[int, int]) -> np.ndarray:
    """Pixels whose centre lies inside a polygon (holes are outside), (H, W) bool, by the parity of edges left of it.

    An edge is crossed by the rows whose centre lies between its ends, the upper end included.
    """
    toggles = np.zeros((shape[0], shape[1] + 1), np.int32)
    for ring in (polygon.exterior, *polygon.interiors):
        corners = shapely.get_coordinates(ring)
        begin, end = corners[:-1], corners[1:]
        upper, lower = np.where((begin[:, 1:] <= end[:, 1:]), (begin, end), (end, begin))
        first = np.clip(np.ceil(upper[:, 1] - 0.5), 0, shape[0]).astype(int)
        counts = np.clip(np.ceil(lower[:, 1] - 0.5), 0, shape[0]).astype(int) - first
        edge = np.repeat(np.arange(len(begin)), counts)
        rows = np.arange(len(edge)) - np.repeat(counts.cumsum() - counts, counts) + first[edge]
        along = (rows + 0.5 - upper[edge, 1]) / (lower[edge, 1] - upper[edge, 1])
        x = upper[edge, 0] + along * (lower[edge, 0] - upper[edge, 0])
        np.add.at(toggles, (rows, np.clip(np.ceil(x - 0.5), 0, shape[1]).astype(int)), 1)
    inside: np.ndarray = toggles[:, :-1].cumsum(axis=1) % 2 == 1
    return inside
