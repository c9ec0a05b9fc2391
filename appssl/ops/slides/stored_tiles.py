"""The tiles that a TIFF slide is stored in, decoded directly: several times faster than OpenSlide's regions.

Only where the bytes mean the same to both: pyramids of Aperio and plain tiled TIFFs, whose levels are JPEG (photometric
YCbCr or RGB, with or without shared tables) or Aperio's RGB JPEG 2000. A level is at integer pixels here; OpenSlide
interpolates between them where its downsampling factor is no integer. `difference` compares the two on sampled tiles
at places where OpenSlide does not interpolate; a slide that differs is read through OpenSlide.
"""

import os
import threading
from collections import OrderedDict
from dataclasses import dataclass
from pathlib import Path

import imagecodecs
import numpy as np
import openslide
import tifffile

from appssl.ops.slides.slide import NotScanned, UnreadableRegion

_VENDORS = ("aperio", "generic-tiff")
_JPEG, _JPEG2000_RGB = 7, 33005
_COLORS = {2: "RGB", 6: "YCBCR"}  # photometric interpretation -> what the JPEG components are
_CACHE_BYTES = 192 << 20  # of decoded tiles; two rows of tiles of a slide 100,000 pixels wide
_CHECKED_TILES = 5  # of each level
_CHECKED_SIDE = 64  # pixels
_LARGEST_SHIFT = 0.01  # of a pixel, by which OpenSlide may interpolate in a comparison
_LARGEST_DIFFERENCE = 3  # of 255, that such a shift can make


@dataclass(frozen=True)
class Level:
    """One level: size and tile size (width, height) in its pixels, and where the bytes of its tiles lie, row by row."""

    size: tuple[int, int]
    tile: tuple[int, int]
    offsets: tuple[int, ...]
    counts: tuple[int, ...]
    compression: int
    colors: str
    tables: bytes | None

    @property
    def columns(self) -> int:
        return -(-self.size[0] // self.tile[0])


class StoredTiles:
    """The levels of a slide that can be decoded directly, by OpenSlide's number. Safe for threads."""

    def __init__(self, path: Path, levels: dict[int, Level]) -> None:
        self.levels = levels
        self._file = os.open(path, os.O_RDONLY)
        self._lock = threading.Lock()
        self._cache: OrderedDict[tuple[int, int], np.ndarray] = OrderedDict()
        self._cached_bytes = 0

    def close(self) -> None:
        os.close(self._file)
        self._file = -1
        self._cache.clear()

    def __del__(self) -> None:
        if self._file >= 0:
            os.close(self._file)

    def region(self, level: int, corner: tuple[int, int], size: tuple[int, int]) -> np.ndarray:
        """Pixels (height, width, 3) uint8 of a level.

        Args:
            corner: x, y. size: width, height; both in pixels of the level.
        Raises:
            NotScanned: if it leaves the level or holds a tile that is not stored. UnreadableRegion: if bytes cannot be
                decoded.
        """
        about = self.levels[level]
        (x, y), (width, height), (tile_width, tile_height) = corner, size, about.tile
        if x < 0 or y < 0 or x + width > about.size[0] or y + height > about.size[1]:
            raise NotScanned("the slide holds no pixels for part of the tile")
        columns = range(x // tile_width, -(-(x + width) // tile_width))
        rows = range(y // tile_height, -(-(y + height) // tile_height))
        if len(columns) == len(rows) == 1 and x % tile_width == y % tile_height == 0 and size == about.tile:
            return self._tile(level, rows[0] * about.columns + columns[0], keep=False)
        pixels = np.empty((height, width, 3), np.uint8)
        for row in rows:
            top = row * tile_height - y
            for column in columns:
                left = column * tile_width - x
                tile = self._tile(level, row * about.columns + column)
                inside = tile[max(0, -top) : height - top, max(0, -left) : width - left]
                pixels[max(0, top) : top + tile_height, max(0, left) : left + tile_width] = inside
        return pixels

    def _tile(self, level: int, number: int, *, keep: bool = True) -> np.ndarray:
        with self._lock:
            found = self._cache.get((level, number))
            if found is not None:
                self._cache.move_to_end((level, number))
                return found
        pixels = self._decoded(self.levels[level], number)
        if keep:
            with self._lock:
                self._cache[level, number] = pixels
                self._cached_bytes += pixels.nbytes
                while self._cached_bytes > _CACHE_BYTES:
                    self._cached_bytes -= self._cache.popitem(last=False)[1].nbytes
        return pixels

    def _decoded(self, about: Level, number: int) -> np.ndarray:
        count = about.counts[number]
        if count == 0:
            raise NotScanned("the slide holds no pixels for part of the tile")
        stored = os.pread(self._file, count, about.offsets[number])
        try:
            if about.compression == _JPEG:
                pixels = imagecodecs.jpeg8_decode(
                    stored, tables=about.tables, colorspace=about.colors, outcolorspace="RGB"
                )
            else:
                pixels = imagecodecs.jpeg2k_decode(stored)
        except (RuntimeError, ValueError) as error:
            raise UnreadableRegion(f"stored tile {number}: {error}") from None
        if len(stored) != count or pixels.shape != (about.tile[1], about.tile[0], 3) or pixels.dtype != np.uint8:
            raise UnreadableRegion(
                f"stored tile {number}: {pixels.shape} {pixels.dtype} decoded from {len(stored)} bytes"
            )
        return pixels


def stored_tiles(path: Path, slide: openslide.AbstractSlide) -> StoredTiles | None:
    """The levels that can be decoded directly; None if there are none."""
    if slide.properties.get("openslide.vendor") not in _VENDORS:
        return None
    try:
        with tifffile.TiffFile(path) as tiff:
            pages = [page for page in tiff.pages if isinstance(page, tifffile.TiffPage)]
            known = [level for page in pages if (level := _level(page)) is not None]
    except (tifffile.TiffFileError, OSError, ValueError, KeyError, IndexError):
        return None  # OpenSlide is then what reads it, and what says what is wrong
    sizes = [level.size for level in known]
    levels = {
        number: known[sizes.index(size)]
        for number, size in enumerate(slide.level_dimensions)
        if sizes.count(size) == 1 and slide.level_dimensions.count(size) == 1
    }
    return StoredTiles(path, levels) if levels else None


def _level(page: tifffile.TiffPage) -> Level | None:
    compression, photometric = int(page.compression), int(page.photometric)
    is_known = (compression == _JPEG and photometric in _COLORS) or (compression == _JPEG2000_RGB and photometric == 2)
    plain = page.samplesperpixel == 3 and page.bitspersample == 8 and int(page.planarconfig) == 1
    if not (page.is_tiled and is_known and plain):
        return None
    level = Level(
        size=(page.imagewidth, page.imagelength),
        tile=(page.tilewidth, page.tilelength),
        offsets=tuple(page.dataoffsets),
        counts=tuple(page.databytecounts),
        compression=compression,
        colors=_COLORS[photometric],
        tables=page.jpegtables,
    )
    num_tiles = level.columns * -(-level.size[1] // level.tile[1])
    return level if len(level.offsets) == len(level.counts) == num_tiles else None


def difference(stored: StoredTiles, slide: openslide.AbstractSlide, level: int) -> str | None:
    """What differs between the two on sampled tiles of a level; None if nothing does."""
    about, factor = stored.levels[level], slide.level_downsamples[level]
    columns, rows = about.size[0] // about.tile[0], about.size[1] // about.tile[1]
    compared = 0
    for number in np.linspace(0, columns * rows - 1, _CHECKED_TILES).round().astype(int) if columns * rows else []:
        begin = (int(number) % columns * about.tile[0], int(number) // columns * about.tile[1])
        places = [_without_interpolation(start, side, factor) for start, side in zip(begin, about.tile, strict=True)]
        if None in places:
            continue
        (x, x0), (y, y0) = places  # type: ignore[misc]
        side = min(_CHECKED_SIDE, about.tile[0] - (x - begin[0]), about.tile[1] - (y - begin[1]))
        try:
            own = stored.region(level, (x, y), (side, side)).astype(int)
        except UnreadableRegion:
            continue  # as unreadable to OpenSlide; found when the tile is read
        try:
            theirs = slide.read_region((x0, y0), level, (side, side))
        except openslide.OpenSlideError as error:
            return f"OpenSlide cannot read level {level} at {x}, {y}: {error}"
        largest = int(np.abs(own - np.asarray(theirs.convert("RGB"))).max())
        if largest > (_LARGEST_DIFFERENCE if factor != round(factor) else 0):
            return f"level {level} at {x}, {y} differs by {largest} of 255"
        compared += 1
    return None if compared else f"no tile of level {level} can be compared"


def _without_interpolation(start: int, side: int, factor: float) -> tuple[int, int] | None:
    """A pixel of a level in the first half of a tile, and the level-0 pixel it begins at; None if none does."""
    places = np.arange(start, start + max(1, side // 2))
    exact = places * factor
    shift = np.abs(exact - exact.round()) / factor
    best = int(shift.argmin())
    return (int(places[best]), int(exact[best].round())) if shift[best] <= _LARGEST_SHIFT else None
