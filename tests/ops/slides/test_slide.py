"""Slides are read at any spacing, and what cannot be read or believed is refused with a reason."""

import os
import pickle
import struct
import zlib

import numpy as np
import pytest
import tifffile

from appssl.errors import DataError
from appssl.ops.slides import slide as slide_module
from appssl.ops.slides.files import slide_sha256
from appssl.ops.slides.reader import Handles
from appssl.ops.slides.slide import (
    BadSlide,
    Geometry,
    UnreadableRegion,
    geometry,
    open_slide,
    overview,
    read_tile,
    refuse_too_coarse,
    stored_spacing,
)
from tests.real_data import DATA, on_real_data


def picture(side=512, seed=0):
    """Smooth colours, so that JPEG and resampling change little."""
    y, x = np.mgrid[:side, :side] / side
    phase = np.random.default_rng(seed).uniform(0, 6, 3)
    waves = [np.sin(5 * x + 3 * y + p) + np.cos(7 * y - 2 * x + p) for p in phase]
    return np.clip(128 + 50 * np.stack(waves, -1), 0, 255).astype(np.uint8)


def write(path, image=None, *, mpp=0.5, levels=2, jpeg=True):
    image = picture() if image is None else image
    how = {"compression": "jpeg", "compressionargs": {"level": 95}} if jpeg else {"compression": "zlib"}
    with tifffile.TiffWriter(path) as writer:
        for n in range(levels):
            spacing = {"resolution": (1e4 / mpp / 2**n,) * 2, "resolutionunit": "CENTIMETER"} if mpp else {}
            level = np.asarray(slide_module.Image.fromarray(image).reduce(2**n)) if n else image
            writer.write(
                level, tile=(256, 256), photometric="rgb", subfiletype=int(n > 0), metadata=None, **how, **spacing
            )
    return path


def header_only(path, side):
    """A tiled TIFF whose header claims side x side pixels and whose tiles are empty."""
    entries = [
        (256, 4, 1, side), (257, 4, 1, side), (258, 3, 1, 8), (259, 3, 1, 1), (262, 3, 1, 1), (277, 3, 1, 1),
        (322, 4, 1, side), (323, 4, 1, side), (324, 4, 1, 8), (325, 4, 1, 1),
    ]  # fmt: skip
    body = struct.pack("<H", len(entries)) + b"".join(struct.pack("<HHII", *entry) for entry in entries)
    path.write_bytes(struct.pack("<2sHI", b"II", 42, 8) + body + struct.pack("<I", 0))
    return path


def png_header(path, side):
    chunk = b"IHDR" + struct.pack(">IIBBBBB", side, side, 8, 2, 0, 0, 0)
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + struct.pack(">I", 13) + chunk + struct.pack(">I", zlib.crc32(chunk)))
    return path


def reason(path, **values):
    with pytest.raises(BadSlide) as caught:
        geometry(open_slide(path), **values)
    return caught.value.reason, caught.value.detail


def test_a_tile_of_a_stored_level_is_the_stored_pixels(tmp_path):
    image = picture()
    slide = open_slide(write(tmp_path / "s.tif", image, jpeg=False))
    tile = read_tile(slide, geometry(slide), (100, 40), spacing_um=0.5, tile_px=64)
    assert (tile == image[40:104, 100:164]).all()
    half = read_tile(slide, geometry(slide), (100, 40), spacing_um=1.0, tile_px=64)
    assert (half == np.asarray(slide_module.Image.fromarray(image).reduce(2))[20:84, 50:114]).all()


def test_a_resampled_tile_covers_the_same_region(tmp_path):
    image = picture()
    slide = open_slide(write(tmp_path / "s.tif", image, jpeg=False))
    for spacing in (0.7, 0.9, 1.3):
        tile = read_tile(slide, geometry(slide), (60, 90), spacing_um=spacing, tile_px=100)
        side = 100 * spacing / 0.5
        centers = (np.arange(100) + 0.5) * side / 100
        expected = image[np.ix_((90 + centers).astype(int), (60 + centers).astype(int))]
        assert tile.shape == (100, 100, 3)
        assert tile.dtype == np.uint8
        assert np.abs(tile.astype(int) - expected).max() <= 6  # nearest pixel of a smooth picture


def test_spacings_differ_in_x_and_y(tmp_path):
    path = tmp_path / "s.tif"
    how = {"resolution": (20_000, 10_000), "resolutionunit": "CENTIMETER", "compression": "zlib", "metadata": None}
    tifffile.imwrite(path, picture(), tile=(256, 256), photometric="rgb", **how)
    found = geometry(open_slide(path))
    assert found.mpp == (0.5, 1.0)
    assert found.pixels0(100.0) == (200.0, 100.0)
    assert read_tile(open_slide(path), found, (0, 0), spacing_um=1.0, tile_px=64).shape == (64, 64, 3)


def test_the_level_is_the_coarsest_that_is_fine_enough():
    found = Geometry((4000, 4000), (0.25, 0.25), (1.0, 2.0, 4.0), ((4000, 4000), (2000, 2000), (1000, 1000)))
    assert [found.level_for(s) for s in (0.24, 0.25, 0.4, 0.5, 0.9, 1.0, 9.0)] == [0, 0, 0, 1, 1, 2, 2]


def test_the_overview_is_the_mean_of_areas(tmp_path, monkeypatch):
    image = picture()
    slide = open_slide(write(tmp_path / "s.tif", image, levels=1, jpeg=False))
    whole = overview(slide, geometry(slide), 8.0)
    assert whole.shape == (32, 32, 3)
    assert np.abs(whole - image.reshape(32, 16, 32, 16, 3).mean(axis=(1, 3))).max() <= 1
    monkeypatch.setattr(slide_module, "_STRIP_PIXELS", 512 * 40)
    assert (overview(slide, geometry(slide), 8.0) == whole).all()


def test_spacing_is_read_from_the_slide_or_its_resolution_tags():
    assert stored_spacing({"openslide.mpp-x": "0.25", "openslide.mpp-y": "0.26"}) == (0.25, 0.26)
    tags = {"tiff.XResolution": "40000", "tiff.YResolution": "20000", "tiff.ResolutionUnit": "centimeter"}
    assert stored_spacing(tags) == (0.25, 0.5)
    assert stored_spacing({**tags, "tiff.ResolutionUnit": "inch"}) == pytest.approx((0.635, 1.27))
    assert stored_spacing({**tags, "tiff.ResolutionUnit": "none"}) is None
    assert stored_spacing({"openslide.mpp-x": "nan", "openslide.mpp-y": "1"}) is None
    assert stored_spacing({}) is None


def test_a_slide_without_spacing_says_how_to_state_it(tmp_path):
    path = write(tmp_path / "s.tif", mpp=None)
    code, detail = reason(path)
    assert code == "no_spacing"
    assert "column mpp" in detail
    assert geometry(open_slide(path), 0.4).mpp == (0.4, 0.4)


@pytest.mark.parametrize("stated", [0.04, 21.0, -1.0])
def test_an_implausible_spacing_is_refused(tmp_path, stated):
    code, detail = reason(write(tmp_path / "s.tif"), stated_mpp=stated)
    assert code == "implausible_spacing"
    assert f"{stated:g}" in detail
    assert "0.05 to 20" in detail


def test_tiles_finer_than_the_slide_are_an_explained_outcome():
    found = Geometry((100, 100), (0.69, 0.69), (1.0,), ((100, 100),))
    refuse_too_coarse(found, 0.66)  # within 5 %
    with pytest.raises(BadSlide, match=r"too_coarse: the slide has 0\.69 um/px, tiles of 0\.5") as caught:
        refuse_too_coarse(found, 0.5)
    assert not caught.value.failed


def test_what_is_no_slide_is_refused_with_a_reason(tmp_path):
    (tmp_path / "text.svs").write_text("not a slide")
    (tmp_path / "empty.tif").write_bytes(b"")
    whole = write(tmp_path / "whole.tif").read_bytes()
    (tmp_path / "cut.tif").write_bytes(whole[: len(whole) // 3])
    assert reason(tmp_path / "missing.svs")[0] == "missing_file"
    for name in ("text.svs", "empty.tif", "cut.tif"):
        code, detail = reason(tmp_path / name)
        assert code in ("not_a_slide", "unreadable"), name
        assert "copy" in detail, name


def test_ten_thousand_million_claimed_pixels_are_refused_before_decoding(tmp_path):
    code, detail = reason(header_only(tmp_path / "bomb.tif", 100_000 // 16 * 16))
    assert code == "implausible_size"
    assert "100000 x 100000" in detail
    assert reason(png_header(tmp_path / "bomb.png", 100_000))[0] == "not_a_slide"


def test_a_huge_stored_tile_is_refused(tmp_path):
    path = header_only(tmp_path / "tile.tif", 16_384)
    with path.open("ab") as file:
        file.write(bytes(100_000))  # enough bytes for that many pixels
    code, detail = reason(path)
    assert code == "implausible_size"
    assert "16384 x 16384" in detail


def damaged(path, share):
    """Overwrites the pixels of the slide behind `share` of its first level."""
    with tifffile.TiffFile(path) as file:
        places = list(zip(file.pages[0].dataoffsets, file.pages[0].databytecounts, strict=True))
    with path.open("r+b") as file:
        for offset, count in places[int(len(places) * share) :]:
            file.seek(offset)
            file.write(bytes(count))
    return path


def test_a_damaged_region_is_an_error_never_white(tmp_path):
    path = damaged(write(tmp_path / "s.tif"), 0.75)
    slide = open_slide(path)
    assert read_tile(slide, geometry(slide), (0, 0), spacing_um=0.5, tile_px=64).std() > 0
    with pytest.raises(UnreadableRegion):
        read_tile(slide, geometry(slide), (300, 300), spacing_um=0.5, tile_px=64)


def test_handles_keep_the_last_used_and_survive_pickling_and_forks(tmp_path):
    paths = [write(tmp_path / f"{n}.tif", picture(seed=n)) for n in range(3)]
    digests = [slide_sha256(path) for path in paths]
    handles = Handles(capacity=2)
    first = handles.get(paths[0], digests[0])
    handles.get(paths[1], digests[1])
    assert handles.get(paths[0], digests[0]) is first
    handles.get(paths[2], digests[2])
    assert handles.get(paths[0], digests[0]) is first
    assert pickle.loads(pickle.dumps(handles)).get(paths[0], digests[0]) is not first
    read, written = os.pipe()
    if os.fork() == 0:
        os.write(written, b"own" if handles.get(paths[0], digests[0]) is not first else b"shared")
        os._exit(0)
    os.wait()
    assert os.read(read, 10) == b"own"


def test_a_changed_or_missing_slide_is_a_data_error(tmp_path):
    path = write(tmp_path / "s.tif")
    digest = slide_sha256(path)
    write(path, picture(seed=5))
    with pytest.raises(DataError, match="has changed since it was prepared"):
        Handles().get(path, digest)
    path.unlink()
    with pytest.raises(DataError, match="is gone"):
        Handles().get(path, digest)


@on_real_data
def test_real_bad_slides_are_refused_with_their_reasons():
    root = DATA / "wsi"
    assert reason(root / "bad-inputs/broken.svs")[0] == "not_a_slide"
    assert reason(root / "tcga-cr-7395/tcga-cr-7395-01a-01-ts1.svs")[0] == "no_spacing"
    slide = open_slide(root / "bad-inputs/unreadable.svs")
    with pytest.raises(UnreadableRegion):
        overview(slide, geometry(slide), 8.0)
