"""Slides: all slides and tiles are accounted for, no group crosses the split, any number of shards gives one result."""

import json
import re
import shutil
import tarfile
from multiprocessing import get_context

import numpy as np
import polars as pl
import pytest
import shapely
import tifffile

from appssl.artifact import ArtifactWriter
from appssl.errors import DataError, SettingsError
from appssl.ops.bags import index_bags
from appssl.ops.slides import slide as slide_module
from appssl.ops.slides.files import slide_sha256
from appssl.ops.slides.slide import geometry, open_slide, read_tile
from appssl.settings import validate
from appssl.sources.wsi import Config, build, draft, for_new_data
from appssl.synthetic import wsi as drawn
from tests.ops.slides.test_slide import damaged, header_only, write
from tests.real_data import DATA, on_real_data

BASE = {"table": "slides.csv", "spacing_um": 1.0, "tile_px": 64, "points": {"table": "points.csv"}}


def config(**values):
    return validate(Config, {**BASE, **values}, file="recipe", owner="sources/wsi")


def prepared(settings, root, out, num_shards=1):
    source = build(settings)
    shards = []
    for shard in range(num_shards):
        writer = ArtifactWriter(out / f"shard{shard}", "shard", settings_digest="", inputs={})
        source.prepare(root, shard, num_shards, writer)
        shards.append(writer.finish())
    writer = ArtifactWriter(out / "data", "data", settings_digest="", inputs={})
    source.merge(root, shards[::-1], writer)
    artifact = writer.finish()
    artifact.check()
    return artifact, source.open(artifact)


def rejected(artifact, what="slide"):
    table = artifact.table("quarantine.parquet").filter(pl.col("what") == what)
    return {row["item"]: (row["outcome"], row["reason"], row["detail"]) for row in table.iter_rows(named=True)}


@pytest.fixture(scope="module")
def slides(tmp_path_factory):
    folder = tmp_path_factory.mktemp("slides")
    drawn.make(folder, size="tiny", seed=0)
    return folder


@pytest.fixture(scope="module")
def lazy(slides, tmp_path_factory):
    return prepared(config(), slides, tmp_path_factory.mktemp("lazy"))


@pytest.fixture
def own(slides, tmp_path):
    """The drawn slides without the large ones' siblings: slide00 alone, to be edited."""
    root = tmp_path / "root"
    (root / "slides").mkdir(parents=True)
    shutil.copy(slides / "slides/slide00.tif", root / "slides")
    table(root, [("slide00", "slides/slide00.tif")])
    return root


def table(root, rows, columns=("slide_id", "path"), name="slides.csv"):
    pl.DataFrame([dict(zip(columns, row, strict=True)) for row in rows]).write_csv(root / name)


def another(root, name):
    """The same picture in a file with other bytes."""
    (root / f"slides/{name}.tif").write_bytes((root / "slides/slide00.tif").read_bytes() + name.encode())


ALONE = {"points": None, "group_by": "slide", "split": {"test": 0}}


def test_accounts_sum_and_say_what_became_of_every_slide_and_tile(lazy):
    artifact, data = lazy
    accounts = artifact.accounts()
    for what in ("slides", "tiles"):
        accounts[what].check(what)
    assert accounts["slides"].plain() == {
        "total": 5, "kept": 3, "left_out": {"zero_tissue": 1}, "failed": {"not_a_slide": 1}
    }  # fmt: skip
    bad = rejected(artifact)
    assert bad["empty"][1] == "zero_tissue"
    assert "tissue_share 0" in bad["empty"][2]
    assert bad["truncated"][:2] == ("failed", "not_a_slide")
    assert "copy it again" in bad["truncated"][2]
    assert accounts["tiles"].kept == len(data.samples)
    tiles = rejected(artifact, "tile")
    assert len(tiles) == accounts["tiles"].total - accounts["tiles"].kept
    assert all(reason == "background" and "needed 0.5" in detail for _, reason, detail in tiles.values())
    versions = artifact.table("quarantine.parquet")["version"].unique().to_list()
    assert len(versions) == 1
    assert "OpenSlide 4" in versions[0]


def test_samples_are_grid_and_labelled_point_tiles_in_a_fixed_order(lazy, slides):
    _, data = lazy
    samples = data.samples
    assert samples["index"].to_list() == list(range(len(samples)))
    assert samples["id"].n_unique() == len(samples)
    assert samples.sort("slide_id", "kind", "y", "x", "id")["id"].to_list() == samples["id"].to_list()
    assert data.meta.classes == ("stroma", "tumour")
    assert data.meta.domain == "wsi"
    grid, points = (samples.filter(pl.col("kind") == kind) for kind in ("grid", "point"))
    assert grid["label"].null_count() == len(grid)
    assert (grid["tissue_fraction"] >= 0.5).all()
    assert (grid["x"] % 128 == 0).all()
    assert (grid["y"] % 128 == 0).all()
    given = pl.read_csv(slides / "points.csv").sort("slide_id")
    found = points.with_columns(row=pl.col("id").str.extract(r"point(\d+)$").cast(pl.Int64)).sort("row")
    assert (found["x"] + 64).to_list() == given["x"].to_list()
    assert found["label"].to_list() == given["label"].to_list()
    assert samples["true_label"].null_count() == len(samples)


def test_read_gives_the_region_of_the_slide(lazy, slides):
    _, data = lazy
    for row in (0, len(data.samples) // 2, len(data.samples) - 1):
        about = data.samples.row(row, named=True)
        slide = open_slide(slides / f"slides/{about['slide_id']}.tif")
        expected = read_tile(slide, geometry(slide), (about["x"], about["y"]), spacing_um=1.0, tile_px=64)
        assert (data.read(row) == expected).all()


def test_packed_pixels_are_the_pixels_of_the_slides_and_need_no_slides(lazy, slides, tmp_path):
    shutil.copytree(slides, tmp_path / "root")
    _, packed = prepared(config(pixels="packed"), tmp_path / "root", tmp_path)
    shutil.rmtree(tmp_path / "root")
    _, data = lazy
    assert packed.samples.equals(data.samples)
    assert packed.meta == data.meta
    assert all((packed.read(n) == data.read(n)).all() for n in range(0, len(data.samples), 7))
    assert not (tmp_path / "data/root.json").exists()


def test_jpeg_tiles_are_close_to_the_slides_and_need_none(lazy, slides, tmp_path):
    shutil.copytree(slides, tmp_path / "root")
    artifact, stored = prepared(config(pixels="jpeg"), tmp_path / "root", tmp_path)
    shutil.rmtree(tmp_path / "root")
    _, data = lazy
    assert stored.samples.equals(data.samples)
    for row in range(0, len(data.samples), 7):
        assert stored.read(row).shape == data.read(row).shape
        assert np.abs(stored.read(row).astype(int) - data.read(row)).mean() < 3
    index = artifact.table("tiles.parquet")
    with tarfile.open(artifact.path(index["file"][0])) as tar:
        members = tar.getmembers()
        own = index.filter(pl.col("file") == index["file"][0])
        assert [member.name for member in members] == [f"{n:06}.jpg" for n in range(len(own))]
        assert sorted(own["place"]) == [member.offset_data for member in members]
        assert sum(own["length"]) == sum(member.size for member in members)


@pytest.mark.parametrize("pixels", ["slides", "packed", "jpeg"])
def test_any_number_of_shards_gives_the_same_bytes(slides, tmp_path, pixels):
    settings = config(pixels=pixels, limit_tiles=5)
    one, _ = prepared(settings, slides, tmp_path / "one")
    three, _ = prepared(settings, slides, tmp_path / "three", num_shards=3)
    assert one.digest == three.digest


def test_where_the_slides_lie_is_not_part_of_the_result(lazy, slides, tmp_path):
    shutil.copytree(slides, tmp_path / "elsewhere")
    moved, _data = prepared(config(), tmp_path / "elsewhere", tmp_path)
    assert moved.digest == lazy[0].digest
    assert json.loads((tmp_path / "data/root.json").read_text())["slides_root"] == str(tmp_path / "elsewhere")
    (tmp_path / "data/root.json").unlink()
    with pytest.raises(DataError, match=r"root\.json: cannot be read .* it says where the slides are"):
        build(config()).open(moved)


def test_groups_stay_whole_and_few_test_groups_are_cautioned(lazy):
    _artifact, data = lazy
    parts = data.samples.group_by("group").agg(pl.col("split").n_unique())
    assert (parts["split"] == 1).all()
    assert set(data.samples["group"]) == {"P1", "P2", "P3"}
    assert data.meta.group == "patient"
    facts = data.meta.facts
    assert facts["num_groups"] == {"test": 1, "train": 2}
    assert "1 patient" in facts["caution"]
    assert "tiles of these slides, not about patients" in facts["caution"]
    assert (facts["size_px"], facts["spacing_um"], facts["channels"]) == (64, 1.0, 3)


def test_color_statistics_are_those_of_training_tiles(lazy):
    _, data = lazy
    rows = data.samples.filter(pl.col("split") == "train")["index"]
    pixels = np.stack([data.read(n) for n in rows]).reshape(-1, 3) / 255  # fewer than are sampled: all of them
    assert data.meta.facts["rgb_mean"] == pytest.approx(pixels.mean(axis=0))
    assert data.meta.facts["rgb_std"] == pytest.approx(pixels.std(axis=0))


def test_a_column_of_parts_wins_and_a_leak_is_refused(own, tmp_path):
    columns = ("slide_id", "path", "patient_id", "split")
    another(own, "b")
    rows = [("a", "slides/slide00.tif", "P", "train"), ("b", "slides/b.tif", "Q", "test")]
    table(own, rows, columns)
    _, data = prepared(config(points=None), own, tmp_path)
    assert dict(data.samples.select("slide_id", "split").unique().iter_rows()) == {"a": "train", "b": "test"}
    table(own, [(*rows[0],), ("b", "slides/b.tif", "P", "test")], columns)
    with pytest.raises(DataError, match=r"the split leaks: 1 patient.* P in test, train"):
        prepared(config(points=None), own, tmp_path)


def test_slide_labels_go_to_grid_tiles(own, tmp_path):
    table(own, [("slide00", "slides/slide00.tif", "tumour")], ("slide_id", "path", "label"))
    _, data = prepared(config(**ALONE, slide_labels=True), own, tmp_path)
    assert data.samples["label"].unique().to_list() == ["tumour"]
    assert data.meta.facts["bag"] == "slide_id"
    _, data = prepared(config(**ALONE), own, tmp_path)
    assert data.samples["label"].null_count() == len(data.samples)
    assert data.meta.classes == ()


def test_regions_of_a_slide_are_bags_of_its_points(slides, tmp_path):
    regions = {"size_um": 200, "positive": ["tumour"]}
    _, data = prepared(config(regions=regions), slides, tmp_path)
    assert data.meta.classes == ("negative", "positive")
    known = data.samples.filter(pl.col("region").is_not_null())
    assert set(known["kind"]) == {"point"}
    bags = index_bags(known, data.meta.facts, data.meta.classes)
    assert len(bags) > 2
    assert set(bags.targets) == {0, 1}
    assert data.samples.filter(kind="grid")["label"].null_count() == len(data.samples.filter(kind="grid"))


def test_limits_are_even_and_what_they_leave_out_is_counted(slides, tmp_path):
    artifact, data = prepared(config(limit_slides=2, limit_tiles=4, split={"test": 0}), slides, tmp_path)
    accounts = artifact.accounts()
    assert accounts["listed slides"].plain()["left_out"] == {"not chosen by limit_slides": 3}
    assert accounts["slides"].total == 2
    kinds = data.samples.group_by("slide_id", "kind").len()
    assert (kinds["len"] == 4).all()
    labels = data.samples.filter(pl.col("kind") == "point")["label"].value_counts()
    assert set(labels["count"]) == {2 * len(kinds) // 2}  # both labels equally
    assert accounts["tiles"].left_out["limit_tiles"] > 0


def test_only_names_slides_and_unknown_ones_are_refused(slides, tmp_path):
    settings = config(only=["slide01"], split={"test": 0})
    artifact, data = prepared(settings, slides, tmp_path)
    assert set(data.samples["slide_id"]) == {"slide01"}
    assert artifact.accounts()["slides"].total == 1
    with pytest.raises(DataError, match="only: there is no slide 'slide9'"):
        build(config(only=["slide9"])).listing(slides)


def test_scores_of_tiles_find_the_blurred_region_and_a_limit_takes_it_out(slides, tmp_path):
    regions = json.loads((slides / "truth/slide01.geojson").read_text())["features"]
    blur = next(np.array(f["geometry"]["coordinates"][0]) for f in regions if "blur" in str(f["properties"]))
    (left, top), (right, bottom) = blur.min(axis=0), blur.max(axis=0)
    only = {**ALONE, "only": ["slide01"], "tile_px": 32}
    _, every = prepared(config(**only), slides, tmp_path / "every")
    inside = (pl.col("x") >= left) & (pl.col("x") + 64 <= right) & (pl.col("y") >= top) & (pl.col("y") + 64 <= bottom)
    blurred, sharp = every.samples.filter(inside)["sharpness"], every.samples.filter(~inside)["sharpness"]
    assert len(blurred) > 0
    assert blurred.max() < sharp.median()
    limit = float(blurred.max()) + 1e-3
    artifact, fewer = prepared(config(**only, quality={"min_sharpness": limit}), slides, tmp_path / "fewer")
    assert not set(every.samples.filter(inside)["id"]) & set(fewer.samples["id"])
    left_out = {reason for _, reason, _ in rejected(artifact, "tile").values()}
    assert left_out == {"background", "blurred"}
    assert artifact.accounts()["tiles"].total == len(every.samples) + sum(
        reason == "background" for _, reason, _ in rejected(artifact, "tile").values()
    )


def test_neither_a_stroke_of_a_pen_nor_its_border_is_tissue(lazy, slides):
    artifact, _ = lazy
    regions = json.loads((slides / "truth/slide00.geojson").read_text())["features"]
    pen = next(shapely.from_geojson(json.dumps(f["geometry"])) for f in regions if "pen" in str(f["properties"]))
    name = artifact.table("slides.parquet").filter(pl.col("slide_id") == "slide00")["tissue"].item()
    tissue = shapely.from_geojson(artifact.path(name).read_text())
    assert tissue.area > 0
    assert not tissue.intersects(pen.buffer(30))


def test_a_slide_of_poor_tiles_only_says_by_how_much(slides, tmp_path):
    artifact, data = prepared(config(**ALONE, only=["slide00"], quality={"min_sharpness": 500}), slides, tmp_path)
    assert data.samples.is_empty()
    outcome, reason, detail = rejected(artifact)["slide00"]
    assert (outcome, reason) == ("left_out", "no_tile_of_quality")
    assert "kept with quality.min_sharpness" in detail
    assert artifact.has("figures/slide0.png")


def test_a_mask_that_is_given_back_changes_nothing_and_an_edited_one_does(own, tmp_path):
    first, before = prepared(config(**ALONE), own, tmp_path / "first")
    name = first.table("slides.parquet")["tissue"].item()
    assert re.fullmatch(r"tissue/\d{6}_slide00.geojson", name)
    shutil.copy(first.path(name), own / "mask.geojson")
    again, after = prepared(config(**ALONE, slides_root="slides"), _moved(own), tmp_path / "again")
    assert after.samples.equals(before.samples)
    digest = again.table("slides.parquet")["mask_sha256"].item()
    square = [[0, 0], [0, 512], [512, 512], [512, 0], [0, 0]]
    (own / "slides/mask.geojson").write_text(json.dumps({"type": "Polygon", "coordinates": [square]}))
    any_quality = {"max_white": 1, "min_sharpness": 0}  # the square has glass in it
    edited, fewer = prepared(config(**ALONE, slides_root="slides", quality=any_quality), own, tmp_path / "edited")
    assert fewer.samples.select("x", "y").rows() == [(x, y) for y in range(0, 512, 128) for x in range(0, 512, 128)]
    assert edited.table("slides.parquet")["mask_sha256"].item() != digest
    assert build(config(**ALONE, slides_root="slides")).inputs(own)[-1] == own / "slides/mask.geojson"


def _moved(root):
    """Slide and mask in one folder, which the table is not in."""
    shutil.move(root / "mask.geojson", root / "slides")
    table(root, [("slide00", "slide00.tif", "mask.geojson")], ("slide_id", "path", "mask_path"))
    return root


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ('{"type": "Polygon", "coordinates": [[[0, 0], [9, 9], [9, 0], [0, 9], [0, 0]]]}', "Self-intersection"),
        ("not json", "is no JSON"),
    ],
)
def test_a_mask_that_is_no_area_fails_its_slide_alone(own, tmp_path, content, message):
    shutil.copy(own / "slides/slide00.tif", own / "slides/other.tif")
    (own / "slides/mask.geojson").write_text(content)
    rows = [("slide00", "slides/slide00.tif", "slides/mask.geojson"), ("other", "slides/other.tif", None)]
    table(own, rows, ("slide_id", "path", "mask_path"))
    artifact, data = prepared(config(**ALONE), own, tmp_path / "out")
    outcome, reason, detail = rejected(artifact)["slide00"]
    assert (outcome, reason) == ("failed", "bad_mask")
    assert message in detail
    assert set(data.samples["slide_id"]) == {"other"}


def test_a_given_mask_beside_the_slide_leaves_no_tissue_and_says_so(own, tmp_path):
    square = [[90000, 0], [90000, 9], [90009, 9], [90000, 0]]
    (own / "slides/mask.geojson").write_text(json.dumps({"type": "Polygon", "coordinates": [square]}))
    table(own, [("slide00", "slides/slide00.tif", "slides/mask.geojson")], ("slide_id", "path", "mask_path"))
    artifact, _ = prepared(config(**ALONE), own, tmp_path / "out")
    assert rejected(artifact)["slide00"] == ("left_out", "zero_tissue", "no tissue found: share_of_the_given_mask 0")


def test_scores_are_null_where_pixels_were_not_read(own, tmp_path):
    _, data = prepared(config(**ALONE, check_tiles=False), own, tmp_path / "out")
    assert data.samples["sharpness"].null_count() == len(data.samples) > 0


def test_points_that_cannot_become_tiles_are_left_out_with_reasons(own, tmp_path):
    rows = [("slide00", 500, 500, "a"), ("slide00", 5, 500, "a"), ("slide00", 500, 520, "zz"), ("other", 1, 1, "a")]
    table(own, [*rows, ("slide00", 400, 500, None)], ("slide_id", "x", "y", "label"), "points.csv")
    points = {"table": "points.csv", "exclude_labels": ["zz"]}
    artifact, data = prepared(config(**{**ALONE, "points": points}), own, tmp_path)
    reasons = {item[-2:]: found[1] for item, found in rejected(artifact, "tile").items() if "/point" in item}
    assert reasons == {"02": "outside_slide", "03": "excluded_label", "04": "slide_not_listed"}
    kept = data.samples.filter(pl.col("kind") == "point")
    assert kept.select("id", "x", "y", "label").rows() == [
        ("slide00/point000001", 436, 436, "a"),
        ("slide00/point000005", 336, 436, None),
    ] or kept["id"].to_list() == ["slide00/point000005", "slide00/point000001"]
    artifact.accounts()["tiles"].check("tiles")


def test_each_bad_slide_has_its_reason_and_stops_no_other(own, tmp_path):
    folder = own / "slides"
    write(folder / "no_spacing.tif", mpp=None)
    write(folder / "absurd.tif", mpp=0.5)
    write(folder / "coarse.tif", mpp=2.0)
    write(folder / "small.tif", np.full((40, 40, 3), 128, np.uint8), levels=1)
    write(folder / "dark.tif", np.zeros((512, 512, 3), np.uint8))
    (folder / "text.svs").write_text("no slide")
    header_only(folder / "bomb.tif", 100_000 // 16 * 16)
    names = ("no_spacing", "absurd", "coarse", "small", "dark", "bomb")
    rows = [(name, f"slides/{name}.tif", 99 if name == "absurd" else None) for name in names]
    rows += [("text", "slides/text.svs", None), ("gone", "slides/gone.svs", None)]
    table(own, [*rows, ("slide00", "slides/slide00.tif", None)], ("slide_id", "path", "mpp"))
    artifact, data = prepared(config(**ALONE), own, tmp_path)
    found = rejected(artifact)
    assert {name: (outcome, reason) for name, (outcome, reason, _) in found.items()} == {
        "no_spacing": ("failed", "no_spacing"),
        "absurd": ("failed", "implausible_spacing"),
        "coarse": ("left_out", "too_coarse"),
        "small": ("left_out", found["small"][1]),
        "dark": ("left_out", "dark_background"),
        "bomb": ("failed", "implausible_size"),
        "text": ("failed", "not_a_slide"),
        "gone": ("failed", "missing_file"),
    }
    assert "column mpp" in found["no_spacing"][2]
    assert "99 x 99 um/px" in found["absurd"][2]
    assert "set spacing_um to at least 1.905" in found["coarse"][2]
    assert found["small"][1] in ("smaller_than_a_tile", "zero_tissue")
    assert set(data.samples["slide_id"]) == {"slide00"}


def emptied(path, every):
    """Sets the length of every n-th stored tile of the first level to 0 in the index of the file."""
    with tifffile.TiffFile(path) as file:
        tag, order = file.pages[0].tags["TileByteCounts"], file.byteorder
        size = {3: 2, 4: 4, 16: 8}[tag.dtype]
    with path.open("r+b") as file:
        for n in range(0, tag.count, every):
            file.seek(tag.valueoffset + n * size)
            file.write((0).to_bytes(size, "little" if order == "<" else "big"))


def test_tiles_of_no_bytes_are_left_out_and_never_white(own, tmp_path):
    _, before = prepared(config(**ALONE, spacing_um=0.5, tile_px=256), own, tmp_path / "before")
    known = {before.read(n).tobytes() for n in range(len(before.samples))}
    emptied(own / "slides/slide00.tif", 2)
    artifact, data = prepared(config(**ALONE, spacing_um=0.5, tile_px=256), own, tmp_path / "after")
    account = artifact.accounts()["tiles"]
    lost = account.left_out.get("not_scanned", 0) + account.failed.get("unreadable", 0)
    assert len(data.samples) + lost == len(before.samples)
    assert lost >= len(before.samples) // 3
    assert {data.read(n).tobytes() for n in range(len(data.samples))} <= known


def test_a_slide_without_lower_levels_gives_the_same_tiles(own, tmp_path):
    image = np.asarray(slide_module.Image.open(own / "slides/slide00.tif"))
    write(own / "slides/flat.tif", image, levels=1, jpeg=False)
    write(own / "slides/pyramid.tif", image, levels=3, jpeg=False)
    table(own, [("flat", "slides/flat.tif"), ("pyramid", "slides/pyramid.tif")])
    _, data = prepared(config(**ALONE, spacing_um=0.5), own, tmp_path / "out")
    flat, pyramid = (data.samples.filter(pl.col("slide_id") == name) for name in ("flat", "pyramid"))
    assert len(flat) > 10
    assert len(set(flat.select("x", "y").rows()) ^ set(pyramid.select("x", "y").rows())) <= 0.1 * len(flat)


def test_the_content_counts_and_not_the_suffix(own, tmp_path):
    shutil.copy(own / "slides/slide00.tif", own / "slides/renamed.svs")
    slide_module.Image.new("RGB", (300, 300)).save(own / "slides/picture.png")
    (own / "slides/picture.png").rename(own / "slides/picture.svs")
    rows = [("renamed", "slides/renamed.svs", None), ("picture", "slides/picture.svs", 0.5)]
    table(own, rows, ("slide_id", "path", "mpp"))
    artifact, data = prepared(config(**ALONE), own, tmp_path / "out")
    assert set(data.samples["slide_id"]) == {"renamed"}
    assert rejected(artifact)["picture"][:2] == ("failed", "not_a_slide")


@pytest.mark.parametrize("pixels", ["slides", "packed", "jpeg"])
def test_the_same_bytes_under_two_names_are_one_slide(own, tmp_path, pixels):
    shutil.copy(own / "slides/slide00.tif", own / "slides/again.tif")
    table(own, [("slide00", "slides/slide00.tif"), ("x_again", "slides/again.tif"), ("y_twice", "slides/slide00.tif")])
    settings = config(**ALONE, pixels=pixels)
    artifact, data = prepared(settings, own, tmp_path / "both", num_shards=2)
    table(own, [("slide00", "slides/slide00.tif")])
    _, alone = prepared(settings, own, tmp_path / "alone")
    assert data.samples["id"].to_list() == alone.samples["id"].to_list()
    assert (data.read(len(data.samples) - 1) == alone.read(len(alone.samples) - 1)).all()
    assert artifact.accounts()["slides"].plain() == {"total": 3, "kept": 1, "left_out": {"copy": 2}, "failed": {}}
    tiles = artifact.accounts()["tiles"]
    tiles.check("tiles")
    assert tiles.left_out["copy_of_a_slide"] == 2 * len(data.samples) == 2 * tiles.kept
    assert rejected(artifact)["y_twice"] == ("left_out", "copy", "the same bytes as slide slide00")


def test_copies_of_different_patients_are_refused(own, tmp_path):
    rows = [("slide00", "slides/slide00.tif", "P1"), ("twin", "slides/slide00.tif", "P2")]
    table(own, rows, ("slide_id", "path", "patient_id"))
    with pytest.raises(DataError, match=r"'slide00' and 'twin' are the same, byte.*P1, None and P2, None"):
        prepared(config(points=None, split={"test": 0}), own, tmp_path)


def test_a_checksum_in_the_table_catches_what_the_decoder_does_not(own, tmp_path):
    path = own / "slides/slide00.tif"
    right = slide_sha256(path)
    content = bytearray(path.read_bytes())
    with tifffile.TiffFile(path) as tiff:
        page = tiff.pages[0]
        content[page.dataoffsets[5] + page.databytecounts[5] // 2] ^= 0xFF
    (own / "slides/flipped.tif").write_bytes(content)
    table(own, [("flipped", "slides/flipped.tif"), ("slide00", "slides/slide00.tif")])
    assert rejected(prepared(config(**ALONE), own, tmp_path / "silent")[0]) == {}
    rows = [("flipped", "slides/flipped.tif", right), ("slide00", "slides/slide00.tif", right.upper())]
    table(own, rows, ("slide_id", "path", "sha256"))
    artifact, data = prepared(config(**ALONE), own, tmp_path / "stated")
    assert rejected(artifact)["flipped"][:2] == ("failed", "wrong_checksum")
    assert set(data.samples["slide_id"]) == {"slide00"}


def test_a_slide_of_one_pixel_is_explained(own, tmp_path):
    write(own / "slides/pixel.tif", np.full((1, 1, 3), 200, np.uint8), levels=1, jpeg=False)
    rows = [("pixel", "slides/pixel.tif"), ("slide00", "slides/slide00.tif")]
    table(own, rows)
    artifact, data = prepared(config(**ALONE), own, tmp_path / "out")
    assert rejected(artifact)["pixel"][1] in ("zero_tissue", "smaller_than_a_tile")
    assert set(data.samples["slide_id"]) == {"slide00"}


def test_tiles_of_slides_without_a_label_stay_for_pretraining_and_are_in_no_bag(own, tmp_path):
    for name in ("one", "two"):
        another(own, name)
    rows = [("slide00", "slides/slide00.tif", "a"), ("one", "slides/one.tif", "b"), ("two", "slides/two.tif", None)]
    table(own, rows, ("slide_id", "path", "label"))
    _, data = prepared(config(**ALONE, slide_labels=True), own, tmp_path / "out")
    unlabelled = data.samples.filter(pl.col("slide_id") == "two")
    assert len(unlabelled) > 0
    assert unlabelled["label"].null_count() == len(unlabelled)
    bags = index_bags(data.samples, data.meta.facts, data.meta.classes)
    assert bags.names.tolist() == ["one", "slide00"]


def test_points_of_an_unusable_slide_are_left_out_too(own, tmp_path):
    table(own, [("slide00", "slides/slide00.tif"), ("gone", "slides/gone.tif")])
    table(own, [("gone", 1, 1, "a"), ("slide00", 500, 500, "a")], ("slide_id", "x", "y", "label"), "points.csv")
    artifact, _ = prepared(config(**{**ALONE, "points": {"table": "points.csv"}}), own, tmp_path)
    assert rejected(artifact, "tile")["gone/point000001"] == ("left_out", "slide_not_used", "slide gone: missing_file")


def test_unreadable_tiles_fail_with_a_reason_and_the_others_are_kept(own, tmp_path):
    damaged(own / "slides/slide00.tif", 0.7)
    for pixels in ("slides", "packed"):
        settings = config(**ALONE, spacing_um=0.5, pixels=pixels, unreadable_budget=1)
        artifact, data = prepared(settings, own, tmp_path / pixels)
        account = artifact.accounts()["tiles"]
        assert account.failed["unreadable"] > 5
        assert account.kept > 20
        assert artifact.accounts()["slides"].kept == 1
        assert min(data.read(n).std() for n in range(len(data.samples))) > 1


def test_a_slide_with_more_unreadable_tiles_than_the_budget_fails_and_no_other(own, tmp_path):
    shutil.copy(own / "slides/slide00.tif", own / "slides/sound.tif")
    table(own, [("slide00", "slides/slide00.tif"), ("sound", "slides/sound.tif")])
    damaged(own / "slides/slide00.tif", 0.7)
    artifact, data = prepared(config(**ALONE, spacing_um=0.5), own, tmp_path / "out")
    outcome, reason, detail = rejected(artifact)["slide00"]
    assert (outcome, reason) == ("failed", "unreadable_tiles")
    assert "data.source.unreadable_budget allows 0.50%; copy the file again" in detail
    assert set(data.samples["slide_id"]) == {"sound"}
    account = artifact.accounts()["tiles"]
    account.check("tiles")
    assert account.num_failed == 0
    tiles = [found for item, found in rejected(artifact, "tile").items() if item.startswith("slide00/")]
    assert {reason for _, reason, _ in tiles} == {"slide_not_used", "background"}
    assert any("this one: " in detail for _, _, detail in tiles)


def test_every_slide_that_was_looked_at_has_its_picture(lazy):
    artifact, _ = lazy
    slides = artifact.table("slides.parquet")
    for row in slides.iter_rows(named=True):
        assert (row["overlay"] is None) == (row["slide_id"] == "truncated")
        assert row["overlay"] is None or artifact.path(row["overlay"]).read_bytes().startswith(b"\x89PNG")


def test_a_slide_whose_pixels_are_all_damaged_fails(own, tmp_path):
    damaged(own / "slides/slide00.tif", 0.0)
    artifact, data = prepared(config(**ALONE, spacing_um=0.5), own, tmp_path)
    assert rejected(artifact)["slide00"][:2] == ("failed", "unreadable")
    assert len(data.samples) == 0


def test_a_changed_slide_is_refused_when_it_is_read(own, tmp_path):
    artifact, _ = prepared(config(**ALONE), own, tmp_path)
    write(own / "slides/slide00.tif", np.zeros((1024, 1024, 3), np.uint8))
    with pytest.raises(DataError, match=r"slide00\.tif: the slide has changed since it was prepared"):
        build(config(**ALONE)).open(artifact).read(0)


def _digest_of_rows(data, rows):
    return [data.read(row).tobytes() for row in rows]


@pytest.mark.parametrize("method", ["fork", "spawn"])
def test_workers_read_the_same_pixels(lazy, method):
    _, data = lazy
    rows = [0, 20, len(data.samples) - 1]
    here = _digest_of_rows(data, rows)
    with get_context(method).Pool(1) as pool:
        assert pool.apply(_digest_of_rows, (data, rows)) == here


def test_a_folder_of_slides_needs_no_table(slides, tmp_path):
    shutil.copytree(slides / "slides", tmp_path / "root/mine")
    (tmp_path / "root/mine/notes.txt").write_text("hello")
    settings = validate(
        Config, {"folder": "mine", "spacing_um": 1.0, "tile_px": 64, "group_by": "slide"}, file="r", owner="sources/wsi"
    )
    artifact, data = prepared(settings, tmp_path / "root", tmp_path)
    assert artifact.accounts()["slides"].left_out == {"not_a_slide_file": 1, "zero_tissue": 1}
    assert set(data.samples["slide_id"]) == {"slide00", "slide01", "slide02"}


def test_all_problems_of_a_table_are_in_one_message(own):
    rows = [
        ("a", "slides/slide00.tif", "train", "0.5"),
        ("a", "../../outside.tif", "dev", "half"),
        (None, None, None, None),
    ]
    table(own, rows, ("slide_id", "path", "split", "mpp"))
    with pytest.raises(DataError) as caught:
        build(config(**ALONE)).listing(own)
    message = str(caught.value)
    for part in (
        "slide id 'a' is there twice, first in slides.csv row 1",
        "leaves the data root",
        "split 'dev' is not one of train, val, test",
        "'half' in column mpp is no number",
        "row 3: the slide id is empty",
        "row 3: the path is empty",
    ):
        assert part in message


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"table": "nothing.csv"}, r"nothing\.csv: there is no such table of slides"),
        ({"table": "empty.csv"}, r"empty\.csv: the table is empty"),
        ({"table": "slides.tif"}, r"a table is \.csv or \.parquet, this is \.tif"),
        ({"table": "broken.parquet"}, r"broken\.parquet: cannot be read as a table"),
        ({"columns": {"slide": "slid"}}, r"has no column 'slid' \(slide\)\. Did you mean slide_id"),
        ({"columns": {"patient": "person"}}, r"has no column 'person' \(patient\)"),
        ({"group_by": "patient"}, r"row 1: the patient is empty .* group_by: slide"),
        ({"table": "../slides.csv"}, "leaves the data root"),
        ({"slides_root": "../.."}, "leaves the data root"),
        ({"points": {"table": "points.csv", "slide_prefix": "x"}}, "no point is on a slide of the table"),
        ({"points": {"table": "wrong.csv"}}, r"'left' in column x is no number of level-0 pixels"),
        ({"points": {"table": "points.csv", "x": "pixel_x"}}, r"points\.csv: has no column 'pixel_x'"),
        ({"split": {"test": 0.5}}, "cannot be divided into test"),
    ],
)
def test_wrong_tables_are_refused_with_what_to_do(own, values, message):
    (own / "empty.csv").write_text("slide_id,path\n")
    (own / "slides.tif").write_text("x")
    (own / "broken.parquet").write_bytes(b"PAR1 nothing")
    table(own, [("slide00", 1, 1, "a")], ("slide_id", "x", "y", "label"), "points.csv")
    table(own, [("slide00", "left", 1, "a")], ("slide_id", "x", "y", "label"), "wrong.csv")
    with pytest.raises(DataError, match=message):
        build(config(**{**ALONE, **values})).listing(own)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"folder": "slides"}, "give either table or folder"),
        ({"overlap_px": 64}, "overlap_px must be below tile_px"),
        ({"points": None, "regions": {"positive": ["tumour"]}}, "regions needs points"),
        ({"spacing_um": 0.01}, "spacing_um"),
        ({"tile_size": 64}, "is not a setting of sources/wsi"),
    ],
)
def test_wrong_settings_are_refused(values, message):
    with pytest.raises(SettingsError, match=message):
        config(**values)


def test_figures_are_listed_and_small(lazy):
    artifact, _ = lazy
    entries = artifact.json("figures.json")
    assert [e["title"] for e in entries][:1] == ["Tiles"]
    assert {"Slide slide00", "Slide empty"} <= {e["title"] for e in entries}
    assert "3 of 3 slides" in entries[0]["caption"]
    assert "Not used: zero_tissue" in next(e["caption"] for e in entries if e["title"] == "Slide empty")
    for entry in entries:
        content = artifact.path(entry["file"]).read_bytes()
        assert content.startswith(b"\x89PNG")
        assert len(content) < 400_000


def test_new_slides_are_tiled_as_the_training_data_without_labels(own, tmp_path):
    trained = config(columns={"slide": "name", "patient": "who"}, limit_slides=1, pixels="packed", only=["x"])
    new = for_new_data(trained, "slides.csv")
    assert (new.spacing_um, new.tile_px, new.points, new.only, new.limit_slides) == (1.0, 64, None, (), None)
    _, data = prepared(new, own, tmp_path / "usual")
    assert set(data.samples["split"]) == {"train"}
    assert data.samples["label"].null_count() == len(data.samples)
    table(own, [("slide00", "slides/slide00.tif")], ("name", "path"))
    _, other = prepared(new, own, tmp_path / "renamed")
    assert other.samples.equals(data.samples)
    assert for_new_data(trained, "folder").folder == "folder"


def test_a_draft_is_a_recipe_filled_in_from_the_table(slides, tmp_path):
    values = draft(slides / "slides.csv")
    source = validate(Config, values["data"]["source"], file="r", owner="sources/wsi")
    assert source.slide_labels
    assert source.group_by == "patient"
    assert "finetune" in values
    table(tmp_path, [("a", "b.svs", "P")], ("slide", "file", "patient"), "mine.csv")
    values = draft(tmp_path / "mine.csv")
    columns = {"slide": "slide", "path": "file", "patient": "patient"}
    assert values["data"]["source"]["columns"] == columns
    assert "finetune" not in values
    assert "evaluate" not in values
    assert validate(Config, draft(slides)["data"]["source"], file="r", owner="sources/wsi").folder == slides.name


@on_real_data
def test_real_slides_are_all_explained(tmp_path):
    root = DATA
    settings = {
        "table": "wsi/slides.csv", "columns": {"patient": "patient"}, "spacing_um": 1.0, "tile_px": 96,
        "limit_tiles": 4, "split": {"test": 0},
    }  # fmt: skip
    artifact, data = prepared(validate(Config, settings, file="r", owner="sources/wsi"), root, tmp_path)
    assert artifact.accounts()["slides"].plain() == {
        "total": 32, "kept": 30, "left_out": {"dark_background": 1}, "failed": {"no_spacing": 1}
    }  # fmt: skip
    assert (data.samples.group_by("slide_id").len()["len"] == 4).all()
