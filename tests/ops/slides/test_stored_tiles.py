"""Stored tiles decoded directly are the pixels that OpenSlide gives, and where they are not this is noticed."""

import threading

import numpy as np
import openslide
import pytest
import tifffile

from appssl.ops.slides.reader import SlideReader
from appssl.ops.slides.slide import NotScanned, UnreadableRegion, open_slide, read_tile
from appssl.ops.slides.stored_tiles import difference, stored_tiles
from tests.ops.slides.test_slide import damaged, picture, write
from tests.real_data import DATA, on_real_data


@pytest.fixture
def slide(tmp_path):
    path = write(tmp_path / "s.tif", picture(side=700))
    handle = open_slide(path)
    return path, handle, stored_tiles(path, handle)


def through_openslide(handle, level, corner, size):
    return np.asarray(handle.read_region(corner, level, size).convert("RGB"))


@pytest.mark.parametrize("corner", [(0, 0), (128, 256), (100, 37), (255, 511), (636, 636)])
def test_regions_are_those_of_openslide(slide, corner):
    _, handle, stored = slide
    expected = through_openslide(handle, 0, corner, (64, 64))
    assert np.array_equal(stored.region(0, corner, (64, 64)), expected)


def test_a_region_over_many_tiles_is_put_together(slide):
    _, handle, stored = slide
    found = stored.region(0, (10, 20), (650, 640))
    assert np.array_equal(found, through_openslide(handle, 0, (10, 20), (650, 640)))
    assert np.array_equal(found, stored.region(0, (10, 20), (650, 640)))  # from the cache


def test_a_region_that_leaves_the_level_is_not_scanned(slide):
    _, _, stored = slide
    for corner in ((637, 0), (0, 637), (-1, 0), (0, -1)):
        with pytest.raises(NotScanned):
            stored.region(0, corner, (64, 64))


def test_nothing_differs_on_any_level_of_a_sound_slide(slide):
    _, handle, stored = slide
    assert set(stored.levels) == set(range(handle.level_count))
    assert [difference(stored, handle, level) for level in stored.levels] == [None] * handle.level_count


def test_other_pixels_are_noticed(slide, tmp_path):
    _, handle, _ = slide
    other = write(tmp_path / "other.tif", picture(side=700, seed=9))
    wrong = stored_tiles(other, open_slide(other))
    assert "differs by" in difference(wrong, handle, 0)


def test_other_compressions_are_left_to_openslide(tmp_path):
    path = write(tmp_path / "raw.tif", picture(), jpeg=False)
    assert stored_tiles(path, open_slide(path)) is None
    reader = SlideReader(path)
    assert "not decoded directly" in reader.use_stored(0.5)
    assert reader.stored_level is None
    found = reader.tile((10, 20), spacing_um=0.5, tile_px=64)
    assert np.array_equal(found, read_tile(reader.handle, reader.geometry, (10, 20), spacing_um=0.5, tile_px=64))


def test_damaged_and_cut_tiles_are_unreadable_and_the_others_are_not(tmp_path):
    path = damaged(write(tmp_path / "s.tif", picture(side=700)), 0.75)
    stored = stored_tiles(path, openslide.OpenSlide(path))
    stored.region(0, (0, 0), (64, 64))
    with pytest.raises(UnreadableRegion, match="stored tile"):
        stored.region(0, (600, 600), (64, 64))


def test_a_tile_that_is_not_stored_is_not_scanned(tmp_path):
    path = write(tmp_path / "s.tif", picture(side=700))
    with tifffile.TiffFile(path, mode="r+b") as file:
        tag = file.pages[0].tags["TileByteCounts"]
        tag.overwrite([0, *tag.value[1:]])
    stored = stored_tiles(path, openslide.OpenSlide(path))
    with pytest.raises(NotScanned):
        stored.region(0, (0, 0), (64, 64))


def test_a_reader_gives_openslides_tiles_where_these_are_not_interpolated(tmp_path):
    path = write(tmp_path / "s.tif", picture(side=768))
    reader = SlideReader(path)
    for spacing in (0.5, 1.0, 0.8, 1.3):
        assert reader.use_stored(spacing) == ""
        for corner in ((0, 0), (128, 64), (256, 192)):
            found = reader.tile(corner, spacing_um=spacing, tile_px=64)
            expected = read_tile(reader.handle, reader.geometry, corner, spacing_um=spacing, tile_px=64)
            assert np.array_equal(found, expected), (spacing, corner)


def test_threads_share_a_reader(slide):
    _, handle, stored = slide
    corners = [(x, y) for x in range(0, 600, 50) for y in range(0, 600, 50)]
    expected = {corner: through_openslide(handle, 0, corner, (64, 64)) for corner in corners}
    wrong = []

    def read(part):
        wrong.extend(c for c in part if not np.array_equal(stored.region(0, c, (64, 64)), expected[c]))

    threads = [threading.Thread(target=read, args=(corners[n::4],)) for n in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == []


@on_real_data
@pytest.mark.parametrize(
    ("path", "mpp", "direct"),
    [
        ("cmu-1-small-region/CMU-1-Small-Region.svs", None, True),  # JPEG, RGB, shared tables
        ("tcga-cr-7395/tcga-cr-7395-01a-01-ts1.svs", 0.25, True),  # JPEG 2000
        ("her2st-breast/her2st_C2.tif", None, True),  # JPEG, YCbCr
        ("hamamatsu-ndpi-dapi/test3-DAPI-2-387.ndpi", None, False),  # one long JPEG a level
    ],
)
def test_real_slides_are_decoded_directly_with_equal_pixels(path, mpp, direct):
    reader = SlideReader(DATA / "wsi" / path, mpp)
    spacing = reader.geometry.mpp[0]
    note = reader.use_stored(spacing)
    assert (note == "") == direct, note
    width, height = reader.geometry.size
    for corner in ((0, 0), (width // 2, height // 3), (width - 300, height - 300)):
        found = reader.tile(corner, spacing_um=spacing, tile_px=256)
        expected = read_tile(reader.handle, reader.geometry, corner, spacing_um=spacing, tile_px=256)
        assert np.array_equal(found, expected)
