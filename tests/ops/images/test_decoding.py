"""Images from anywhere: what is refused before and after decoding, and what the rest becomes."""

import io
import struct
import tracemalloc
import zlib

import numpy as np
import pytest
from PIL import Image

from appssl.ops.images.decoding import BadImage, central_square, decode, largest_std, pixel_digest

LIMIT = 1_000_000


def photo(width=40, height=30, seed=0):
    coarse = np.random.default_rng(seed).integers(0, 256, (6, 8, 3)).astype(np.uint8)
    return Image.fromarray(coarse).resize((width, height), Image.Resampling.BICUBIC)


def encoded(image, kind="PNG", **options):
    content = io.BytesIO()
    image.save(content, kind, **options)
    return content.getvalue()


def claiming_png(width, height):
    whole = bytearray(encoded(Image.new("RGB", (1, 1))))
    whole[16:24] = struct.pack(">II", width, height)
    whole[29:33] = struct.pack(">I", zlib.crc32(bytes(whole[12:29])))
    return bytes(whole)


def refused(content, **options):
    with pytest.raises(BadImage) as caught:
        decode(content, **{"max_pixels": LIMIT, **options})
    return caught.value


def test_a_lossless_image_comes_back_as_it_was():
    decoded = decode(encoded(photo()), max_pixels=LIMIT)
    assert (np.asarray(decoded.rgb) == np.asarray(photo())).all()
    assert (decoded.mode, decoded.num_frames) == ("RGB", 1)


def smooth(width, height):
    """Waves that any of the sizes below can show, so that the ways to get there are comparable."""
    y, x = np.mgrid[0:height, 0:width]
    waves = [np.sin(2 * np.pi * (x / width * a + y / height * b)) for a, b in ((1, 1), (2, 1), (1, 2))]
    return Image.fromarray((127 + 90 * np.stack(waves, -1)).astype(np.uint8))


@pytest.mark.parametrize(
    ("side", "width", "height"),
    [(12, 40, 25), (16, 80, 50), (25, 80, 50), (26, 160, 100), (60, 320, 200), (150, 320, 200), (None, 320, 200)],
)
def test_a_large_jpeg_is_decoded_at_the_smallest_size_that_is_twice_what_is_needed(side, width, height):
    content = encoded(smooth(320, 200), "JPEG", quality=95)
    decoded = decode(content, max_pixels=LIMIT, side=side)
    assert (decoded.width, decoded.height, decoded.rgb.size) == (320, 200, (width, height))
    whole = decode(content, max_pixels=LIMIT)
    made, expected = (central_square(one.rgb, side or 32).astype(int) for one in (decoded, whole))
    assert np.abs(made - expected).max() <= 4


def test_other_formats_are_decoded_whole():
    assert decode(encoded(smooth(300, 200)), max_pixels=LIMIT, side=16).rgb.size == (300, 200)


@pytest.mark.parametrize("cut", [2, 60, 2000])
def test_a_large_jpeg_that_is_cut_off_is_noticed_at_any_size(cut):
    content = encoded(smooth(800, 600), "JPEG", quality=95)
    assert refused(content[:-cut], side=16).reason == "truncated"


def test_size_is_that_of_the_upright_file(tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6
    decoded = decode(encoded(smooth(300, 200), "JPEG", exif=exif), max_pixels=LIMIT, side=16)
    assert (decoded.width, decoded.height, decoded.rgb.size) == (200, 300, (50, 75))


@pytest.mark.parametrize(
    ("content", "reason", "detail"),
    [
        (b"", "empty_file", "0 bytes"),
        (b"\n <!DOCTYPE html><html></html>", "html", "begins with"),
        (b"just some text, no image", "not_an_image", "tried JPEG, PNG"),
        (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n", "not_an_image", "tried JPEG, PNG"),
        (claiming_png(100_000, 100_000), "too_many_pixels", "limit 1000000"),
        (claiming_png(1_001, 1_000), "too_many_pixels", "1001 x 1000 = 1001000, limit 1000000"),
        (encoded(photo(), "JPEG")[:-60], "truncated", "truncated"),
        (encoded(photo(), "JPEG")[:40], "damaged", "header is cut off"),
        (encoded(photo())[:-40], "truncated", "truncated"),
        (encoded(Image.fromarray(np.zeros((4, 4), np.float32)), "TIFF"), "unsupported_mode", "floating point"),
        (encoded(Image.fromarray(np.full((4, 4), 70_000, np.int32)), "TIFF"), "unsupported_mode", "70000"),
    ],
)  # fmt: skip
def test_refused_with_a_reason(content, reason, detail):
    error = refused(content)
    assert error.reason == reason
    assert detail in error.detail


def test_a_png_that_claims_ten_thousand_million_pixels_is_refused_without_allocating():
    tracemalloc.start()
    error = refused(claiming_png(100_000, 100_000), max_pixels=100_000_000)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert error.reason == "too_many_pixels"
    assert peak < 5_000_000


def test_flipped_bytes_inside_a_png_are_noticed():
    whole = bytearray(encoded(photo()))
    whole[len(whole) // 2] ^= 0xFF
    assert refused(bytes(whole)).reason in ("damaged", "truncated")


@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_orientation_is_applied(orientation):
    from PIL import ImageOps

    exif = Image.Exif()
    exif[0x0112] = orientation
    content = encoded(photo(), "JPEG", exif=exif, quality=95)
    expected = ImageOps.exif_transpose(Image.open(io.BytesIO(content)))  # Pillow's own
    assert (np.asarray(decode(content, max_pixels=LIMIT).rgb) == np.asarray(expected)).all()


def test_a_broken_exif_block_does_not_cost_the_image():
    content = encoded(photo(), "JPEG", exif=b"Exif\0\0broken, not a TIFF header")
    assert decode(content, max_pixels=LIMIT).rgb.size == (40, 30)


def test_transparency_is_laid_over_white():
    clear = np.zeros((4, 4, 4), np.uint8)
    clear[:2] = (200, 10, 10, 255)
    rgb = np.asarray(decode(encoded(Image.fromarray(clear)), max_pixels=LIMIT).rgb)
    assert (rgb[:2] == (200, 10, 10)).all()
    assert (rgb[2:] == 255).all()


def test_a_palette_with_a_transparent_entry_is_laid_over_white():
    image = Image.new("P", (4, 4), 0)
    image.putpalette([255, 0, 0, 0, 0, 255])
    image.putpixel((0, 0), 1)
    rgb = np.asarray(decode(encoded(image, transparency=1), max_pixels=LIMIT).rgb)
    assert (rgb[0, 0] == 255).all()
    assert (rgb[1, 1] == (255, 0, 0)).all()


def test_sixteen_bit_grey_keeps_its_range():
    values = np.array([[0, 257 * 100], [257 * 200, 65535]], np.uint16)
    for kind in ("PNG", "TIFF"):
        rgb = np.asarray(decode(encoded(Image.fromarray(values), kind), max_pixels=LIMIT).rgb)
        assert rgb[..., 0].tolist() == [[0, 100], [200, 255]]
        assert (rgb[..., 0] == rgb[..., 2]).all()


@pytest.mark.parametrize(("mode", "kind"), [("CMYK", "JPEG"), ("L", "PNG"), ("1", "PNG"), ("LA", "PNG"), ("P", "GIF")])
def test_other_modes_become_rgb(mode, kind):
    decoded = decode(encoded(photo().convert(mode), kind), max_pixels=LIMIT)
    assert decoded.rgb.mode == "RGB"
    assert decoded.rgb.size == (40, 30)


@pytest.mark.parametrize("kind", ["GIF", "WEBP", "PNG", "TIFF"])
def test_frames_are_counted(kind):
    content = encoded(photo(), kind, save_all=True, append_images=[photo(seed=1), photo(seed=2)])
    assert decode(content, max_pixels=LIMIT).num_frames == 3


def test_square_equals_resizing_the_shorter_side_and_cropping():
    image = photo(160, 80)
    slow = image.resize((64, 32), Image.Resampling.LANCZOS).crop((16, 0, 48, 32))
    # The two filters differ by rounding only where the window is cut by a pixel border: none is, factors are whole.
    assert np.abs(central_square(image, 32).astype(int) - np.asarray(slow)).max() <= 1


def test_an_image_of_the_wanted_size_is_not_resampled():
    assert (central_square(photo(32, 32), 32) == np.asarray(photo(32, 32))).all()


def test_small_and_odd_images_fill_the_square():
    for size in ((1, 1), (3, 200), (33, 31)):
        assert central_square(photo(*size), 32).shape == (32, 32, 3)


def test_one_colour_has_no_deviation_and_stripes_have_much():
    assert largest_std(np.full((8, 8, 3), 77, np.uint8)) == 0
    stripes = np.zeros((8, 8, 3), np.uint8)
    stripes[::2, :, 1] = 255
    assert largest_std(stripes) == 127.5


def test_pixel_digest_sees_pixels_and_shape_but_not_the_file():
    one, other = decode(encoded(photo()), max_pixels=LIMIT), decode(encoded(photo(), "BMP"), max_pixels=LIMIT)
    assert pixel_digest(one.rgb) == pixel_digest(other.rgb)
    assert pixel_digest(Image.new("RGB", (2, 8))) != pixel_digest(Image.new("RGB", (8, 2)))
