"""Prepared slides as data: their tiles in the order of `samples`, and scores drawn on a slide."""

from typing import Any

import numpy as np
import polars as pl

from appssl.errors import DataError
from appssl.ops.slides.heatmaps import SIDE, geojson, heatmap
from appssl.ops.slides.pixels import LazyTiles, Tiles
from appssl.ops.slides.slide import OVERVIEW_UM, UnreadableRegion, overview


class TiledSlides:
    """Prepared tiles; `read` gives (tile_px, tile_px, 3) uint8, in any number of processes and threads."""

    def __init__(self, meta: Any, samples: pl.DataFrame, pixels: Tiles) -> None:
        self.meta, self.samples, self._pixels = meta, samples, pixels

    def read(self, row: int) -> np.ndarray:
        return self._pixels.read(row)

    def heatmap(self, slide_id: str, values: np.ndarray, name: str) -> tuple[bytes, dict[str, Any]]:
        """PNG and GeoJSON with a value (N,) in 0..1 for each tile of a slide, in the order of `samples`.

        Raises:
            DataError: if the slide cannot be read any more, or pixels were stored and the slides are not known.
        """
        if not isinstance(self._pixels, LazyTiles):
            raise DataError("heatmaps need the slides: prepare with pixels: slides.")
        reader = self._pixels.reader(slide_id)
        found = reader.geometry
        try:
            longest = max(size * mpp for size, mpp in zip(found.size, found.mpp, strict=True))
            image = overview(reader.handle, found, min(OVERVIEW_UM, longest / SIDE))  # finer of a small slide
        except UnreadableRegion as error:
            raise DataError(f"{reader.path}: the overview cannot be read: {error}.") from None
        own = self.samples.filter(pl.col("slide_id") == slide_id)
        corners = own.select("x", "y").to_numpy()
        size = found.pixels0(self.meta.facts["size_px"] * self.meta.facts["spacing_um"])
        scale = np.array([image.shape[1] / found.size[0], image.shape[0] / found.size[1]])
        boxes = np.hstack([corners * scale, (corners + np.array(size)) * scale])
        return heatmap(image, boxes, values), geojson(corners, size, values, name)
