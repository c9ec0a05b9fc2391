"""A slide that is open for reading: tiles from its stored tiles where these are known to be right, else OpenSlide's."""

import os
import threading
from collections import OrderedDict
from pathlib import Path
from typing import Any

import numpy as np
import openslide

from appssl.errors import DataError
from appssl.ops.slides import flat_images
from appssl.ops.slides.files import SUFFIXES, verify
from appssl.ops.slides.slide import (
    BadSlide,
    NotScanned,
    UnreadableRegion,
    extent_of_tile,
    geometry,
    open_slide,
    read_tile,
    resampled,
)
from appssl.ops.slides.stored_tiles import difference, stored_tiles


class SlideReader:
    """One open slide. Safe for threads; a process that was forked opens its own.

    Args:
        stated_mpp: um per level-0 pixel from the slide table. stored_level: a level that is decoded directly, because
            `use_stored` found it equal when the slide was prepared.
    Raises:
        BadSlide: if it cannot be opened, or its spacing is not known.
    """

    def __init__(self, path: Path, stated_mpp: float | None = None, *, stored_level: int | None = None) -> None:
        self.path = path
        self._is_stated = stated_mpp is not None
        self.handle = self._opened()
        try:
            self.geometry = geometry(self.handle, stated_mpp)
        except BadSlide:
            self.handle.close()
            raise
        self.stored_level = stored_level
        self._stored = stored_tiles(path, self.handle) if stored_level is not None else None

    def _opened(self) -> openslide.AbstractSlide:
        """Through OpenSlide, or, where it does not know the file and the spacing is stated, as a plain image."""
        try:
            return open_slide(self.path)
        except BadSlide as bad:
            suffix = self.path.suffix.lower()
            if bad.reason != "not_a_slide" or suffix not in flat_images.SUFFIXES:
                raise
            if self._is_stated:
                return flat_images.open_flat(self.path)
            if suffix in SUFFIXES:
                raise
            what = (
                "a plain image does not say how large a pixel is; state um per pixel in column mpp of the slide table"
            )
            raise BadSlide("no_spacing", what) from None

    def use_stored(self, spacing_um: float) -> str:
        """Decodes stored tiles directly from now on, if that gives what OpenSlide gives; else says why not."""
        level = self.geometry.level_for(spacing_um)
        stored = stored_tiles(self.path, self.handle)
        if stored is None or level not in stored.levels:
            return "this format or compression is not decoded directly"
        differs = difference(stored, self.handle, level)
        if differs is None:
            self._stored, self.stored_level = stored, level
        else:
            stored.close()
        return differs or ""

    def tile(self, corner: tuple[int, int], *, spacing_um: float, tile_px: int) -> np.ndarray:
        """A tile with its upper left corner at level-0 pixel `corner`, (tile_px, tile_px, 3) uint8.

        A level that is decoded directly is taken at its nearest pixel where no resampling is needed, and at the exact
        place where it is.

        Raises:
            UnreadableRegion: if pixels cannot be decoded. NotScanned: if some are not stored; they are not made white.
        """
        found = self.geometry
        level = found.level_for(spacing_um)
        if self._stored is None or level != self.stored_level:
            return self._through_openslide(corner, spacing_um, tile_px)
        extent = extent_of_tile(found, level, spacing_um=spacing_um, tile_px=tile_px)
        place = [value / found.downsamples[level] for value in corner]
        if extent == (tile_px, tile_px):
            return self._stored.region(level, (round(place[0]), round(place[1])), (tile_px, tile_px))
        first = [int(np.floor(value)) for value in place]
        begin = [value - whole for value, whole in zip(place, first, strict=True)]
        # A tile at the border may end a part of a pixel behind it; the last pixel then stands for that part.
        size = [
            min(int(np.ceil(start + length)), most - whole)
            for start, length, most, whole in zip(begin, extent, found.levels[level], first, strict=True)
        ]
        end = [min(start + length, have) for start, length, have in zip(begin, extent, size, strict=True)]
        if any(have < start + length - 1 for start, length, have in zip(begin, extent, size, strict=True)):
            raise NotScanned("the slide holds no pixels for part of the tile")
        pixels = self._stored.region(level, (first[0], first[1]), (size[0], size[1]))
        return resampled(pixels, (begin[0], begin[1], end[0], end[1]), tile_px)

    def _through_openslide(self, corner: tuple[int, int], spacing_um: float, tile_px: int) -> np.ndarray:
        try:
            return read_tile(self.handle, self.geometry, corner, spacing_um=spacing_um, tile_px=tile_px)
        except NotScanned:
            raise
        except UnreadableRegion:  # OpenSlide refuses a handle that had an error
            self.handle.close()
            self.handle = self._opened()
            raise

    def close(self) -> None:
        self.handle.close()
        if self._stored is not None:
            self._stored.close()


class Handles:
    """Opened slides, the `capacity` last used ones per process. Safe for threads and forked or spawned workers."""

    def __init__(self, capacity: int = 8) -> None:
        self._capacity = capacity
        self._start()
        self._inherited: list[Any] = []

    def _start(self) -> None:
        self._pid = os.getpid()
        self._lock = threading.Lock()
        self._open: OrderedDict[Path, SlideReader] = OrderedDict()

    def __reduce__(self) -> tuple[Any, ...]:
        return Handles, (self._capacity,)

    def get(
        self, path: Path, sha256: str, *, stated_mpp: float | None = None, stored_level: int | None = None
    ) -> SlideReader:
        """
        Args:
            stated_mpp, stored_level: as for `SlideReader`, for a slide that is not open yet.
        Raises:
            DataError: if the slide is missing, has changed, or cannot be opened.
        """
        if self._pid != os.getpid():  # forked: file positions of the parent's handles must not be shared
            self._inherited.append(self._open)  # not closed here, a lock in it may be held for ever
            self._start()
        with self._lock:
            if path in self._open:
                self._open.move_to_end(path)
                return self._open[path]
            verify(path, sha256)
            try:
                reader = SlideReader(path, stated_mpp, stored_level=stored_level)
            except BadSlide as error:
                raise DataError(f"{path}: the slide cannot be opened: {error}.") from None
            self._open[path] = reader
            if len(self._open) > self._capacity:
                self._open.popitem(last=False)  # closed when the last thread that reads from it lets go
            return reader

    def drop(self, path: Path) -> None:
        """Forgets a slide after an error: OpenSlide refuses every later read through the same handle."""
        with self._lock:
            self._open.pop(path, None)
