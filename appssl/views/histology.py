"""Views of stained tissue: resized crop, stain jitter, flips and right-angle rotations, colour jitter, blur.

Stain jitter changes how much haematoxylin and eosin a tile holds: optical density is written as a mix of the colours of
haematoxylin, eosin and DAB (here: the residual), the amounts are scaled and shifted, and mixed again. Tissue has no up
or down, so all eight flips and rotations of the square are equally likely.

Source: stain colours of Ruifrok and Johnston, Anal. Quant. Cytol. Histol. 23(4), 2001; stain jitter as in Tellez et
al., Deviations: beta is a fifth of sigma, for density here is in units of log10 and a shift colours the glass too.
"""

from typing import Any, Literal

import numpy as np
from pydantic import Field, model_validator
from torch import Tensor

from appssl.contracts import Meta
from appssl.errors import DataError
from appssl.ops.images import pixels
from appssl.settings import Settings

# Optical density of red, green, blue for haematoxylin, eosin and DAB; rows are made unit vectors below.
_STAINS = np.array([[0.65, 0.70, 0.29], [0.07, 0.99, 0.11], [0.27, 0.57, 0.78]])
STAINS = (_STAINS / np.linalg.norm(_STAINS, axis=1, keepdims=True)).astype(np.float32)
_UNMIX = np.linalg.inv(STAINS.astype(np.float64)).astype(np.float32)
_BETA = 0.2  # largest shift of an amount, as a share of the largest change of its scale
_DENSITY = -np.log10((np.arange(256, dtype=np.float32) + 1) / 256)  # of each value; one is added against log of 0


class Config(Settings):
    name: Literal["histology"] = "histology"
    num_views: int = Field(2, ge=1, le=16, description="augmented views per tile")
    size: int | None = Field(None, ge=8, le=1024, description="side of a view, pixels; null: that of the tiles")
    scale: tuple[float, float] = Field((0.3, 1.0), description="smallest and largest crop, share of the area")
    crop_um: tuple[float, float] | None = Field(
        None, description="instead of scale: smallest and largest side of a crop, um; the tiles' spacing must be known"
    )
    stain: float = Field(0.8, ge=0, le=1, description="probability of stain jitter")
    stain_strength: float = Field(0.2, ge=0, le=1, description="largest relative change of an amount of stain")
    jitter: float = Field(0.5, ge=0, le=1, description="probability of brightness, contrast and saturation jitter")
    strength: float = Field(0.2, ge=0, le=1, description="largest relative change by that jitter")
    blur: float = Field(0.2, ge=0, le=1, description="probability of Gaussian blur")
    sigma: tuple[float, float] = Field((0.1, 1.5), description="smallest and largest sigma of the blur, pixels")
    light_stain_strength: float = Field(0.05, ge=0, le=1, description="stain jitter of the light augmentation")

    @model_validator(mode="after")
    def _ordered(self) -> "Config":
        if not 0 < self.scale[0] <= self.scale[1] <= 1:
            raise ValueError("scale must be two shares of the area, 0 < smallest <= largest <= 1")
        if self.crop_um is not None and not 0 < self.crop_um[0] <= self.crop_um[1]:
            raise ValueError("crop_um must be two sides in um, 0 < smallest <= largest")
        if not 0 < self.sigma[0] <= self.sigma[1]:
            raise ValueError("sigma must be two positive numbers, smallest <= largest")
        return self


class Histology:
    """Views of (H, W, 3) uint8 tiles as (3, size, size) float32, normalized with the training tiles' statistics."""

    def __init__(
        self, config: Config, *, size: int, scale: tuple[float, float], mean: np.ndarray, std: np.ndarray
    ) -> None:
        self.config = config
        self.size = size
        self.scale = scale
        self.num_views = config.num_views
        self.input_shape = (3, size, size)
        self.standardize = pixels.Standardize(mean, std)

    def views(self, sample: Any, rng: np.random.Generator) -> list[Tensor]:
        return [self.standardize(view) for view in self.levels(sample, rng)]

    def levels(self, sample: Any, rng: np.random.Generator) -> list[np.ndarray]:
        """What `views` standardizes."""
        return [self._view(sample, rng) for _ in range(self.num_views)]

    def augment(self, sample: Any, rng: np.random.Generator) -> Tensor:
        """A flip or rotation and mild stain jitter of the whole tile."""
        image = stain_jitter(self._fit(sample), self.config.light_stain_strength, rng)
        return self.standardize(turned(image, int(rng.integers(8))))

    def plain(self, sample: Any) -> Tensor:
        return self.standardize(self._fit(sample))

    def _view(self, image: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        c = self.config
        top, left, side = crop_square(image.shape[0], image.shape[1], self.scale, rng)
        view = self._fit(image[top : top + side, left : left + side])
        view = turned(view, int(rng.integers(8)))
        stain, jitter, blur = rng.random(3) < (c.stain, c.jitter, c.blur)
        if stain:
            view = stain_jitter(view, c.stain_strength, rng)
        if jitter:
            view = color_jitter(view, c.strength, rng)
        if blur:
            view = pixels.gaussian_blur(view, rng.uniform(*c.sigma))
        return view

    def _fit(self, image: np.ndarray) -> np.ndarray:
        if image.shape[:2] == (self.size, self.size):
            return np.asarray(image)
        return pixels.resized(np.ascontiguousarray(image), self.size)


def build(config: Config, meta: Meta) -> Histology:
    """
    Raises:
        DataError: if the data are not images (no `size_px`, `rgb_mean`, `rgb_std` among their facts), or if a crop in
            um is larger than a tile, or the spacing of the tiles is not known.
    """
    missing = [fact for fact in ("size_px", "rgb_mean", "rgb_std") if fact not in meta.facts]
    if missing:
        raise DataError(
            f"views/histology needs tiles; the data of source {meta.source} say nothing of {', '.join(missing)}. "
            f"Choose views for the domain {meta.domain}: 'appssl list views'."
        )
    mean, std = (np.asarray(meta.facts[fact], np.float64) for fact in ("rgb_mean", "rgb_std"))
    scale = config.scale if config.crop_um is None else _shares(config.crop_um, meta)
    return Histology(config, size=config.size or int(meta.facts["size_px"]), scale=scale, mean=mean, std=std)


def _shares(crop_um: tuple[float, float], meta: Meta) -> tuple[float, float]:
    """Of the area of a tile."""
    if "spacing_um" not in meta.facts:
        raise DataError(
            f"views/histology: crop_um needs the spacing of the tiles, and the data of source {meta.source} "
            f"have none. Set scale instead."
        )
    tile_um = meta.facts["size_px"] * meta.facts["spacing_um"]
    if crop_um[1] > tile_um * (1 + 1e-6):
        raise DataError(
            f"views/histology: crop_um is up to {crop_um[1]:g}, a tile is {tile_um:g} um wide "
            f"({meta.facts['size_px']} pixels of {meta.facts['spacing_um']:g} um). Prepare larger tiles or crop less."
        )
    low, high = (min(1.0, (side / tile_um) ** 2) for side in crop_um)
    return low, high


def crop_square(height: int, width: int, scale: tuple[float, float], rng: np.random.Generator) -> tuple[int, int, int]:
    """(top, left, side) of a random square, its area uniform in `scale` of the largest; squares keep cells' shapes."""
    share, y, x = rng.random(3)
    largest = min(height, width)
    side = max(1, round(largest * (scale[0] + share * (scale[1] - scale[0])) ** 0.5))
    return int(y * (height - side + 1)), int(x * (width - side + 1)), side


def turned(image: np.ndarray, number: int) -> np.ndarray:
    """One of the eight flips and right-angle rotations of a square image, numbered 0 (unchanged) to 7."""
    image = np.rot90(image, number % 4)
    return np.ascontiguousarray(image[:, ::-1] if number >= 4 else image)


def stain_jitter(image: np.ndarray, strength: float, rng: np.random.Generator) -> np.ndarray:
    """Amounts of haematoxylin, eosin and the residual scaled by 1 +- strength and shifted; (H, W, 3) uint8 both."""
    alpha = 1 + strength * (2 * rng.random(3) - 1)
    beta = _BETA * strength * (2 * rng.random(3) - 1)
    return mix_stains(image, alpha.astype(np.float32), beta.astype(np.float32))


def mix_stains(image: np.ndarray, alpha: np.ndarray, beta: np.ndarray) -> np.ndarray:
    """(H, W, 3) uint8 with the amount of each stain times alpha (3,) plus beta (3,).

    density = amounts @ STAINS, so the change of amounts becomes one matrix and one vector for densities.
    """
    matrix = (_UNMIX * alpha) @ STAINS
    density = _DENSITY[image].reshape(-1, 3) @ matrix + beta @ STAINS
    values = 256 * np.exp(density * np.float32(-np.log(10))) - 1
    return np.clip(np.rint(values), 0, 255).astype(np.uint8).reshape(image.shape)


def color_jitter(image: np.ndarray, strength: float, rng: np.random.Generator) -> np.ndarray:
    """Brightness, contrast and saturation (factors 1 +- strength) in random order; uint8. No hue: that is the stain."""
    factors = 1 + strength * (2 * rng.random(3) - 1)
    for step in rng.permutation(3):
        if step == 0:
            image = pixels.brightness(image, factors[0])
        elif step == 1:
            image = pixels.contrast(image, factors[1])
        else:
            image = pixels.saturation(image, factors[2])
    return image
