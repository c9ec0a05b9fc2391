"""Whole slides through OpenSlide: what they claim, their spacing, an image of the whole, and tiles of any spacing.

Coordinates are level-0 pixels, x to the right and y down from the slide's upper left. Spacings are um per pixel. A tile
of another spacing than a stored level is read from the next finer level and resampled with Lanczos' filter (Pillow,
three lobes, widened when shrinking, so that nothing aliases); the overview image is averaged over areas (box filter).
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import openslide
from PIL import Image

from appssl.ops.slides.files import files_of

VERSION = f"openslide-python {openslide.__version__}, OpenSlide {openslide.__library_version__}"
OVERVIEW_UM = 8.0  # um per pixel of the image of the whole slide, in which tissue is looked for
PLAUSIBLE_UM = (0.05, 20.0)
_SPACING_TOLERANCE = 0.05  # a slide may be this much coarser than the tiles asked for
_SAME_SPACING = 1e-3  # relative; below it a level is read as it is
_MAX_PIXELS_PER_BYTE = 20_000  # even blank tiles compress less; more is a header that lies
_MAX_TILE_PIXELS = 1 << 26  # a stored tile is decoded as a whole
_STRIP_PIXELS = 1 << 24  # of a level read at once for the overview
_UM_PER_UNIT = {"centimeter": 10_000.0, "inch": 25_400.0}


class BadSlide(Exception):
    """A slide that cannot be used; `reason` is a short code, `detail` says what was found and what to do."""

    def __init__(self, reason: str, detail: str, *, failed: bool = True) -> None:
        super().__init__(f"{reason}: {detail}")
        self.reason, self.detail, self.failed = reason, detail, failed


class UnreadableRegion(Exception):
    """A region whose pixels cannot be decoded."""


class NotScanned(UnreadableRegion):
    """A region of which the slide holds no pixels, as between the pieces of tissue in some formats."""


@dataclass(frozen=True)
class Geometry:
    """Size (width, height) in level-0 pixels, um per level-0 pixel in x and y, and levels as downsampling factors."""

    size: tuple[int, int]
    mpp: tuple[float, float]
    downsamples: tuple[float, ...]
    levels: tuple[tuple[int, int], ...]

    def pixels0(self, um: float) -> tuple[float, float]:
        """A length in level-0 pixels, along x and y."""
        return um / self.mpp[0], um / self.mpp[1]

    def level_for(self, spacing_um: float) -> int:
        """The coarsest level that is not coarser than `spacing_um`; 0 if all are."""
        fine = [n for n, d in enumerate(self.downsamples) if max(self.mpp) * d <= spacing_um * (1 + _SAME_SPACING)]
        return max(fine, default=0)


def open_slide(path: Path) -> openslide.OpenSlide:
    """Opens a slide; no pixel is decoded.

    Raises:
        BadSlide: `missing_file`, `not_a_slide`, `unreadable`, or `implausible_size` when the header claims more pixels
            than the bytes of the file can hold.
    """
    if not path.is_file():
        raise BadSlide("missing_file", "there is no such file; correct the path in the slide table")
    try:
        slide = openslide.OpenSlide(path)
    except openslide.OpenSlideUnsupportedFormatError:
        how = "copy it again if it is cut short, convert it to a pyramidal tiled TIFF, or take it from the table"
        raise BadSlide("not_a_slide", f"OpenSlide does not know this as a slide; {how}") from None
    except openslide.OpenSlideError as error:
        raise BadSlide("unreadable", f"cannot be opened: {error}; copy the file again") from None
    try:
        _refuse_implausible(slide, path)
    except BadSlide:
        slide.close()
        raise
    return slide


def _refuse_implausible(slide: openslide.AbstractSlide, path: Path) -> None:
    width, height = slide.dimensions
    if width < 1 or height < 1:
        raise BadSlide("implausible_size", f"the header claims {width} x {height} pixels; the file is damaged")
    stored = sum(file.stat().st_size for file in files_of(path))
    if width * height > _MAX_PIXELS_PER_BYTE * stored:
        found = f"the header claims {width} x {height} pixels, the file has {stored} bytes; it is damaged or made up"
        raise BadSlide("implausible_size", found)
    for level in range(slide.level_count):
        sides = [slide.properties.get(f"openslide.level[{level}].tile-{side}", "0") for side in ("width", "height")]
        if int(sides[0]) * int(sides[1]) > _MAX_TILE_PIXELS:
            found = f"stored tiles of {sides[0]} x {sides[1]} pixels, at most {_MAX_TILE_PIXELS} pixels are decoded"
            raise BadSlide("implausible_size", f"{found}; convert it to tiles of 256 or 512 pixels")


def geometry(slide: openslide.AbstractSlide, stated_mpp: float | None = None) -> Geometry:
    """
    Args:
        stated_mpp: um per level-0 pixel from the slide table; wins over what the slide says.
    Raises:
        BadSlide: `no_spacing` or `implausible_spacing`.
    """
    mpp = (stated_mpp, stated_mpp) if stated_mpp is not None else stored_spacing(slide.properties)
    how = "state um per pixel in column mpp of the slide table"
    if mpp is None:
        raise BadSlide("no_spacing", f"the slide does not say how large a pixel is; {how}")
    if not all(PLAUSIBLE_UM[0] <= value <= PLAUSIBLE_UM[1] for value in mpp):
        says = "the slide table" if stated_mpp is not None else "the slide"
        allowed = f"plausible are {PLAUSIBLE_UM[0]:g} to {PLAUSIBLE_UM[1]:g}"
        raise BadSlide("implausible_spacing", f"{says} says {mpp[0]:g} x {mpp[1]:g} um/px, {allowed}; {how}")
    return Geometry(slide.dimensions, mpp, tuple(slide.level_downsamples), tuple(slide.level_dimensions))


def stored_spacing(properties: Mapping[str, str]) -> tuple[float, float] | None:
    """um per pixel in x and y from OpenSlide's properties, else from the TIFF resolution tags; None if neither."""
    values = [_number(properties.get(f"openslide.mpp-{axis}")) for axis in "xy"]
    if values[0] is None or values[1] is None:
        um = _UM_PER_UNIT.get(properties.get("tiff.ResolutionUnit", ""))
        per_unit = [_number(properties.get(f"tiff.{axis}Resolution")) for axis in "XY"]
        values = [um / number if um and number else None for number in per_unit]
    return None if values[0] is None or values[1] is None else (values[0], values[1])


def _number(text: str | None) -> float | None:
    try:
        value = float(text or "")
    except ValueError:
        return None
    return value if np.isfinite(value) else None


def refuse_too_coarse(found: Geometry, spacing_um: float) -> None:
    """Raises BadSlide `too_coarse` (not a failure) if tiles of `spacing_um` would have to be invented."""
    coarsest = max(found.mpp)
    if coarsest > spacing_um * (1 + _SPACING_TOLERANCE):
        detail = (
            f"the slide has {coarsest:.4g} um/px, tiles of {spacing_um:g} were asked for; set spacing_um to at least"
        )
        raise BadSlide("too_coarse", f"{detail} {coarsest / (1 + _SPACING_TOLERANCE):.4g}", failed=False)


def overview(slide: openslide.AbstractSlide, found: Geometry, spacing_um: float) -> np.ndarray:
    """The whole slide at about `spacing_um`, (H, W, 3) uint8; memory does not grow with the level it is read from.

    Raises:
        UnreadableRegion: if a part cannot be decoded.
    """
    level = found.level_for(spacing_um)
    width, height = found.levels[level]
    spacing = max(spacing_um, max(found.mpp))
    columns, rows = (max(1, round(found.size[k] * found.mpp[k] / spacing)) for k in (0, 1))
    step = max(1, int(_STRIP_PIXELS / width * rows / height))
    strips = []
    for top in range(0, rows, step):
        count = min(step, rows - top)
        box = (top * height / rows, (top + count) * height / rows)
        first, last = int(box[0]), min(height, int(np.ceil(box[1])))
        region = _region(slide, (0, round(first * found.downsamples[level])), level, (width, last - first))
        wanted = (0.0, box[0] - first, float(width), box[1] - first)
        strips.append(np.asarray(_on_white(region).resize((columns, count), Image.Resampling.BOX, box=wanted)))
    return np.concatenate(strips)


def read_tile(
    slide: openslide.AbstractSlide, found: Geometry, corner: tuple[int, int], *, spacing_um: float, tile_px: int
) -> np.ndarray:
    """A tile with its upper left corner at level-0 pixel `corner`, (tile_px, tile_px, 3) uint8, through OpenSlide.

    Raises:
        UnreadableRegion: if pixels cannot be decoded. NotScanned: if some are not stored. Never are they made white.
    """
    level = found.level_for(spacing_um)
    extent = extent_of_tile(found, level, spacing_um=spacing_um, tile_px=tile_px)
    region = _region(slide, corner, level, (int(np.ceil(extent[0])), int(np.ceil(extent[1]))))
    if np.asarray(region.getchannel("A")).min() < 255:
        raise NotScanned("the slide holds no pixels for part of the tile")
    return resampled(np.asarray(region.convert("RGB")), (0.0, 0.0, *extent), tile_px)


def extent_of_tile(found: Geometry, level: int, *, spacing_um: float, tile_px: int) -> tuple[float, float]:
    """Width and height of a tile in pixels of a level; exactly `tile_px` where the spacings are the same."""
    extent = [tile_px * spacing_um / (mpp * found.downsamples[level]) for mpp in found.mpp]
    same = all(abs(e / tile_px - 1) < _SAME_SPACING for e in extent)
    return (float(tile_px), float(tile_px)) if same else (extent[0], extent[1])


def resampled(pixels: np.ndarray, box: tuple[float, float, float, float], tile_px: int) -> np.ndarray:
    """The box (left, top, right, bottom) of pixels (H, W, 3) uint8 as a tile of `tile_px`; as it is if it fits."""
    if box == (0.0, 0.0, tile_px, tile_px) and pixels.shape[:2] == (tile_px, tile_px):
        return pixels
    return np.asarray(Image.fromarray(pixels).resize((tile_px, tile_px), Image.Resampling.LANCZOS, box=box))


def _region(slide: openslide.AbstractSlide, corner: tuple[int, int], level: int, size: tuple[int, int]) -> Image.Image:
    try:
        return slide.read_region(corner, level, size)
    except openslide.OpenSlideError as error:
        raise UnreadableRegion(str(error)) from None


def _on_white(region: Image.Image) -> Image.Image:
    """What was not scanned is shown as glass in the overview, so that it is not taken for tissue."""
    white = Image.new("RGBA", region.size, (255, 255, 255, 255))
    return Image.alpha_composite(white, region).convert("RGB")
