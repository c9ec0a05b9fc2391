import numpy as np
import pytest
from PIL import Image

from appssl.ops.slides import flat_images
from appssl.ops.slides.reader import SlideReader
from appssl.ops.slides.slide import BadSlide, NotScanned, overview
from tests.ops.slides.test_slide import picture, png_header


@pytest.mark.parametrize("suffix", [".png", ".jpg", ".tif"])
def test_a_plain_image_of_stated_spacing_is_a_slide(tmp_path, suffix):
    path = tmp_path / f"image{suffix}"
    Image.fromarray(picture(300)).save(path)
    stored = np.asarray(Image.open(path).convert("RGB"))
    reader = SlideReader(path, 0.5)
    assert reader.geometry.size == (300, 300)
    assert reader.geometry.mpp == (0.5, 0.5)
    assert (reader.tile((40, 60), spacing_um=0.5, tile_px=64) == stored[60:124, 40:104]).all()
    assert reader.tile((0, 0), spacing_um=1.0, tile_px=64).shape == (64, 64, 3)
    assert overview(reader.handle, reader.geometry, 2.0).shape == (75, 75, 3)
    assert reader.use_stored(0.5) == "this format or compression is not decoded directly"
    with pytest.raises(NotScanned):
        reader.tile((280, 0), spacing_um=0.5, tile_px=64)


def test_grey_and_palette_images_become_rgb(tmp_path):
    grey = Image.fromarray(picture(64)[..., 0])
    for name, image in (("grey", grey), ("palette", grey.convert("P"))):
        image.save(tmp_path / f"{name}.png")
        pixels = SlideReader(tmp_path / f"{name}.png", 1.0).tile((0, 0), spacing_um=1.0, tile_px=64)
        assert (pixels == np.asarray(grey)[..., None]).all()


def reason(path, mpp):
    with pytest.raises(BadSlide) as caught:
        SlideReader(path, mpp)
    return caught.value.reason, caught.value.detail


def test_without_a_stated_spacing_it_is_refused_with_what_to_do(tmp_path):
    Image.fromarray(picture(64)).save(tmp_path / "image.png", dpi=(25400, 25400))
    code, detail = reason(tmp_path / "image.png", None)
    assert code == "no_spacing"
    assert "column mpp" in detail


def test_damaged_huge_and_other_files_have_their_reasons(tmp_path, monkeypatch):
    Image.fromarray(np.random.default_rng(0).integers(0, 255, (64, 64, 3), np.uint8)).save(tmp_path / "whole.png")
    content = (tmp_path / "whole.png").read_bytes()
    (tmp_path / "cut.png").write_bytes(content[: len(content) // 2])
    (tmp_path / "text.png").write_text("no image")
    Image.fromarray(np.zeros((8, 8), np.uint16)).save(tmp_path / "deep.png")
    assert reason(tmp_path / "cut.png", 0.5)[0] == "unreadable"
    assert reason(tmp_path / "text.png", 0.5)[0] == "not_a_slide"
    assert reason(png_header(tmp_path / "header.png", 100_000), 0.5)[0] == "not_a_slide"
    Image.new("1", (12_000, 12_000)).save(tmp_path / "bomb.png")
    assert (tmp_path / "bomb.png").stat().st_size < 100_000
    assert reason(tmp_path / "bomb.png", 0.5)[0] == "implausible_size"
    code, detail = reason(tmp_path / "deep.png", 0.5)
    assert code == "not_a_slide"
    assert "8-bit" in detail
    monkeypatch.setattr(flat_images, "_MAX_PIXELS", 64 * 64 - 1)
    assert reason(tmp_path / "whole.png", 0.5)[0] == "implausible_size"
