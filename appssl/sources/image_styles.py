"""Images rendered in several styles, to measure how an encoder does on one it has not seen.

Images are listed, checked and resized as sources/webnoisy states. Every kept image is then shown in one style, chosen
by hash of its id: training images in one of `train_styles`, all others in one of `test_styles`. With x in 0..1, channel
by channel, and luma y,

    x <- t ((1 - g) x + g y),    x <- 1/2 + c (x - 1/2) + b,    blurred by sigma,    x <- x + a sin(2 pi d / p)

with the tint t, greyness g, contrast c and brightness b, and d the place along the direction of the stripes; values are
cut off at 0 and 1. The column `domain` of the samples is the style, which the fact `domain` says, and `unseen_domains`
are those without a training image; figures of the data show images before this.
Source: none; styles of rendering as they are common in measurements of domain generalization.
"""

import math
from collections.abc import Sequence
from typing import Any, Literal, NamedTuple

import cv2
import numpy as np
import polars as pl
from pydantic import Field

from appssl.artifact import ArtifactWriter
from appssl.ops.images.selection import hash_order
from appssl.sources import webnoisy

_LUMA = np.array([0.299, 0.587, 0.114], np.float32)


class Style(NamedTuple):
    """blur: sigma, pixels. stripes: amplitude, period in pixels, and direction in degrees from the columns' axis."""

    grey: float = 0.0
    tint: tuple[float, float, float] = (1.0, 1.0, 1.0)
    contrast: float = 1.0
    brightness: float = 0.0
    blur: float = 0.0
    stripes: tuple[float, float, float] = (0.0, 1.0, 0.0)


STYLES = {
    "plain": Style(),
    "sepia": Style(grey=0.7, tint=(1.1, 0.95, 0.75), contrast=0.85, stripes=(0.05, 4, 0)),
    "night": Style(grey=0.3, tint=(0.55, 0.7, 1.1), contrast=1.1, brightness=-0.1, blur=0.6),
    "faded": Style(grey=0.4, contrast=0.5, brightness=0.2, stripes=(0.04, 3, 90)),
    "print": Style(grey=0.2, tint=(0.8, 1.1, 0.8), contrast=1.3, blur=0.4, stripes=(0.08, 5, 45)),
}
StyleName = Literal["plain", "sepia", "night", "faded", "print"]


class Config(webnoisy.Config):
    name: Literal["image_styles"] = "image_styles"  # type: ignore[assignment]
    train_styles: tuple[StyleName, ...] = Field(
        ("sepia", "night", "faded"), min_length=1, description="styles of the training part"
    )
    test_styles: tuple[StyleName, ...] = Field(
        ("sepia", "night", "faded", "print"), min_length=1, description="styles of the other parts"
    )


class ImageStyles(webnoisy.WebNoisy):
    extra_columns = ("domain",)
    config: Config

    def used(self, units: pl.DataFrame) -> pl.DataFrame:
        of_part = {"train": self.config.train_styles}
        styles = [
            _chosen(name, of_part.get(split, self.config.test_styles))
            for name, split in units.select("id", "split").iter_rows()
        ]
        return units.with_columns(domain=pl.Series(styles, dtype=pl.String))

    def facts(self) -> dict[str, Any]:
        unseen = sorted(set(self.config.test_styles) - set(self.config.train_styles))
        return {"domain": "domain", "unseen_domains": unseen}

    def _write_images(
        self, kept: pl.DataFrame, pool: list[Any], out: ArtifactWriter
    ) -> tuple[list[float], list[float]]:
        domains: list[dict[int, str]] = [{} for _ in pool]
        for source, position, domain in kept.select("source", "position", "domain").iter_rows():
            domains[source][position] = domain
        shown = [_Rendered(images, own) for images, own in zip(pool, domains, strict=True)]
        return super()._write_images(kept, shown, out)  # type: ignore[arg-type]


class _Rendered:
    """Images by their position, in their styles."""

    def __init__(self, images: np.ndarray, domains: dict[int, str]) -> None:
        self._images, self._domains = images, domains

    def __getitem__(self, position: int) -> np.ndarray:
        return rendered(self._images[position], STYLES[self._domains[position]])


def _chosen(name: str, styles: Sequence[str]) -> str:
    return styles[int.from_bytes(hash_order(f"style/{name}")[:8]) % len(styles)]


def rendered(image: np.ndarray, style: Style) -> np.ndarray:
    """(H, W, 3) uint8 in another style; the same for the same image."""
    x: np.ndarray = image.astype(np.float32) / 255
    x = ((1 - style.grey) * x + style.grey * (x @ _LUMA)[..., None]) * np.array(style.tint, np.float32)
    x = 0.5 + style.contrast * (x - 0.5) + style.brightness
    if style.blur:
        x = cv2.GaussianBlur(x, (0, 0), style.blur)
    amplitude, period, degrees = style.stripes
    row, column = np.mgrid[: x.shape[0], : x.shape[1]]
    place = column * math.cos(math.radians(degrees)) + row * math.sin(math.radians(degrees))
    x = x + amplitude * np.sin(2 * math.pi / period * place)[..., None]
    return np.rint(255 * np.clip(x, 0, 1)).astype(np.uint8)


def build(config: Config) -> ImageStyles:
    return ImageStyles(config)
