"""Pictures of slides and tiles for the report, as PNG bytes that depend on their content only."""

import io
from collections.abc import Callable, Sequence

import numpy as np
import polars as pl
from PIL import Image, ImageDraw, ImageFont
from scipy import ndimage

from appssl.ops.slides.pixels import Tiles
from appssl.ops.slides.tissue import evenly

_SHOWN_SLIDES, _SHOWN_TILES = 8, 8
_LARGEST_BYTES = 390_000
_SIDE, _TILE, _NAME, _GAP = 520, 80, 130, 3  # pixels: overlay, tile of a sheet, name of a line, gap
_LEAST_OUTLINE = 14  # pixels; smaller tiles are shown as dots, outlines would hide the slide
_TISSUE, _GRID, _POINT = (0, 150, 60), (20, 60, 200), (200, 30, 30)


def overlay(image: np.ndarray, mask: np.ndarray, grid: np.ndarray, points: np.ndarray) -> bytes:
    """The slide with the border of its tissue (green), grid tiles (blue), point tiles (red); small ones as dots.

    Args:
        image: (H, W, 3) uint8. mask: (H, W) bool. grid, points: (N, 4) boxes left, top, right, bottom in its pixels.
    """
    scale = min(_SIDE / max(image.shape[:2]), 8.0)  # small slides are enlarged, to be seen at all
    size = (max(1, round(image.shape[1] * scale)), max(1, round(image.shape[0] * scale)))
    picture = Image.fromarray(image).resize(size, Image.Resampling.BOX if scale < 1 else Image.Resampling.BICUBIC)
    shown = np.array(Image.fromarray(mask).resize(size, Image.Resampling.NEAREST), dtype=bool)
    pixels = np.array(picture)
    pixels[shown & ~ndimage.binary_erosion(shown, iterations=2, border_value=0)] = _TISSUE
    picture = Image.fromarray(pixels)
    draw = ImageDraw.Draw(picture)
    for boxes, color in ((grid, _GRID), (points, _POINT)):
        for left, top, right, bottom in boxes * scale:
            if right - left >= _LEAST_OUTLINE:
                draw.rectangle((left, top, right - 1, bottom - 1), outline=color)
            else:
                x, y = (left + right) / 2, (top + bottom) / 2
                draw.rectangle((x - 1, y - 1, x, y), fill=color)
    return small_png(picture)


def sheet(lines: Sequence[tuple[str, Sequence[np.ndarray]]]) -> bytes:
    """Tiles in lines, each line with a name; tiles (H, W, 3) uint8 are shrunk to 80 pixels."""
    font = ImageFont.load_default(size=11)
    width = _NAME + max(len(tiles) for _, tiles in lines) * (_TILE + _GAP) + _GAP
    picture = Image.new("RGB", (width, len(lines) * (_TILE + _GAP) + _GAP), (255, 255, 255))
    draw = ImageDraw.Draw(picture)
    for row, (name, tiles) in enumerate(lines):
        top = _GAP + row * (_TILE + _GAP)
        for part, text in enumerate(_wrapped(name)):
            draw.text((_GAP, top + 4 + 14 * part), text, fill=(0, 0, 0), font=font)
        for column, tile in enumerate(tiles):
            shown = Image.fromarray(tile).resize((_TILE, _TILE), Image.Resampling.LANCZOS)
            picture.paste(shown, (_NAME + column * (_TILE + _GAP), top))
    return small_png(picture)


def _wrapped(name: str, length: int = 18, lines: int = 5) -> list[str]:
    return [name[start : start + length] for start in range(0, len(name), length)][:lines]


def figures(
    samples: pl.DataFrame,
    slides: pl.DataFrame,
    read: Callable[[str], bytes],
    pixels: Tiles,
) -> tuple[dict[str, bytes], list[dict[str, str]]]:
    """A sheet of tiles, and overlays of at most eight slides: PNG by file name, and what the report says of each.

    Args:
        samples: index, slide_id. slides: num_tiles, outcome, reason, tissue_mm2, and the name of an `overlay`.
        read: content of an overlay.
    """
    files: dict[str, bytes] = {}
    entries = []
    tiled = slides.filter(pl.col("num_tiles") > 0)
    shown = tiled[evenly(len(tiled), _SHOWN_SLIDES)]
    of = f"{len(shown)} of {len(tiled)} slides with tiles, spread evenly over them in order of their ids"
    if len(shown):
        lines = []
        for row in shown.iter_rows(named=True):
            own = samples.filter(pl.col("slide_id") == row["slide_id"])["index"].to_numpy()
            lines.append((row["slide_id"], [pixels.read(int(n)) for n in own[evenly(len(own), _SHOWN_TILES)]]))
        files["figures/tiles.png"] = sheet(lines)
        caption = f"Up to {_SHOWN_TILES} tiles each of {of}; tiles spread evenly over the slide."
        entries.append({"file": "figures/tiles.png", "title": "Tiles", "caption": caption})
    drawn = slides.filter(pl.col("overlay").is_not_null())
    chosen = drawn[evenly(len(drawn), _SHOWN_SLIDES)]
    for number, row in enumerate(chosen.iter_rows(named=True)):
        file = f"figures/slide{number}.png"
        files[file] = read(row["overlay"])
        state = "" if row["outcome"] == "kept" else f" Not used: {row['reason']}."
        caption = (
            f"{row['num_tiles']} tiles, {row['tissue_mm2']:.2f} mm2 of tissue.{state} Border of the tissue green, grid "
            f"tiles blue, point tiles red. One of {len(chosen)} shown of {len(drawn)} slides, spread evenly."
        )
        entries.append({"file": file, "title": f"Slide {row['slide_id']}", "caption": caption})
    return files, entries


def small_png(picture: Image.Image) -> bytes:
    """A PNG below 390 kB: with ever fewer colours where it would be larger."""
    content = _png(picture)
    for colors in (256, 128, 64, 32, 16):
        if len(content) <= _LARGEST_BYTES:
            return content
        content = _png(picture.quantize(colors, dither=Image.Dither.NONE))
    while len(content) > _LARGEST_BYTES:
        picture = picture.resize((max(1, picture.width * 3 // 4), max(1, picture.height * 3 // 4)))
        content = _png(picture.quantize(64, dither=Image.Dither.NONE))
    return content


def _png(picture: Image.Image) -> bytes:
    stream = io.BytesIO()
    picture.save(stream, "PNG")
    return stream.getvalue()
