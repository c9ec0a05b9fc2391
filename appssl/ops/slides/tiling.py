"""One slide to tiles: spacing, tissue, grid, labelled points, and what became of each of them.

Nothing here stops at a bad slide or tile: it is the outcome of that slide or tile, with the values that decided.
"""

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, closing
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np

from appssl.ops.slides.figures import overlay
from appssl.ops.slides.files import slide_sha256
from appssl.ops.slides.masks import BadMask, read_mask, to_geojson
from appssl.ops.slides.pixels import TileStore
from appssl.ops.slides.reader import SlideReader
from appssl.ops.slides.slide import (
    OVERVIEW_UM,
    BadSlide,
    Geometry,
    NotScanned,
    UnreadableRegion,
    overview,
    refuse_too_coarse,
)
from appssl.ops.slides.tile_quality import SCORES, Quality, failing, scores
from appssl.ops.slides.tissue import Tissue, covered_share, evenly, find_tissue, grid

Row = dict[str, Any]
Outcome = Literal["left_out", "failed"]


@dataclass(frozen=True)
class Tiling:
    """How slides are tiled; units as in the settings of sources/wsi."""

    spacing_um: float
    tile_px: int
    overlap_px: int
    tissue_fraction: float
    min_part_um2: float
    min_hole_um2: float
    quality: Quality
    exclude_labels: tuple[str, ...]
    limit_tiles: int | None
    check_tiles: bool
    unreadable_budget: float

    def tile0(self, found: Geometry) -> tuple[float, float]:
        """Width and height of a tile in level-0 pixels."""
        return found.pixels0(self.tile_px * self.spacing_um)

    def boxes(self, found: Geometry, mask: np.ndarray, corners: np.ndarray) -> np.ndarray:
        """Tiles with the given corners (N, 2) as boxes (N, 4) left, top, right, bottom in pixels of the mask."""
        scale = np.array([mask.shape[1] / found.size[0], mask.shape[0] / found.size[1]])
        return np.hstack([corners * scale, (corners + np.array(self.tile0(found))) * scale])


@dataclass(frozen=True)
class RejectedTile:
    """A tile that was not kept. outcome: left_out or failed. reason: a short code."""

    item: str
    where: str
    outcome: Outcome
    reason: str
    detail: str


@dataclass
class TiledSlide:
    """What became of a slide.

    Attributes:
        outcome: kept, left_out or failed, with reason and detail. facts: sha256, size, spacing, tissue and how it is
            read, as far as they are known. tiles: those kept: id, kind, x, y (level-0 pixels), label, tissue_fraction,
            scores, and the scores of `tile_quality`, null where pixels were not read.
        overlay: PNG of the slide with tissue and tiles. mask: GeoJSON of its tissue.
    """

    outcome: Literal["kept", "left_out", "failed"] = "kept"
    reason: str = ""
    detail: str = ""
    facts: Row = field(default_factory=dict)
    tiles: list[Row] = field(default_factory=list)
    rejected: list[RejectedTile] = field(default_factory=list)
    overlay: bytes | None = None
    mask: dict[str, Any] | None = None


def tile_slide(
    path: Path,
    slide_id: str,
    tiling: Tiling,
    *,
    mpp: float | None,
    mask: Path | None,
    sha256: str | None,
    label: str | None,
    points: Sequence[Row],
    store_into: Callable[[int], AbstractContextManager[TileStore]] | None,
) -> TiledSlide:
    """
    Args:
        mpp: spacing stated in the table, um per level-0 pixel. mask: GeoJSON of the tissue, instead of looking for it.
        sha256: the checksum stated in the table.
        label: of the grid tiles.
        points: labelled points of this slide: id, x, y, label, where.
        store_into: opens what pixels are written to, given the largest number of tiles.
    """
    done = TiledSlide()
    try:
        done.facts["sha256"] = _checked(path, sha256)
        with closing(SlideReader(path, mpp)) as slide:
            _Tiler(slide, slide_id, tiling, done).tile(mask, label, points, store_into)
    except BadSlide as bad:
        done.outcome, done.reason, done.detail = "failed" if bad.failed else "left_out", bad.reason, bad.detail
        noted = {rejected.item for rejected in done.rejected}
        done.rejected += [
            RejectedTile(p["id"], p["where"], "left_out", "slide_not_used", f"slide {slide_id}: {bad.reason}")
            for p in points
            if p["id"] not in noted
        ]
    return done


class _Tiler:
    """Fills a `TiledSlide` step by step."""

    def __init__(self, slide: SlideReader, slide_id: str, tiling: Tiling, done: TiledSlide) -> None:
        self.slide, self.found, self.id, self.tiling, self.done = slide, slide.geometry, slide_id, tiling, done
        self.poor: list[str] = []  # why tiles are beyond a limit of quality

    def tile(
        self,
        mask: Path | None,
        label: str | None,
        points: Sequence[Row],
        store_into: Callable[[int], AbstractContextManager[TileStore]] | None,
    ) -> None:
        """
        Raises:
            BadSlide: if nothing of the slide can be used.
        """
        found, t = self.found, self.tiling
        self.done.facts |= {"width": found.size[0], "height": found.size[1]}
        self.done.facts |= {"mpp_x": found.mpp[0], "mpp_y": found.mpp[1]}
        self.done.facts |= {"vendor": self.slide.handle.properties.get("openslide.vendor")}
        refuse_too_coarse(found, t.spacing_um)
        note = self.slide.use_stored(t.spacing_um)
        self.done.facts |= {"stored_level": self.slide.stored_level, "reader_note": note}
        try:
            image = overview(self.slide.handle, found, OVERVIEW_UM)
        except UnreadableRegion as error:
            raise BadSlide("unreadable", f"its overview cannot be decoded: {error}; copy the file again") from None
        spacing = found.size[0] * found.mpp[0] / image.shape[1]
        if mask is None:
            tissue = find_tissue(image, spacing_um=spacing, min_part_um2=t.min_part_um2, min_hole_um2=t.min_hole_um2)
        else:
            tissue = self._given(mask, image.shape[:2])
        self.done.facts["tissue_mm2"] = float(tissue.mask.sum()) * spacing**2 / 1e6
        self.done.mask = to_geojson(tissue.mask, found.size)
        candidates, best = self._candidates(tissue, label, points) if tissue.mask.any() else ([], 0.0)
        self._read(candidates, store_into)
        self._draw(image, tissue)
        self._explain_nothing(tissue, candidates, best)
        self._refuse_damaged(candidates)

    def _given(self, path: Path, shape: tuple[int, int]) -> Tissue:
        try:
            self.done.facts["mask_sha256"] = _digest(path)
            mask = read_mask(path, self.found.size, shape)
        except BadMask as error:
            raise BadSlide("bad_mask", f"its mask {path.name} {error}") from None
        return Tissue(mask, False, {"share_of_the_given_mask": float(mask.mean())})

    def _candidates(self, tissue: Tissue, label: str | None, points: Sequence[Row]) -> tuple[list[Row], float]:
        """Tiles that are kept if they can be read, and the largest share of tissue of a grid tile."""
        t, found = self.tiling, self.found
        corners = grid(found.size, t.tile0(found), found.pixels0((t.tile_px - t.overlap_px) * t.spacing_um))
        shares = covered_share(tissue.mask, t.boxes(found, tissue.mask, corners)).round(6)
        tiles = []
        for (x, y), share in zip(corners.tolist(), shares.tolist(), strict=True):
            tile = {"id": f"{self.id}/{x}_{y}", "kind": "grid", "x": x, "y": y, "label": label}
            if share >= t.tissue_fraction and share > 0:
                tiles.append({**tile, "tissue_fraction": share})
            else:
                self._reject(tile, "background", f"tissue_fraction {share:.3f}, needed {t.tissue_fraction:g}")
        on_points = self._on_points(tissue, points)
        on_points.sort(key=lambda tile: (tile["label"] or "", tile["id"]))  # the limit takes of each label
        chosen = self._limited(tiles) + self._limited(on_points)
        best = float(shares.max(initial=0))
        return sorted(chosen, key=lambda tile: (tile["kind"], tile["y"], tile["x"], tile["id"])), best

    def _on_points(self, tissue: Tissue, points: Sequence[Row]) -> list[Row]:
        """A tile centred on each point, whatever its share of tissue: the point was put there by someone."""
        found = self.found
        width, height = self.tiling.tile0(found)
        corners = np.rint([(p["x"] - width / 2, p["y"] - height / 2) for p in points]).astype(np.int64).reshape(-1, 2)
        shares = covered_share(tissue.mask, self.tiling.boxes(found, tissue.mask, corners)).round(6).tolist()
        tiles = []
        for point, (x, y), share in zip(points, corners.tolist(), shares, strict=True):
            tile = {"id": point["id"], "kind": "point", "x": x, "y": y, "label": point["label"]}
            if point["label"] in self.tiling.exclude_labels:
                self._reject(tile, "excluded_label", f"label {point['label']!r} is in points.exclude_labels")
            elif x < 0 or y < 0 or x + width > found.size[0] + 0.5 or y + height > found.size[1] + 0.5:
                what = f"a tile of {width:.0f} x {height:.0f} around it leaves the slide"
                self._reject(tile, "outside_slide", f"{what} of {found.size[0]} x {found.size[1]} level-0 pixels")
            else:
                tiles.append({**tile, "tissue_fraction": share})
        return tiles

    def _limited(self, tiles: list[Row]) -> list[Row]:
        chosen = set(evenly(len(tiles), self.tiling.limit_tiles).tolist())
        for n, tile in enumerate(tiles):
            if n not in chosen:
                self._reject(tile, "limit_tiles", f"limit_tiles {self.tiling.limit_tiles} of {len(tiles)}")
        return [tile for n, tile in enumerate(tiles) if n in chosen]

    def _read(self, tiles: list[Row], store_into: Callable[[int], AbstractContextManager[TileStore]] | None) -> None:
        """Reads every candidate once and keeps the readable ones of good quality, with their pixels where asked for."""
        t = self.tiling
        with ExitStack() as stack:
            store = stack.enter_context(store_into(len(tiles))) if store_into is not None and tiles else None
            for tile in tiles:
                try:
                    if store is None and not t.check_tiles:
                        self.done.tiles.append({**dict.fromkeys(SCORES), **tile})
                        continue
                    pixels = self.slide.tile((tile["x"], tile["y"]), spacing_um=t.spacing_um, tile_px=t.tile_px)
                    found = scores(pixels, t.spacing_um)
                    if self._is_good(tile, found):
                        self.done.tiles.append({**tile, **found, **(store.add(pixels) if store else {})})
                except NotScanned as error:
                    self._reject(tile, "not_scanned", str(error))
                except UnreadableRegion as error:
                    self._reject(tile, "unreadable", str(error), outcome="failed")

    def _is_good(self, tile: Row, found: Mapping[str, float]) -> bool:
        """Whether a tile is within the limits of quality, which are for tiles of the grid; else it is rejected."""
        poor = failing(found, self.tiling.quality) if tile["kind"] == "grid" else None
        if poor is not None:
            self._reject(tile, *poor)
            self.poor.append(poor[1])
        return poor is None

    def _reject(self, tile: Mapping[str, Any], reason: str, detail: str, outcome: Outcome = "left_out") -> None:
        where = f"{self.id}: x {tile['x']}, y {tile['y']}"
        self.done.rejected.append(RejectedTile(tile["id"], where, outcome, reason, detail))

    def _refuse_damaged(self, candidates: Sequence[Row]) -> None:
        """Raises BadSlide if more tiles cannot be read than the budget allows; none of its tiles is then used."""
        unreadable = [tile for tile in self.done.rejected if tile.reason == "unreadable"]
        share = len(unreadable) / len(candidates)
        if share <= self.tiling.unreadable_budget:
            return
        why = f"slide {self.id}: unreadable_tiles"
        others = [tile for tile in self.done.rejected if tile.reason != "unreadable"]
        self.done.rejected = others + [
            RejectedTile(tile.item, tile.where, "left_out", "slide_not_used", f"{why}; this one: {tile.detail}")
            for tile in unreadable
        ]
        for tile in self.done.tiles:
            self._reject(tile, "slide_not_used", why)
        self.done.tiles = []
        found = f"{len(unreadable)} of {len(candidates)} tiles cannot be read ({share:.2%})"
        allowed = f"data.source.unreadable_budget allows {self.tiling.unreadable_budget:.2%}"
        raise BadSlide("unreadable_tiles", f"{found}, {allowed}; copy the file again")

    def _draw(self, image: np.ndarray, tissue: Tissue) -> None:
        boxes = []
        for kind in ("grid", "point"):
            corners = np.array([(t["x"], t["y"]) for t in self.done.tiles if t["kind"] == kind], float).reshape(-1, 2)
            boxes.append(self.tiling.boxes(self.found, tissue.mask, corners))
        self.done.overlay = overlay(image, tissue.mask, *boxes)

    def _explain_nothing(self, tissue: Tissue, candidates: Sequence[Row], best: float) -> None:
        """Raises BadSlide with what was measured if the slide has no tile."""
        if self.done.tiles:
            return
        if tissue.is_dark:
            why = "the background is dark, as in fluorescence; tissue is found on bright glass only"
            raise BadSlide("dark_background", f"{why}; {tissue.explained}", failed=False)
        if not tissue.mask.any():
            raise BadSlide("zero_tissue", f"no tissue found: {tissue.explained}", failed=False)
        if self.poor:
            share = f"{len(self.poor)} of {len(candidates)} tiles are beyond a limit of data.source.quality"
            raise BadSlide("no_tile_of_quality", f"{share}; one: {self.poor[len(self.poor) // 2]}", failed=False)
        if candidates:
            raise BadSlide("unreadable", f"none of {len(candidates)} tiles can be read; copy the file again")
        size, (width, height) = self.found.size, self.tiling.tile0(self.found)
        if width > size[0] or height > size[1]:
            sizes = f"the slide has {size[0]} x {size[1]} level-0 pixels, a tile {width:.0f} x {height:.0f}"
            raise BadSlide("smaller_than_a_tile", f"{sizes}; set tile_px lower", failed=False)
        needed = f"largest tissue_fraction of a tile {best:.3f}, needed {self.tiling.tissue_fraction:g}"
        raise BadSlide("no_tile_with_tissue", f"{needed}; {tissue.explained}", failed=False)


def _checked(path: Path, stated: str | None) -> str:
    """The SHA-256 of a slide, which is the stated one where there is one: a decoder does not see every wrong byte."""
    found = _digest(path)
    if stated is not None and found != stated.lower():
        raise BadSlide("wrong_checksum", f"its SHA-256 is {found}, the slide table says {stated}; copy it again")
    return found


def _digest(path: Path) -> str:
    try:
        return slide_sha256(path)
    except FileNotFoundError:
        raise BadSlide("missing_file", "there is no such file; correct the path in the slide table") from None
    except OSError as error:
        raise BadSlide("unreadable", f"cannot be read to its end: {error.strerror or error}; copy it again") from None
