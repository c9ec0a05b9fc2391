"""Pixels of prepared tiles: read from the slides when they are asked for, or from one array of all of them."""

from collections.abc import Iterable
from pathlib import Path
from typing import BinaryIO

import numpy as np
import polars as pl

from appssl.errors import DataError
from appssl.ops.slide_reader import Handles, SlideReader
from appssl.ops.slides import BadSlide, UnreadableRegion


class LazyTiles:
    """Tiles read from the slides when they are asked for; threads and worker processes may share it."""

    def __init__(
        self, slides_root: Path, samples: pl.DataFrame, slides: pl.DataFrame, *, spacing_um: float, tile_px: int
    ) -> None:
        """
        Args:
            samples: slide_id, x, y of each tile, level-0 pixels. slides: slide_id, path, sha256, stated_mpp,
                stored_level.
        """
        self._root, self._spacing_um, self._tile_px = slides_root, spacing_um, tile_px
        self._slides = {row["slide_id"]: row for row in slides.iter_rows(named=True)}
        self._places = list(samples.select("slide_id", "x", "y").iter_rows())
        self._handles = Handles()

    def reader(self, name: str) -> SlideReader:
        """The open slide of that id; errors as for `read`."""
        about = self._slides[name]
        known = {"stated_mpp": about["stated_mpp"], "stored_level": about["stored_level"]}
        return self._handles.get(self._root / about["path"], about["sha256"], **known)

    def read(self, row: int) -> np.ndarray:
        """(tile_px, tile_px, 3) uint8.

        Raises:
            DataError: if the slide is gone, has changed, or cannot be read any more.
        """
        name, x, y = self._places[row]
        reader = self.reader(name)
        try:
            return reader.tile((x, y), spacing_um=self._spacing_um, tile_px=self._tile_px)
        except (UnreadableRegion, BadSlide) as error:
            self._handles.drop(reader.path)
            why = "Check the disk, or prepare the data again with check_tiles on"
            raise DataError(f"{reader.path}: the tile at x {x}, y {y} cannot be read: {error}. {why}.") from None


class PackedTiles:
    """Tiles of a memory-mapped array (N, tile_px, tile_px, 3) uint8."""

    def __init__(self, path: Path) -> None:
        self._images = np.load(path, mmap_mode="r")

    def read(self, row: int) -> np.ndarray:
        return np.asarray(self._images[row])


def write_header(file: BinaryIO, count: int, tile_px: int) -> None:
    """Begins a .npy of tiles. Written as a stream: on a full disk a memory map would kill the process."""
    shape = (count, tile_px, tile_px, 3)
    np.lib.format.write_array_header_1_0(file, {"descr": "|u1", "fortran_order": False, "shape": shape})


def pack(places: Iterable[tuple[Path, int]], count: int, tile_px: int, file: BinaryIO) -> None:
    """Writes tiles one after the other; each lies at a position of a .npy file. One of those is open at a time."""
    write_header(file, count, tile_px)
    opened, images = None, np.zeros((0, tile_px, tile_px, 3), np.uint8)
    for path, position in places:
        if path != opened:
            opened, images = path, np.load(path, mmap_mode="r")
        file.write(images[position].tobytes())


def color_statistics(pixels: LazyTiles | PackedTiles, rows: np.ndarray) -> tuple[list[float], list[float]]:
    """Mean and standard deviation of red, green, blue over tiles, of values in 0..1; 0.5 and 0.25 if there are none."""
    if len(rows) == 0:
        return [0.5] * 3, [0.25] * 3
    total, squares = np.zeros(3), np.zeros(3)
    for row in rows:
        values = pixels.read(int(row)).reshape(-1, 3) / 255
        total, squares = total + values.mean(axis=0), squares + (values**2).mean(axis=0)
    mean = total / len(rows)
    return mean.tolist(), np.sqrt(np.maximum(squares / len(rows) - mean**2, 0)).tolist()
