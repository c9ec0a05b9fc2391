"""Contact sheets: lines of small images with captions, as PNG bytes that depend on their content only."""

import io
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import polars as pl

from appssl.ops.images.selection import hash_order
from appssl.ops.sheet import Sheet

_CELL, _TEXT, _NAME = 0.75, 0.26, 1.3  # inches: side of a tile, its caption, the name of a line
_GREY = 200
_TILES, _LABELS, _REASONS, _PAIRS = 10, 12, 16, 10  # at most: tiles in a line, lines of each sheet

Row = dict[str, Any]
Line = tuple[str, Sequence["Tile"]]


@dataclass(frozen=True)
class Tile:
    """One image of a sheet: (H, W, 3) uint8, or None where there is nothing to show; and its caption."""

    image: np.ndarray | None
    caption: str = ""


def figures(units: pl.DataFrame, image_of: Callable[[Row], np.ndarray]) -> list[Sheet]:
    """Kept images per web label, rejected images per reason, and copies beside the image that stays.

    Args:
        units: all images with id, split, label, outcome, reason, copy_of and `pixels` (null where nothing was decoded).
        image_of: a row of them to (H, W, 3) uint8.
    """

    def tile(row: Row, caption: str = "") -> Tile:
        return Tile(image_of(row) if row["pixels"] else None, caption)

    kept = units.filter((pl.col("outcome") == "kept") & (pl.col("split") == "train"))
    labels = kept["label"].unique().sort(nulls_last=True).to_list()
    lines: list[Line] = []
    for label in labels[:_LABELS]:
        chosen = sorted(
            kept.filter(pl.col("label").eq_missing(label)).to_dicts(), key=lambda row: hash_order(row["id"])
        )
        lines.append((label or "no label", [tile(row) for row in chosen[:_TILES]]))
    caption = f"A random choice for each of {len(lines)} of {len(labels)} web labels."
    sheets = [Sheet("figures/kept.png", "Kept training images", caption, sheet(lines))]
    rejected = units.filter((pl.col("outcome") != "kept") & pl.col("copy_of").is_null()).sort("reason", "id")
    if not rejected.is_empty():
        lines = []
        for (reason,), part in rejected.partition_by("reason", as_dict=True, maintain_order=True).items():
            lines.append((str(reason), [tile(row, _short(row["id"])) for row in part.head(_TILES).to_dicts()]))
        caption = f"By reason, of {len(rejected)}; grey where nothing could be decoded."
        sheets.append(Sheet("figures/rejected.png", "Rejected images", caption, sheet(lines[:_REASONS])))
    copies = units.filter(pl.col("copy_of").is_not_null()).sort("reason", "id", descending=[True, False])
    if not copies.is_empty():
        stays = {row["id"]: row for row in units.filter(pl.col("id").is_in(copies["copy_of"].implode())).to_dicts()}
        lines = []
        for row in copies.head(_PAIRS).to_dicts():
            pair = (stays[row["copy_of"]], row)
            lines.append((row["reason"], [tile(r, f"{r['label']} ({r['split']})\n{_short(r['id'])}") for r in pair]))
        caption = f"{len(lines)} of {len(copies)}: the image that stays, then its copy. Those across parts come first."
        sheets.append(Sheet("figures/duplicates.png", "Duplicates", caption, sheet(lines)))
    return sheets


def _short(text: str) -> str:
    return text if len(text) <= 16 else f"…{text[-15:]}"


def sheet(lines: Sequence[Line]) -> bytes:
    """A PNG with one line of tiles per entry (name, tiles); images are shown enlarged without smoothing."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    has_text = any(tile.caption for _, tiles in lines for tile in tiles)
    left = _NAME if any(name for name, _ in lines) else 0.1
    step = _CELL + 0.05 + (_TEXT if has_text else 0)
    width = left + max(len(tiles) for _, tiles in lines) * (_CELL + 0.05) + 0.1
    height = len(lines) * step + 0.1
    figure = Figure(figsize=(width, height), dpi=110)
    FigureCanvasAgg(figure)
    for number, (name, tiles) in enumerate(lines):
        top = height - 0.05 - number * step
        figure.text(0.05 / width, (top - _CELL / 2) / height, name[:24], fontsize=7, va="center")
        for column, tile in enumerate(tiles):
            x = left + column * (_CELL + 0.05)
            axes = figure.add_axes((x / width, (top - _CELL) / height, _CELL / width, _CELL / height))
            axes.set_axis_off()
            shown = np.full((2, 2, 3), _GREY, np.uint8) if tile.image is None else np.asarray(tile.image)
            axes.imshow(shown, interpolation="nearest")
            text_y = (top - _CELL - 0.03) / height
            figure.text(x / width, text_y, tile.caption.replace("$", "\\$"), fontsize=4.5, va="top", clip_on=True)
    content = io.BytesIO()
    figure.savefig(content, format="png", metadata={"Software": None})
    return content.getvalue()
