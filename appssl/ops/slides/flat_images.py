"""Plain images (PNG, JPEG, TIFF) as slides of one level. Their spacing is stated in the table."""

import warnings
from pathlib import Path

import openslide
from PIL import Image, UnidentifiedImageError

from appssl.ops.slides.slide import BadSlide

SUFFIXES = (".png", ".jpg", ".jpeg", ".tif", ".tiff")
_MAX_PIXELS = 1 << 27  # the image is decoded as a whole, three bytes a pixel
_MODES = ("RGB", "RGBA", "L", "P", "1", "CMYK", "YCbCr", "LA")


def open_flat(path: Path) -> openslide.ImageSlide:
    """The image in memory, without its transparency.

    Raises:
        BadSlide: `not_a_slide`, `implausible_size` or `unreadable`.
    """
    how = "convert it to a pyramidal tiled TIFF"
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)  # the limit here is our own
            return openslide.ImageSlide(_decoded(path, how))
    except UnidentifiedImageError:
        raise BadSlide("not_a_slide", "neither OpenSlide nor Pillow knows this file; copy it again") from None
    except Image.DecompressionBombError as error:
        raise BadSlide("implausible_size", f"{error}; {how}") from None
    except (OSError, SyntaxError, ValueError) as error:
        raise BadSlide("unreadable", f"cannot be decoded: {error}; copy the file again") from None


def _decoded(path: Path, how: str) -> Image.Image:
    with Image.open(path) as image:
        if image.width * image.height > _MAX_PIXELS:
            size = f"{image.width} x {image.height} pixels; plain images have at most {_MAX_PIXELS}"
            raise BadSlide("implausible_size", f"{size}: {how}")
        if image.mode not in _MODES:
            raise BadSlide("not_a_slide", f"its pixels are {image.mode}, not 8-bit colours; {how}")
        return image.convert("RGB")
