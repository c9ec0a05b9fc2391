"""Multi-crop: two large random crops of an image, and several small ones at a lower resolution.

The first two views are the large crops, (3, size, size), the others the small ones, (3, small_size, small_size). All
get the random changes of views/image_two_crop.

Source: Caron et al., SwAV, NeurIPS 2020, arXiv 2006.09882, section 3.3 (DINO, arXiv 2104.14294, uses scales 0.4 to 1
and 0.05 to 0.4). Deviations: sizes follow the prepared images instead of 224 and 96 pixels; images larger than a view
are shrunk with area averaging; blur reaches sigma 2 pixels whatever the size of a view, which is much for small ones.
"""

from collections.abc import Sequence
from typing import Any, Literal

import numpy as np
from pydantic import Field, model_validator
from torch import Tensor

from appssl.contracts import Meta
from appssl.errors import DataError, SettingsError
from appssl.ops.images.drawn_views import DrawnViews, drawn_views
from appssl.settings import Settings
from appssl.views import image_two_crop

_SMALLEST_SIDE = 8  # pixels


class Config(Settings):
    name: Literal["multi_crop"] = "multi_crop"
    num_small: int = Field(6, ge=0, le=14, description="small crops per image, beside the two large ones")
    size: int | None = Field(
        None, ge=16, le=1024, description="side of a large crop, pixels; null: that of the prepared images"
    )
    small_size: int | None = Field(None, ge=8, le=1024, description="side of a small crop, pixels; null: half of size")
    scale: tuple[float, float] = Field((0.14, 1.0), description="area of a large crop, share of the image")
    small_scale: tuple[float, float] = Field((0.05, 0.14), description="area of a small crop, share of the image")
    ratio: tuple[float, float] = Field((3 / 4, 4 / 3), description="smallest and largest width / height of a crop")
    flip: float = Field(0.5, ge=0, le=1, description="probability of a horizontal flip")
    jitter: float = Field(0.8, ge=0, le=1, description="probability of colour jitter")
    strength: float = Field(
        1.0, ge=0, le=1, description="colour strength s: brightness, contrast, saturation 0.8 s, hue 0.2 s"
    )
    grey: float = Field(0.2, ge=0, le=1, description="probability of grey")
    blur: float = Field(0.5, ge=0, le=1, description="probability of Gaussian blur, sigma 0.1 to 2 pixels")
    solarize: float = Field(0.0, ge=0, le=1, description="probability of inverting values of 128 and more")
    pad: float = Field(0.125, ge=0, le=0.5, description="largest shift of the light augmentation, share of the side")
    render: Literal["loader", "device"] = Field(
        "loader", description="where views are computed: by the processes that load images, or on the training's device"
    )

    @model_validator(mode="after")
    def _ordered(self) -> "Config":
        for name in ("scale", "small_scale"):
            smallest, largest = getattr(self, name)
            if not 0 < smallest <= largest <= 1:
                raise ValueError(f"{name} must be two shares of the area, 0 < smallest <= largest <= 1")
        if not 0 < self.ratio[0] <= self.ratio[1]:
            raise ValueError("ratio must be two positive numbers, smallest <= largest")
        return self


class MultiCrop:
    """Views of (H, W, 3) uint8 images; `input_shape` is that of the large crops, of `augment` and of `plain`."""

    def __init__(self, large: image_two_crop.ImageTwoCrop, small: image_two_crop.ImageTwoCrop, num_small: int) -> None:
        self.large = large
        self._crops = [large, small] if num_small else [large]
        self.num_views = 2 + num_small
        self.input_shape = large.input_shape
        self.render, self.standardize = large.render, large.standardize

    def views(self, sample: Any, rng: np.random.Generator) -> list[Tensor]:
        return [self.standardize(view) for view in self.levels(sample, rng)]

    def levels(self, sample: Any, rng: np.random.Generator) -> list[np.ndarray]:
        """What `views` standardizes."""
        return [view for crop in self._crops for view in crop.levels(sample, rng)]

    def drawn(self, samples: Sequence[Any], rngs: Sequence[np.random.Generator]) -> DrawnViews:
        """What `views` gives of each sample, to be rendered in batches."""
        pairs = zip(samples, rngs, strict=True)
        draws = [[view for crop in self._crops for view in crop.draw(sample, rng)] for sample, rng in pairs]
        sides = [crop.size for crop in self._crops for _ in range(crop.num_views)]
        return drawn_views(samples, draws, sides, self.standardize)

    def augment(self, sample: Any, rng: np.random.Generator) -> Tensor:
        return self.large.augment(sample, rng)

    def plain(self, sample: Any) -> Tensor:
        return self.large.plain(sample)


def build(config: Config, meta: Meta) -> MultiCrop:
    """
    Raises:
        DataError: if the data are not images. SettingsError: if a small crop is larger than a large one, or too small.
    """
    if "size_px" not in meta.facts:
        raise DataError(
            f"views/multi_crop needs images; the data of source {meta.source} have no size_px. Choose views for the "
            f"domain {meta.domain}: 'appssl list views'."
        )
    size = config.size or int(meta.facts["size_px"])
    small_size = config.small_size or size // 2
    if not _SMALLEST_SIDE <= small_size <= size:
        raise SettingsError(
            f"views.small_size is {small_size} pixels; it must be between {_SMALLEST_SIDE} and the side of the large "
            f"crops, {size}."
        )
    return MultiCrop(
        _crops(config, meta, num_views=2, size=size, scale=config.scale),
        _crops(config, meta, num_views=max(1, config.num_small), size=small_size, scale=config.small_scale),
        config.num_small,
    )


def _crops(
    config: Config, meta: Meta, *, num_views: int, size: int, scale: tuple[float, float]
) -> image_two_crop.ImageTwoCrop:
    same = ("ratio", "flip", "jitter", "strength", "grey", "blur", "solarize", "pad", "render")
    values = {name: getattr(config, name) for name in same}
    return image_two_crop.build(
        image_two_crop.Config(num_views=num_views, size=size, scale=scale, **values),
        meta,
    )
