"""Tiles per second from a large slide, beside other readers and bare JPEG decoding of the same bytes, one at a time.

python benchmarks/wsi_tiles.py [SLIDE]      (without a slide: one of 40,960 x 40,960 pixels is made)

OpenSlide is always measured, hs2p and TIAToolbox where they are installed: pip install 'appssl[bench]'.

The same tiles are read in the same order by each. `bare decoding` decodes the stored tiles alone, without opening
files, cutting or resampling: nothing that reads JPEG tiles can be faster. Times are CPU times, the best of three.
"""

import sys
import tempfile
import time
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path

import cv2
import imagecodecs
import numpy as np
import tifffile

from appssl.ops.slides.reader import SlideReader
from appssl.ops.slides.slide import overview, read_tile
from appssl.ops.slides.stored_tiles import stored_tiles
from appssl.ops.slides.tissue import find_tissue

SIDE, TILE, DISTINCT, TILES = 40_960, 256, 128, 600


def make(path: Path) -> None:
    """A pyramid of JPEG tiles; what is on them is drawn tissue, a few tiles over and over."""
    from appssl.synthetic.wsi import MPP, _draw, _regions

    rng = np.random.default_rng(0)
    side = TILE * 16
    image = _draw(side, _regions(side, True, has_pen=False, has_blur=False, rng=rng), rng)
    glass = np.full((TILE, TILE, 3), 240, np.uint8)
    with tifffile.TiffWriter(path, bigtiff=True) as writer:
        for level in range(5):
            small = image[:: 2**level, :: 2**level]
            count = SIDE // 2**level // TILE
            parts = [
                small[y : y + TILE, x : x + TILE]
                for y in range(0, len(small) - TILE + 1, TILE)
                for x in range(0, len(small) - TILE + 1, TILE)
            ][:DISTINCT]
            encoded = [imagecodecs.jpeg8_encode(np.ascontiguousarray(part), level=85) for part in (*parts, glass)]
            own = (
                encoded[-1 if min(x, y, count - 1 - x, count - 1 - y) < count // 10 else rng.integers(len(parts))]
                for y in range(count)
                for x in range(count)
            )
            writer.write(
                own,
                shape=(count * TILE, count * TILE, 3),
                dtype=np.uint8,
                tile=(TILE, TILE),
                photometric="ycbcr",
                subsampling=(2, 2),
                compression="jpeg",
                resolution=(1e4 / MPP / 2**level,) * 2,
                resolutionunit="CENTIMETER",
                subfiletype=int(level > 0),
                metadata=None,
            )


def per_second(work: Callable[[], object], count: int) -> float:
    best = np.inf
    for _ in range(3):
        begun = time.process_time()
        work()
        best = min(best, time.process_time() - begun)
    return count / best


Reader = Callable[[tuple[int, int], float, int], np.ndarray]


def ours(path: Path, spacing_um: float) -> Reader:
    reader = SlideReader(path)
    assert reader.use_stored(spacing_um) == ""
    return lambda corner, spacing, side: reader.tile(corner, spacing_um=spacing, tile_px=side)


def openslide(path: Path, spacing_um: float) -> Reader:
    reader = SlideReader(path)
    return lambda corner, spacing, side: read_tile(
        reader.handle, reader.geometry, corner, spacing_um=spacing, tile_px=side
    )


def hs2p(path: Path, spacing_um: float) -> Reader:
    from hs2p.wsi.wsi import WSI

    slide = WSI(path=path, backend="openslide")
    return lambda corner, spacing, side: slide.read_region_at_spacing(
        location=corner, requested_spacing_um=spacing, size=(side, side), tolerance=0.01, interpolation="area"
    )


def tiatoolbox(path: Path, spacing_um: float) -> Reader:
    from tiatoolbox.wsicore.wsireader import OpenSlideWSIReader

    slide = OpenSlideWSIReader(path)
    return lambda corner, spacing, side: slide.read_rect(corner, (side, side), resolution=spacing, units="mpp")


OTHERS = [openslide, *(reader for reader in (hs2p, tiatoolbox) if find_spec(reader.__name__))]


def compare(name: str, path: Path, corners: list[tuple[int, int]], spacing_um: float, tile_px: int) -> None:
    """Every reader is opened anew for each job, as its caches would help the next one."""

    def rate(opened: Callable[[Path, float], Reader]) -> float:
        def read_all() -> None:
            read = opened(path, spacing_um)
            for corner in corners:
                assert read(corner, spacing_um, tile_px).shape[:2] == (tile_px, tile_px)

        return per_second(read_all, len(corners))

    found = rate(ours)
    print(f"{name:34s} {found:7.0f} tiles/s", end="", flush=True)
    for other in OTHERS:
        theirs = rate(other)
        print(f", {other.__name__} {theirs:5.0f} (ratio {found / theirs:4.2f})", end="", flush=True)
    print()


def bare(path: Path, corners: list[tuple[int, int]]) -> None:
    reader = SlideReader(path)
    stored = stored_tiles(path, reader.handle)
    assert stored is not None
    level = stored.levels[0]
    with path.open("rb") as file:
        contents = []
        for x, y in corners:
            number = y // TILE * level.columns + x // TILE
            file.seek(level.offsets[number])
            contents.append(file.read(level.counts[number]))

    def decode() -> None:
        for content in contents:
            imagecodecs.jpeg8_decode(content, tables=level.tables, colorspace=level.colors, outcolorspace="RGB")

    print(f"{'bare decoding of the same bytes':34s} {per_second(decode, len(contents)):7.0f} tiles/s", flush=True)


def main() -> None:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(sys.argv[1]) if len(sys.argv) > 1 else Path(folder) / "large.tif"
        if len(sys.argv) < 2:
            make(path)
        reader = SlideReader(path)
        (width, height), mpp = reader.geometry.size, reader.geometry.mpp[0]
        print(f"{path.name}: {width} x {height} pixels of {mpp:.3f} um, {path.stat().st_size / 1e6:.0f} MB")
        columns, rows = width // TILE, height // TILE
        aligned = [(x * TILE, y * TILE) for y in range(rows // 3, rows) for x in range(columns)][:TILES]
        random = [
            tuple(c) for c in np.random.default_rng(1).integers(0, (width - 600, height - 600), (TILES, 2)).tolist()
        ]
        bare(path, aligned)
        compare("aligned, as stored", path, aligned, mpp, TILE)
        between = [(x * 224 + 7, y * 224 + 7) for y in range(rows // 3, rows) for x in range(columns)]
        between = [(x, y) for x, y in between if x < width - 600 and y < height - 600][:TILES]
        compare("224 px between stored tiles", path, between, mpp, 224)
        compare("224 px, random order", path, random, mpp, 224)
        compare("224 px resampled to 1.3 x spacing", path, between, 1.3 * mpp, 224)
        mask(overview(reader.handle, reader.geometry, 8.0))


def mask(image: np.ndarray) -> None:
    """Time of a tissue mask on all cores, for the overview of a slide of 80,000 x 100,000 pixels of 0.25 um."""
    image = cv2.resize(image, (3125, 2500))
    seconds = []
    for _ in range(10):
        begun = time.perf_counter()
        find_tissue(image, spacing_um=8.0, min_part_um2=10_000, min_hole_um2=10_000)
        seconds.append(time.perf_counter() - begun)
    size = f"{image.shape[1]} x {image.shape[0]} pixels"
    print(f"mask of {size}: median {np.median(seconds):.3f} s, {cv2.getNumThreads()} threads")


if __name__ == "__main__":
    main()
