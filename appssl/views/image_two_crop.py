"""SimCLR's random views of an image: resized crop, flip, colour jitter, grey, and optionally blur and solarization.

Source: Chen et al., ICML 2020, arXiv 2002.05709, appendix A; blur and solarization as in BYOL, arXiv 2006.07733.
Deviations: the default smallest crop is 0.2 of the area instead of 0.08, which suits small images; no blur by default,
as in the paper for CIFAR-10. Images of at least twice the view's side are shrunk with area averaging, not bilinear.

A view is a pure function of (image, generator): no state is shared between threads. What is random is drawn first, in
`ops/images/draws.py`; the pixels follow from it, either image by image there, or in batches in
`ops/images/drawn_views.py`.
"""

from collections.abc import Sequence
from dataclasses import fields
from typing import Any, Literal

import cv2
import numpy as np
from pydantic import Field, model_validator
from torch import Tensor

from appssl.contracts import Meta
from appssl.errors import DataError
from appssl.ops.images import pixels
from appssl.ops.images.drawn_views import DrawnViews, drawn_views
from appssl.ops.images.draws import Drawn, Recipe, draw, rendered
from appssl.settings import Settings


class Config(Settings):
    name: Literal["image_two_crop"] = "image_two_crop"
    num_views: int = Field(2, ge=1, le=16, description="augmented views per image")
    size: int | None = Field(
        None, ge=8, le=1024, description="side of a view, pixels; null: that of the prepared images"
    )
    scale: tuple[float, float] = Field((0.2, 1.0), description="smallest and largest crop, share of the area")
    ratio: tuple[float, float] = Field((3 / 4, 4 / 3), description="smallest and largest width / height of a crop")
    flip: float = Field(0.5, ge=0, le=1, description="probability of a horizontal flip")
    jitter: float = Field(0.8, ge=0, le=1, description="probability of colour jitter")
    strength: float = Field(
        0.5, ge=0, le=1, description="colour strength s: brightness, contrast, saturation 0.8 s, hue 0.2 s"
    )
    grey: float = Field(0.2, ge=0, le=1, description="probability of grey")
    blur: float = Field(0.0, ge=0, le=1, description="probability of Gaussian blur, sigma 0.1 to 2 pixels")
    solarize: float = Field(0.0, ge=0, le=1, description="probability of inverting values of 128 and more")
    pad: float = Field(0.125, ge=0, le=0.5, description="largest shift of the light augmentation, share of the side")
    render: Literal["loader", "device"] = Field(
        "loader", description="where views are computed: by the processes that load images, or on the training's device"
    )

    @model_validator(mode="after")
    def _ordered(self) -> "Config":
        if not 0 < self.scale[0] <= self.scale[1] <= 1:
            raise ValueError("scale must be two shares of the area, 0 < smallest <= largest <= 1")
        if not 0 < self.ratio[0] <= self.ratio[1]:
            raise ValueError("ratio must be two positive numbers, smallest <= largest")
        return self


class ImageTwoCrop:
    """Views of (H, W, 3) uint8 images as (3, size, size) float32, normalized with the training images' statistics."""

    def __init__(self, config: Config, *, size: int, mean: np.ndarray, std: np.ndarray) -> None:
        self.config = config
        self.size = size
        self.num_views = config.num_views
        self.input_shape = (3, size, size)
        self.render = config.render
        self._recipe = Recipe(**{given.name: getattr(config, given.name) for given in fields(Recipe)})
        self.standardize = pixels.Standardize(mean, std)

    def views(self, sample: Any, rng: np.random.Generator) -> list[Tensor]:
        return [self.standardize(view) for view in self.levels(sample, rng)]

    def levels(self, sample: Any, rng: np.random.Generator) -> list[np.ndarray]:
        """What `views` standardizes."""
        return [rendered(sample, view, self.size) for view in self.draw(sample, rng)]

    def draw(self, sample: Any, rng: np.random.Generator) -> list[Drawn]:
        """What `views` draws."""
        height, width = sample.shape[:2]
        return [draw(height, width, self._recipe, rng) for _ in range(self.num_views)]

    def drawn(self, samples: Sequence[Any], rngs: Sequence[np.random.Generator]) -> DrawnViews:
        """What `views` gives of each sample, to be rendered in batches."""
        draws = [self.draw(sample, rng) for sample, rng in zip(samples, rngs, strict=True)]
        return drawn_views(samples, draws, [self.size] * self.num_views, self.standardize)

    def augment(self, sample: Any, rng: np.random.Generator) -> Tensor:
        """A shift by up to `pad` of the side, borders mirrored, and a flip."""
        image = self._fit(sample)
        border = round(self.config.pad * self.size)
        if border:
            padded = cv2.copyMakeBorder(image, border, border, border, border, cv2.BORDER_REFLECT_101)
            top, left = rng.integers(0, 2 * border + 1, 2)
            image = padded[top : top + self.size, left : left + self.size]
        return self.standardize(image[:, ::-1] if rng.random() < self.config.flip else image)

    def plain(self, sample: Any) -> Tensor:
        return self.standardize(self._fit(sample))

    def _fit(self, image: np.ndarray) -> np.ndarray:
        return np.asarray(image) if image.shape[:2] == (self.size, self.size) else pixels.resized(image, self.size)


def build(config: Config, meta: Meta) -> ImageTwoCrop:
    """
    Raises:
        DataError: if the data are not images (no `size_px`, `rgb_mean`, `rgb_std` among their facts).
    """
    size, mean, std = of_images("image_two_crop", meta)
    return ImageTwoCrop(config, size=config.size or size, mean=mean, std=std)


def of_images(views: str, meta: Meta) -> tuple[int, np.ndarray, np.ndarray]:
    """Side in pixels, mean and standard deviation (3,) float64 in 0..1 of the prepared images, for `views`.

    Raises:
        DataError: if the data are not images.
    """
    missing = [fact for fact in ("size_px", "rgb_mean", "rgb_std") if fact not in meta.facts]
    if missing:
        raise DataError(
            f"views/{views} needs images; the data of source {meta.source} say nothing of {', '.join(missing)}. "
            f"Choose views for the domain {meta.domain}: 'appssl list views'."
        )
    mean, std = (np.asarray(meta.facts[fact], np.float64) for fact in ("rgb_mean", "rgb_std"))
    return int(meta.facts["size_px"]), mean, std
