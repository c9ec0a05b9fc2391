"""Encoded images from anywhere to small RGB arrays: limits first, then a full decode, stated conversions, identity.

Nothing here trusts the bytes. The number of pixels is read from the header and compared with a limit before memory is
allocated; a file that does not decode to its last byte is refused; only the listed formats are tried, so no decoder
that starts other programs (EPS) is ever reached.

How images become RGB: EXIF orientation is applied; transparency (RGBA, LA, palette) is laid over white; 16-bit grey is
divided by 257; 1-bit and grey are repeated in three channels; CMYK and YCbCr go through Pillow's plain conversion,
colour profiles are not applied. Grey of more than 16 bits and floating point are refused, their range is unknown.

A JPEG file that is much larger than what is needed is decoded at 1/2, 1/4 or 1/8 of its size: the decoder leaves out
the fine waves of each block of pixels, after reading all bytes of the file.
"""

import hashlib
import io
import warnings
from dataclasses import dataclass

import numpy as np
from PIL import Image

FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF")
SUFFIXES = (".jpg", ".jpeg", ".png", ".webp", ".gif", ".bmp", ".tif", ".tiff")
LARGEST_LIMIT = 178_000_000  # Pillow itself refuses beyond twice its MAX_IMAGE_PIXELS, 178,956,970
VERSION = f"Pillow {Image.__version__}"

_SIGNATURES = (b"\xff\xd8\xff", b"\x89PNG", b"GIF8", b"BM", b"RIFF", b"II*\0", b"MM\0*")
_ORIENTATION = 0x0112  # EXIF tag
_TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
_ON_ITS_SIDE = (5, 6, 7, 8)
_SIXTEEN_BIT = ("I;16", "I;16L", "I;16B", "I;16N", "I")


class BadImage(Exception):
    """An image that is refused. `reason` is a short code, `detail` the values or the decoder's words."""

    def __init__(self, reason: str, detail: str) -> None:
        self.reason, self.detail = reason, detail
        super().__init__(f"{reason}: {detail}")


@dataclass(frozen=True)
class Decoded:
    """A decoded image: `rgb` (mode RGB, upright), width, height and mode of the file, and how many frames it holds."""

    rgb: Image.Image
    width: int
    height: int
    mode: str
    num_frames: int


def decode(content: bytes, *, max_pixels: int, side: int | None = None) -> Decoded:
    """The whole image as RGB.

    Args:
        content: an encoded file. max_pixels: width x height that is still decoded, at most `LARGEST_LIMIT`.
        side: pixels of the shorter side that are needed; `rgb` of a JPEG file may be smaller than the file says, with
            a shorter side of at least twice that. None: the size of the file.
    Raises:
        BadImage: empty_file, html, not_an_image, too_many_pixels, unsupported_mode, truncated, damaged.
    """
    if not content:
        raise BadImage("empty_file", "0 bytes")
    image = _open(content, max_pixels)
    mode = image.mode
    num_frames = _num_frames(image)
    width, height = image.size
    try:
        if side is not None and image.format in ("JPEG", "MPO"):
            image.draft(None, (2 * side, 2 * side))
        image.load()
        orientation = _orientation(image)
        rgb = to_rgb(image)
    except BadImage:
        raise
    except Exception as error:  # decoders fail in any way on hostile bytes; the reason is kept
        reason = "truncated" if "truncated" in str(error) else "damaged"
        raise BadImage(reason, f"{type(error).__name__}: {error}") from None
    if orientation in _ON_ITS_SIDE:
        width, height = height, width
    upright = rgb.transpose(_TURNS[orientation]) if orientation in _TURNS else rgb
    return Decoded(upright, width, height, mode, num_frames)


def _open(content: bytes, max_pixels: int) -> Image.Image:
    """Reads the header only."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # our own limit decides, and odd metadata is no reason to refuse
            image = Image.open(io.BytesIO(content), formats=FORMATS)
    except Image.DecompressionBombError as error:
        raise BadImage("too_many_pixels", f"limit {max_pixels}: {error}") from None
    except Exception as error:  # as in decode
        if content.lstrip()[:200].lower().startswith((b"<!doctype", b"<html", b"<head", b"<?xml", b"<script")):
            raise BadImage("html", f"begins with {content.lstrip()[:20]!r}") from None
        begin = f"begins with {content[:8].hex(' ')}"
        if content.startswith(_SIGNATURES):
            raise BadImage(
                "damaged", f"{begin}, but its header is cut off or broken ({type(error).__name__})"
            ) from None
        raise BadImage("not_an_image", f"{begin}; tried {', '.join(FORMATS)} ({type(error).__name__})") from None
    width, height = image.size
    if width * height > max_pixels:
        raise BadImage("too_many_pixels", f"{width} x {height} = {width * height}, limit {max_pixels}")
    return image


def _num_frames(image: Image.Image) -> int:
    """Frames or pages. A JPEG with a second picture inside (MPO, many phones) counts as one: the first is the photo."""
    try:
        return 1 if image.format in ("JPEG", "MPO") else int(getattr(image, "n_frames", 1))
    except Exception as error:  # counting GIF frames reads the whole file
        raise BadImage("damaged", f"{type(error).__name__}: {error}") from None


def _orientation(image: Image.Image) -> int:
    try:
        return int(image.getexif().get(_ORIENTATION, 1))
    except Exception:  # a broken EXIF block does not spoil the pixels; upright is assumed
        return 1


def to_rgb(image: Image.Image) -> Image.Image:
    """RGB by the rules at the top of this file.

    Raises:
        BadImage: unsupported_mode.
    """
    if image.mode == "RGB" and "transparency" not in image.info:
        return image
    if image.mode in _SIXTEEN_BIT:
        return _from_sixteen_bit(image)
    if image.mode == "F":
        raise BadImage("unsupported_mode", "floating point pixels have no known range; save as 8 or 16 bit")
    if image.mode in ("RGBA", "LA", "PA", "La", "RGBa") or "transparency" in image.info:
        rgba = image.convert("RGBA")
        white = Image.new("RGBA", rgba.size, (255, 255, 255, 255))
        return Image.alpha_composite(white, rgba).convert("RGB")
    return image.convert("RGB")


def _from_sixteen_bit(image: Image.Image) -> Image.Image:
    grey = np.asarray(image).astype(np.int64)
    if grey.min() < 0 or grey.max() > 65535:
        raise BadImage("unsupported_mode", f"grey values from {grey.min()} to {grey.max()} do not fit 16 bit")
    return Image.fromarray((grey / 257 + 0.5).astype(np.uint8)).convert("RGB")


def central_square(rgb: Image.Image, size: int) -> np.ndarray:
    """Shorter side resized to `size` with Lanczos (three lobes, antialiased), the centre kept: (size, size, 3) uint8.

    Smaller images are enlarged. Only the kept square is computed.
    """
    width, height = rgb.size
    if (width, height) != (size, size):
        side = min(width, height)
        left, top = (width - side) / 2, (height - side) / 2
        rgb = rgb.resize((size, size), Image.Resampling.LANCZOS, box=(left, top, left + side, top + side))
    return np.array(rgb)


def largest_std(pixels: np.ndarray) -> float:
    """Standard deviation over pixels of the channel that varies most, 0..127.5; 0 for one colour. (H, W, 3) uint8."""
    return float(pixels.reshape(-1, pixels.shape[-1]).std(axis=0).max())


def pixel_digest(rgb: Image.Image) -> str:
    """SHA-256 (hex) of size and decoded pixels: equal for one picture in two lossless files, or with other metadata.

    Not for a JPEG file that was decoded at a smaller size, and the same picture in a lossless file.
    """
    return hashlib.sha256(f"{rgb.size[0]}x{rgb.size[1]}:".encode() + rgb.tobytes()).hexdigest()
