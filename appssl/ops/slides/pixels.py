"""Pixels of prepared tiles: read from the slides when they are asked for, from one array, or from tars of JPEGs."""

import io
import tarfile
from collections.abc import Iterable
from pathlib import Path
from typing import BinaryIO, Protocol

import imagecodecs
import numpy as np
import polars as pl

from appssl.errors import DataError
from appssl.ops.slides.reader import Handles, SlideReader
from appssl.ops.slides.slide import BadSlide, UnreadableRegion

_JPEG_QUALITY = 95


class Tiles(Protocol):
    def read(self, row: int) -> np.ndarray:
        """(tile_px, tile_px, 3) uint8."""
        ...


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


class TarTiles:
    """Tiles as JPEG in tar files, found by an index; every read is one stretch of bytes."""

    def __init__(self, folder: Path, index: pl.DataFrame) -> None:
        """
        Args:
            index: file, place and length (bytes) of each tile, in the order of the samples.
        """
        self._folder, self._places = folder, list(index.select("file", "place", "length").iter_rows())

    def read(self, row: int) -> np.ndarray:
        name, place, length = self._places[row]
        with (self._folder / name).open("rb") as file:
            file.seek(place)
            pixels: np.ndarray = imagecodecs.jpeg8_decode(file.read(length))
        return pixels


class TileStore(Protocol):
    """Where pixels of the tiles of a slide are written while it is prepared."""

    def add(self, pixels: np.ndarray) -> dict[str, int]:
        """Writes a tile and returns where it is: `place`, and `length` in bytes where that is not always the same."""
        ...


class TileArray:
    """A .npy of `count` tiles; places that nothing was added to stay 0.

    Written as a stream: on a full disk a memory map would kill the process.
    """

    def __init__(self, file: BinaryIO, count: int, tile_px: int) -> None:
        self._file, self._count, self._tile_px, self._written = file, count, tile_px, 0
        shape = (count, tile_px, tile_px, 3)
        np.lib.format.write_array_header_1_0(file, {"descr": "|u1", "fortran_order": False, "shape": shape})

    def add(self, pixels: np.ndarray) -> dict[str, int]:
        self._file.write(pixels.tobytes())
        self._written += 1
        return {"place": self._written - 1}

    def close(self) -> None:
        for _ in range(self._count - self._written):
            self._file.write(bytes(self._tile_px**2 * 3))


class TileTar:
    """A tar of JPEGs, 000000.jpg and on, as WebDataset reads them: quality 95, colours at full resolution."""

    def __init__(self, file: BinaryIO) -> None:
        self._tar = tarfile.open(fileobj=file, mode="w", format=tarfile.USTAR_FORMAT)  # noqa: SIM115  # see close
        self._written = 0

    def add(self, pixels: np.ndarray) -> dict[str, int]:
        content = imagecodecs.jpeg8_encode(pixels, level=_JPEG_QUALITY, subsampling="444")
        about = tarfile.TarInfo(f"{self._written:06}.jpg")
        about.size = len(content)
        place = self._tar.offset + tarfile.BLOCKSIZE  # the header is one block
        self._tar.addfile(about, io.BytesIO(content))
        self._written += 1
        return {"place": place, "length": len(content)}

    def close(self) -> None:
        self._tar.close()


def pack(places: Iterable[tuple[Path, int]], count: int, tile_px: int, file: BinaryIO) -> None:
    """Writes tiles one after the other; each lies at a place of a .npy file. One of those is open at a time."""
    store = TileArray(file, count, tile_px)
    opened, images = None, np.zeros((0, tile_px, tile_px, 3), np.uint8)
    for path, place in places:
        if path != opened:
            opened, images = path, np.load(path, mmap_mode="r")
        store.add(images[place])


def color_statistics(pixels: Tiles, rows: np.ndarray) -> tuple[list[float], list[float]]:
    """Mean and standard deviation of red, green, blue over tiles, of values in 0..1; 0.5 and 0.25 if there are none."""
    if len(rows) == 0:
        return [0.5] * 3, [0.25] * 3
    total, squares = np.zeros(3), np.zeros(3)
    for row in rows:
        values = pixels.read(int(row)).reshape(-1, 3) / 255
        total, squares = total + values.mean(axis=0), squares + (values**2).mean(axis=0)
    mean = total / len(rows)
    return mean.tolist(), np.sqrt(np.maximum(squares / len(rows) - mean**2, 0)).tolist()
