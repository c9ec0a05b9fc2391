"""Drawn slides: the same bytes for a seed, readable by OpenSlide, with regions and points that are what they say."""

import hashlib
import json

import numpy as np
import polars as pl
import pytest

from appssl.ops.slides.slide import BadSlide, geometry, open_slide, overview, read_tile
from appssl.synthetic.wsi import MPP, make, mask_of


def digests(folder):
    files = sorted(p for p in folder.rglob("*") if p.is_file())
    return {p.relative_to(folder).as_posix(): hashlib.sha256(p.read_bytes()).hexdigest() for p in files}


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    folder = tmp_path_factory.mktemp("slides")
    make(folder, size="tiny", seed=0)
    return folder


def regions(folder, name):
    features = json.loads((folder / f"truth/{name}.geojson").read_text())["features"]
    return [(f["properties"]["classification"]["name"], np.array(f["geometry"]["coordinates"][0])) for f in features]


def test_the_same_seed_gives_the_same_bytes_and_another_others(made, tmp_path):
    make(tmp_path / "again", size="tiny", seed=0)
    make(tmp_path / "other", size="tiny", seed=1)
    assert digests(made) == digests(tmp_path / "again")
    assert digests(made)["slides/slide00.tif"] != digests(tmp_path / "other")["slides/slide00.tif"]


def test_slides_are_pyramids_with_spacing_that_openslide_reads(made):
    for name in ("slide00", "slide01", "slide02", "empty"):
        slide = open_slide(made / f"slides/{name}.tif")
        assert slide.dimensions == (1024, 1024)
        assert slide.level_count == 3
        assert geometry(slide).mpp == pytest.approx((MPP, MPP))


def test_the_tables_list_every_file_and_the_faulty_ones_have_no_label(made):
    table = pl.read_csv(made / "slides.csv", infer_schema=False)
    assert table.columns == ["slide_id", "path", "patient_id", "label"]
    assert sorted(table["path"]) == sorted(f"slides/{p.name}" for p in (made / "slides").iterdir())
    assert table.filter(pl.col("label").is_null())["slide_id"].to_list() == ["empty", "truncated"]
    with pytest.raises(BadSlide):
        open_slide(made / "slides/truncated.tif")


def test_points_lie_in_their_regions(made):
    points = pl.read_csv(made / "points.csv")
    assert set(points["label"]) == {"tumour", "stroma"}
    for (name,), part in points.group_by("slide_id"):
        own = regions(made, name)
        tumour, tissue = mask_of(own, "tumour", 1024), mask_of(own, "tissue", 1024)
        for x, y, label in part.select("x", "y", "label").iter_rows():
            assert tissue[y, x]
            assert tumour[y, x] == (label == "tumour")


def test_tumour_has_darker_tiles_than_stroma_tissue_than_glass(made):
    points = pl.read_csv(made / "points.csv").filter(pl.col("slide_id") == "slide00")
    slide = open_slide(made / "slides/slide00.tif")
    mean = {}
    for label in ("tumour", "stroma"):
        tiles = [
            read_tile(slide, geometry(slide), (x - 40, y - 40), spacing_um=MPP, tile_px=80).mean()
            for x, y in points.filter(pl.col("label") == label).select("x", "y").iter_rows()
        ]
        mean[label] = np.mean(tiles)
    assert mean["tumour"] < mean["stroma"] < 215
    empty = open_slide(made / "slides/empty.tif")
    assert overview(empty, geometry(empty), 8.0).std() < 20
    assert regions(made, "empty") == []
