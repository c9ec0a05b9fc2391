"""Whole-slide images: a table of slides becomes tiles of one spacing, of tissue only, with labels and parts.

Each slide is opened, its spacing found, its tissue marked on an overview, and a grid of tiles laid over it; labelled
points become tiles centred on them. What is not kept, slide or tile, lies in the quarantine with its reason and the
values that decided. Kept tiles are read once while they are prepared: unreadable regions are known before training.

Coordinates are level-0 pixels of the slide. Pixels stay in the slides and are read when they are needed, or are packed
into one array or tar files of JPEGs (`pixels`). How tiles are resampled is stated in `ops/slides/slide.py`, what tissue
is in `ops/slides/tissue.py`.
"""

import hashlib
import json
import re
import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Literal

import polars as pl
from pydantic import Field, model_validator

from appssl.artifact import Artifact, ArtifactWriter, sha256_file, write_json
from appssl.contracts import Meta, Quarantined
from appssl.errors import NOT_JSON, DataError
from appssl.ops.bag_assembly import CLASSES, Regions, in_regions
from appssl.ops.paths import inside
from appssl.ops.slides.draft import draft as draft  # of the domain, as `appssl new` asks for it
from appssl.ops.slides.draft import listed as listed
from appssl.ops.slides.figures import figures
from appssl.ops.slides.files import SUFFIXES
from appssl.ops.slides.pixels import (
    LazyTiles,
    PackedTiles,
    TarTiles,
    TileArray,
    Tiles,
    TileStore,
    TileTar,
    color_statistics,
    pack,
)
from appssl.ops.slides.slide import VERSION
from appssl.ops.slides.table import Columns, Points, copies, list_folder, list_points, list_slides
from appssl.ops.slides.tile_quality import SCORES, Quality
from appssl.ops.slides.tiled_slides import TiledSlides
from appssl.ops.slides.tiling import TiledSlide, Tiling, tile_slide
from appssl.ops.slides.tissue import evenly
from appssl.ops.split import GroupSplit, group_split, refuse_leak
from appssl.ops.table_limits import refuse
from appssl.settings import Settings

_ROOT = "root.json"  # where the slides are on this machine; beside the manifest, not part of the result
_FEW_GROUPS = 5  # in the test part, below which nothing can be said of patients
_STATISTICS_TILES = 256  # training tiles that mean and standard deviation of colours are taken from
_SLIDES: dict[str, Any] = {
    "unit": pl.Int64, "slide_id": pl.String, "path": pl.String, "patient": pl.String, "label": pl.String,
    "group": pl.String, "split": pl.String, "outcome": pl.String, "reason": pl.String, "sha256": pl.String,
    "width": pl.Int64, "height": pl.Int64, "mpp_x": pl.Float64, "mpp_y": pl.Float64, "stated_mpp": pl.Float64,
    "vendor": pl.String, "tissue_mm2": pl.Float64, "num_tiles": pl.Int64, "overlay": pl.String,
    "stored_level": pl.Int64, "reader_note": pl.String, "mask_sha256": pl.String, "tissue": pl.String,
}  # fmt: skip
_TILES: dict[str, Any] = {
    "id": pl.String, "slide_id": pl.String, "kind": pl.String, "x": pl.Int64, "y": pl.Int64, "label": pl.String,
    "tissue_fraction": pl.Float64, "unit": pl.Int64, "place": pl.Int64, "length": pl.Int64,
    **dict.fromkeys(SCORES, pl.Float64),
}  # fmt: skip


class Config(Settings):
    name: Literal["wsi"] = "wsi"
    table: str | None = Field(None, description="CSV or Parquet table of slides, relative to data.root")
    folder: str | None = Field(None, description="instead of a table: all slides below this folder, without labels")
    slides_root: str | None = Field(None, description="folder the paths are relative to; null: that of the table")
    columns: Columns = Field(Columns(), description="which column of the table holds what")
    only: tuple[str, ...] = Field((), description="ids of the slides that are used; empty: all")
    spacing_um: float = Field(0.5, ge=0.05, le=20, description="um per pixel of the tiles")
    tile_px: int = Field(224, ge=8, le=4096, description="side of a tile, pixels")
    overlap_px: int = Field(0, ge=0, description="overlap of neighbouring tiles, pixels")
    tissue_fraction: float = Field(0.5, ge=0, le=1, description="smallest share of tissue in a grid tile")
    min_part_um2: float = Field(10_000, ge=0, description="smaller parts of tissue do not count, um2")
    min_hole_um2: float = Field(10_000, ge=0, description="smaller holes in tissue count as tissue, um2")
    quality: Quality = Field(Quality(), description="which grid tiles are too poor; needs check_tiles or stored pixels")
    group_by: Literal["patient", "slide"] = Field("patient", description="what must not cross the split")
    split: GroupSplit = Field(GroupSplit(test=0.25), description="division where the table has no split")
    points: Points | None = Field(None, description="labelled points, each becomes a tile of kind `point`")
    slide_labels: bool = Field(False, description="grid tiles get the label of their slide; slides are bags of tiles")
    regions: Regions | None = Field(None, description="instead of slides: squares of a slide are bags of point tiles")
    check_tiles: bool = Field(True, description="read every kept tile once, to find unreadable ones before training")
    unreadable_budget: float = Field(
        0.005, ge=0, le=1, description="share of a slide's tiles that may be unreadable before the slide fails"
    )
    pixels: Literal["slides", "packed", "jpeg"] = Field(
        "slides", description="read tiles from the slides in training, or store them: one array, or tar files of JPEGs"
    )
    limit_slides: int | None = Field(None, ge=1, description="at most this many slides, spread evenly over the table")
    limit_tiles: int | None = Field(
        None, ge=1, description="at most this many grid tiles, and point tiles, per slide, spread evenly"
    )

    @model_validator(mode="after")
    def _consistent(self) -> "Config":
        if (self.table is None) == (self.folder is None):
            raise ValueError("give either table or folder")
        if self.overlap_px >= self.tile_px:
            raise ValueError("overlap_px must be below tile_px")
        if self.regions is not None and (self.points is None or self.slide_labels):
            raise ValueError("regions needs points, whose labels say which region is positive, and no slide_labels")
        return self


@dataclass(frozen=True)
class Listing:
    """The slides that are used, with unit, group and split, their points, and what of the input is not used."""

    slides: pl.DataFrame
    points: pl.DataFrame | None
    strange_points: pl.DataFrame | None
    other_files: list[str]
    not_chosen: dict[str, int]

    @property
    def digest(self) -> str:
        """SHA-256 of everything: shards of one preparation have the same."""
        points = "" if self.points is None else self.points.write_csv()
        text = f"{self.slides.write_csv()}{points}{self.other_files}{self.not_chosen}"
        return hashlib.sha256(text.encode()).hexdigest()


class WSI:
    def __init__(self, config: Config) -> None:
        self.config = config

    def inputs(self, root: Path) -> list[Path]:
        """The tables, and the masks that they name. A folder is listed when it is prepared."""
        tables = [root / path for path in self._tables().values()]
        try:
            masks = self.listing(root).slides["mask"].drop_nulls().to_list() if self.config.table else []
        except DataError:  # said when they are prepared
            masks = []
        return tables + [self.slides_root(root) / mask for mask in masks]

    def _tables(self) -> dict[str, str]:
        named = {"slides": self.config.table, "points": self.config.points.table if self.config.points else None}
        return {name: path for name, path in named.items() if path}

    def slides_root(self, root: Path) -> Path:
        """Folder that paths of slides are relative to.

        Raises:
            DataError: if it lies outside `root`.
        """
        c = self.config
        return inside(root, c.slides_root or c.folder or Path(str(c.table)).parent)

    def listing(self, root: Path) -> Listing:
        """
        Raises:
            DataError: if tables, ids, paths, parts or groups are wrong; all problems of a table in one message.
        """
        c = self.config
        others: list[str] = []
        if c.folder is not None:
            slides, others = list_folder(root, c.folder)
        else:
            slides = list_slides(root, str(c.table), c.columns, self.slides_root(root))
        unknown = sorted(set(c.only) - set(slides["slide_id"]))
        refuse([f"only: there is no slide {name!r} in {c.table or c.folder}" for name in unknown])
        chosen = slides.filter(pl.col("slide_id").is_in(c.only)) if c.only else slides
        counts = {"only": len(slides) - len(chosen)}
        limited = chosen[evenly(len(chosen), c.limit_slides)]
        counts["limit_slides"] = len(chosen) - len(limited)
        points = strange = None
        if c.points is not None:
            every = list_points(root, c.points, slides["slide_id"].to_list())
            strange = every.filter(~pl.col("slide_id").is_in(slides["slide_id"].implode()))
            points = every.filter(pl.col("slide_id").is_in(limited["slide_id"].implode()))
        divided = self._divided(limited).with_row_index("unit").cast({"unit": pl.Int64})
        return Listing(divided, points, strange, others, {name: n for name, n in counts.items() if n})

    def _divided(self, slides: pl.DataFrame) -> pl.DataFrame:
        """Adds group and split; a column of parts wins over the setting."""
        if self.config.group_by == "slide":
            slides = slides.with_columns(group="slide_id")
        else:
            empty = slides.filter(pl.col("patient").is_null())["where"]
            how = "name the column in columns.patient, or set group_by: slide"
            refuse([f"{where}: the patient is empty or there is no such column; {how}" for where in empty])
            slides = slides.with_columns(group="patient")
        if slides["split"].null_count() < len(slides):
            slides = slides.with_columns(pl.col("split").fill_null("train"))
        else:
            strata = dict(slides.sort("slide_id", descending=True).select("group", "label").iter_rows())
            parts = group_split(slides["group"].to_list(), self.config.split, strata)
            slides = slides.with_columns(split=pl.col("group").replace_strict(parts, return_dtype=pl.String))
        parts_of: dict[str, set[str]] = {}
        for group, split in slides.select("group", "split").iter_rows():
            parts_of.setdefault(group, set()).add(split)
        refuse_leak(parts_of, self.config.group_by)
        return slides

    def prepare(self, root: Path, shard: int, num_shards: int, out: ArtifactWriter) -> None:
        """Prepares every `num_shards`-th slide: `slides.parquet`, `tiles.parquet`, overlays, and packed pixels."""
        listing = self.listing(root)
        for name, path in self._tables().items():
            out.input(f"table:{name}", sha256_file(inside(root, path)))
        out.input("slides", listing.digest)
        rows, tiles = [], []
        for row in listing.slides.filter(pl.col("unit") % num_shards == shard).iter_rows(named=True):
            done = self._slide(self.slides_root(root), row, listing.points, out)
            own = {key: row[key] for key in ("unit", "slide_id", "path", "patient", "label", "group", "split")}
            files = self._write(done, row, out)
            outcome = {"outcome": done.outcome, "reason": done.reason, **files}
            rows.append({**own, **outcome, "stated_mpp": row["mpp"], "num_tiles": len(done.tiles), **done.facts})
            tiles += [{**tile, "slide_id": row["slide_id"], "unit": row["unit"]} for tile in done.tiles]
            _account(row, done, out)
        if shard == 0:
            _account_of_the_rest(listing, out)
        out.table("slides.parquet", pl.DataFrame(rows, schema=_SLIDES))
        out.table("tiles.parquet", pl.DataFrame(tiles, schema=_TILES))
        out.json("shard.json", {"shard": shard, "num_shards": num_shards, "index": listing.digest})

    def _slide(
        self, slides_root: Path, row: dict[str, Any], points: pl.DataFrame | None, out: ArtifactWriter
    ) -> TiledSlide:
        c = self.config
        plain = c.model_dump(include=set(Tiling.__dataclass_fields__) - {"quality"})
        tiling = Tiling(**plain, quality=c.quality, exclude_labels=c.points.exclude_labels if c.points else ())
        own = [] if points is None else list(points.filter(pl.col("slide_id") == row["slide_id"]).iter_rows(named=True))
        return tile_slide(
            slides_root / row["path"],
            row["slide_id"],
            tiling,
            mpp=row["mpp"],
            mask=slides_root / row["mask"] if row["mask"] else None,
            sha256=row["sha256"],
            label=row["label"] if c.slide_labels else None,
            points=[{**point, "id": _point_id(point)} for point in own],
            store_into=None if c.pixels == "slides" else partial(self._store, out, row["unit"]),
        )

    def _write(self, done: TiledSlide, row: dict[str, Any], out: ArtifactWriter) -> dict[str, str]:
        """Writes the picture and the mask of a slide, where there are any, and returns their names."""
        readable = re.sub(r"[^\w.-]", "_", row["slide_id"])[:80]
        name = f"{row['unit']:06}_{readable}"
        files = {}
        if done.overlay is not None:
            files["overlay"] = f"overlays/{name}.png"
            out.bytes(files["overlay"], done.overlay)
        if done.mask is not None:
            files["tissue"] = f"tissue/{name}.geojson"
            out.json(files["tissue"], done.mask)
        return files

    @contextmanager
    def _store(self, out: ArtifactWriter, unit: int, count: int) -> Iterator[TileStore]:
        c = self.config
        with out.open(_stored_name(unit, c.pixels)) as file:
            store = TileArray(file, count, c.tile_px) if c.pixels == "packed" else TileTar(file)
            yield store
            store.close()

    def merge(self, root: Path, shards: Sequence[Artifact], out: ArtifactWriter) -> None:
        """Joins shards: samples, slides, packed pixels, meta, figures; the same bytes for any number of shards.

        Raises:
            DataError: if shards are missing or the input changed between them.
        """
        _refuse_mixed(shards)
        for shard in shards:
            for what, account in shard.accounts().items():
                out.account(what).add(account)
            out.quarantine += [Quarantined(**row) for row in shard.table("quarantine.parquet").iter_rows(named=True)]
        slides, tiles = (
            pl.concat([shard.table(name).with_columns(shard=pl.lit(n)) for n, shard in enumerate(shards)])
            for name in ("slides.parquet", "tiles.parquet")
        )
        slides, tiles = _without_copies(slides.sort("slide_id"), tiles, out)
        out.quarantine.sort(key=lambda q: (q.what, q.item, q.where, q.reason))
        tiles = tiles.join(slides.select("slide_id", "group", "split"), on="slide_id", how="left")
        tiles = tiles.sort("slide_id", "kind", "y", "x", "id").with_row_index("index").cast({"index": pl.Int64})
        samples = tiles.with_columns(true_label=pl.lit(None, pl.String)).select(
            "index",
            "id",
            "group",
            "split",
            "label",
            "true_label",
            "slide_id",
            "kind",
            "x",
            "y",
            "tissue_fraction",
            *SCORES,
        )
        if self.config.regions is not None:
            samples = in_regions(samples, slides, self.config.regions)
        out.table("samples.parquet", samples)
        out.table("slides.parquet", slides.drop("shard", "unit"))
        for kind in ("tissue", "overlay"):
            for shard, name in slides.filter(pl.col(kind).is_not_null()).select("shard", kind).iter_rows():
                out.bytes(name, shards[shard].path(name).read_bytes())
        pixels = self._pixels(root, tiles, slides, shards, out)
        out.json("meta.json", self._meta(samples, pixels))
        files, entries = figures(samples, slides, lambda name: (out.folder / name).read_bytes(), pixels)
        for file, content in files.items():
            out.bytes(file, content)
        out.json("figures.json", entries)

    def _pixels(
        self,
        root: Path,
        tiles: pl.DataFrame,
        slides: pl.DataFrame,
        shards: Sequence[Artifact],
        out: ArtifactWriter,
    ) -> Tiles:
        c = self.config
        if c.pixels == "slides":
            write_json(out.folder / _ROOT, {"slides_root": str(self.slides_root(root))})
            return LazyTiles(self.slides_root(root), tiles, slides, spacing_um=c.spacing_um, tile_px=c.tile_px)
        if c.pixels == "packed":
            places = tiles.select("shard", "unit", "place").iter_rows()
            with out.open("pixels.npy") as file:
                pack(
                    ((shards[s].path(_stored_name(u, "packed")), p) for s, u, p in places), len(tiles), c.tile_px, file
                )
            return PackedTiles(out.folder / "pixels.npy")
        for shard, unit in tiles.select("shard", "unit").unique(maintain_order=True).iter_rows():
            name = _stored_name(unit, "jpeg")
            with out.open(name) as file, shards[shard].path(name).open("rb") as stored:
                shutil.copyfileobj(stored, file)
        named = pl.col("unit").map_elements(lambda unit: _stored_name(unit, "jpeg"), return_dtype=pl.String)
        index = tiles.select(file=named, place="place", length="length")
        out.table("tiles.parquet", index)
        return TarTiles(out.folder, index)

    def _meta(self, samples: pl.DataFrame, pixels: Tiles) -> dict[str, Any]:
        c = self.config
        groups = dict(samples.group_by("split").agg(pl.col("group").n_unique()).sort("split").iter_rows())
        facts: dict[str, Any] = {"size_px": c.tile_px, "spacing_um": c.spacing_um, "channels": 3, "num_groups": groups}
        if c.slide_labels or c.regions is not None:
            facts["bag"] = "slide_id" if c.slide_labels else "region"
        train = samples.filter(pl.col("split") == "train")["index"]
        chosen = train.to_numpy()[evenly(len(train), _STATISTICS_TILES)]
        facts |= dict(zip(("rgb_mean", "rgb_std"), color_statistics(pixels, chosen), strict=True))
        if 0 < groups.get("test", 0) < _FEW_GROUPS:
            count, what = groups["test"], c.group_by
            facts["caution"] = (
                f"The test part has {count} {what}{'s' if count > 1 else ''}. Its results support statements about "
                f"tiles of these slides, not about patients; intervals over so few groups are no measure of certainty."
            )
        return {
            "source": "wsi", "domain": "wsi", "task": "classification", "group": c.group_by, "facts": facts,
            "classes": list(CLASSES) if c.regions else samples["label"].drop_nulls().unique().sort().to_list(),
        }  # fmt: skip

    def open(self, artifact: Artifact) -> TiledSlides:
        values = artifact.json("meta.json")
        meta = Meta(**{**values, "classes": tuple(values["classes"])})
        samples: pl.DataFrame = artifact.table("samples.parquet")
        return TiledSlides(meta, samples, _stored_pixels(artifact, meta, samples))


def build(config: Config) -> WSI:
    return WSI(config)


def for_new_data(config: Config, table: str) -> Config:
    """Settings that tile new slides as the training data was tiled: no labels, points, limits or test part.

    Args:
        table: name of the slide table, or of a folder of slides, relative to the root it will be prepared with.
    """
    own, usual = config.columns, Columns()
    both = {key: f"{getattr(own, key) or name}|{name}" for key, name in usual.model_dump().items()}
    columns = Columns(**{**both, "label": None, "split": None, "patient": None})
    kept = config.model_dump(
        include={
            "spacing_um",
            "tile_px",
            "overlap_px",
            "tissue_fraction",
            "min_part_um2",
            "min_hole_um2",
            "quality",
            "unreadable_budget",
        }
    )
    is_table = table.lower().endswith((".csv", ".parquet"))
    place = {"table": table} if is_table else {"folder": table}
    split = GroupSplit(test=0, val=0)
    return Config(**kept, **place, columns=columns, group_by="slide", split=split)


def _point_id(point: dict[str, Any]) -> str:
    return f"{point['slide_id']}/point{point['row']:06}"


def _account(row: dict[str, Any], done: TiledSlide, out: ArtifactWriter) -> None:
    """Counts a slide and its tiles, and puts what was not kept into the quarantine."""
    slides, tiles = out.account("slides"), out.account("tiles")
    if done.outcome == "kept":
        slides.keep()
    else:
        (slides.fail if done.outcome == "failed" else slides.leave_out)(done.reason)
        name, path = row["slide_id"], row["path"]
        out.quarantine.append(Quarantined("slide", name, path, done.outcome, done.reason, done.detail, VERSION))
    tiles.keep(len(done.tiles))
    for tile in done.rejected:
        (tiles.fail if tile.outcome == "failed" else tiles.leave_out)(tile.reason)
        about = Quarantined("tile", tile.item, tile.where, tile.outcome, tile.reason, tile.detail, VERSION)
        out.quarantine.append(about)


def _without_copies(
    slides: pl.DataFrame, tiles: pl.DataFrame, out: ArtifactWriter
) -> tuple[pl.DataFrame, pl.DataFrame]:
    """Leaves out slides that are the same, byte for byte, as another: they would cross the split."""
    found = copies(slides.filter(pl.col("outcome") == "kept"))
    for row in slides.filter(pl.col("slide_id").is_in(list(found))).iter_rows(named=True):
        name = row["slide_id"]
        out.account("slides").withdraw("copy")
        out.account("tiles").withdraw("copy_of_a_slide", row["num_tiles"])
        detail = f"the same bytes as slide {found[name]}"
        out.quarantine.append(Quarantined("slide", name, row["path"], "left_out", "copy", detail, VERSION))
    is_copy = pl.col("slide_id").is_in(list(found))
    instead = {"outcome": "left_out", "reason": "copy", "num_tiles": 0}
    slides = slides.with_columns(
        pl.when(is_copy).then(pl.lit(value)).otherwise(key).alias(key) for key, value in instead.items()
    )
    return slides, tiles.filter(~is_copy)


def _account_of_the_rest(listing: Listing, out: ArtifactWriter) -> None:
    """What belongs to no slide that is used: counted once. Slides that settings leave out are no losses."""
    if listing.not_chosen:
        listed = out.account("listed slides")
        listed.keep(len(listing.slides))
        for name, count in listing.not_chosen.items():
            listed.leave_out(f"not chosen by {name}", count)
    for name in listing.other_files:
        out.account("slides").leave_out("not_a_slide_file")
        detail = f"the names of slides end in {', '.join(SUFFIXES)}"
        out.quarantine.append(Quarantined("slide", name, name, "left_out", "not_a_slide_file", detail))
    if listing.strange_points is not None:
        for point in listing.strange_points.iter_rows(named=True):
            out.account("tiles").leave_out("slide_not_listed")
            detail = f"slide {point['slide_id']} is not in the slide table"
            item = Quarantined("tile", _point_id(point), point["where"], "left_out", "slide_not_listed", detail)
            out.quarantine.append(item)


def _refuse_mixed(shards: Sequence[Artifact]) -> None:
    about = [shard.json("shard.json") for shard in shards]
    if len({a["index"] for a in about}) != 1:
        raise DataError("the input changed while its shards were prepared. Prepare all shards again.")
    if sorted(a["shard"] for a in about) != list(range(about[0]["num_shards"])):
        raise DataError(f"shards {[a['shard'] for a in about]} given, {about[0]['num_shards']} are needed, each once.")


def _stored_pixels(artifact: Artifact, meta: Meta, samples: pl.DataFrame) -> Tiles:
    if artifact.has("pixels.npy"):
        return PackedTiles(artifact.path("pixels.npy"))
    if artifact.has("tiles.parquet"):
        return TarTiles(artifact.folder, artifact.table("tiles.parquet"))
    root, slides = _known_root(artifact.folder), artifact.table("slides.parquet")
    return LazyTiles(root, samples, slides, spacing_um=meta.facts["spacing_um"], tile_px=meta.facts["size_px"])


def _stored_name(unit: int, pixels: str) -> str:
    return f"pixels/{unit:06}.{'npy' if pixels == 'packed' else 'tar'}"


def _known_root(folder: Path) -> Path:
    """
    Raises:
        DataError: if it is not known where the slides are, as when the result was copied without the file.
    """
    path = folder / _ROOT
    try:
        return Path(json.loads(path.read_text(encoding="utf-8"))["slides_root"])
    except (OSError, *NOT_JSON, KeyError, TypeError) as error:
        why = "it says where the slides are. Prepare the data again, or write {'slides_root': '<folder>'} there"
        raise DataError(f"{path}: cannot be read ({error}); {why}.") from None
