"""What is drawn at random for a view of an image, apart from its pixels; and the pixels, by OpenCV.

The same draws are rendered in batches, by PyTorch, in `ops/images/drawn_views.py`.
"""

from dataclasses import dataclass
from typing import NamedTuple

import cv2
import numpy as np

from appssl.ops.images import pixels

_CROP_ATTEMPTS = 10  # draws of a crop shape before the whole image is taken, as in the reference implementations
BRIGHTNESS, CONTRAST, SATURATION, HUE = range(4)  # steps of the colour jitter
SIGMA = (0.1, 2.0)  # of the blur, pixels


@dataclass(frozen=True)
class Recipe:
    """What is drawn from: ranges and probabilities; the settings of views/image_two_crop of these names."""

    scale: tuple[float, float]
    ratio: tuple[float, float]
    flip: float
    jitter: float
    strength: float
    grey: float
    blur: float
    solarize: float


class Jitter(NamedTuple):
    """Factors of brightness, contrast and saturation, the turn of the hues (1: whole circle), and the steps' order."""

    brightness: float
    contrast: float
    saturation: float
    turn: float
    order: tuple[int, ...]


class Drawn(NamedTuple):
    """One view: its crop in pixels, and what is done to it, in this order. `sigma` 0: no blur."""

    top: int
    left: int
    height: int
    width: int
    flip: bool = False
    jitter: Jitter | None = None
    grey: bool = False
    sigma: float = 0.0
    solarize: bool = False


def draw(height: int, width: int, recipe: Recipe, rng: np.random.Generator) -> Drawn:
    """A view of an image of this size."""
    box = crop_box(height, width, recipe.scale, recipe.ratio, rng)
    chances = (recipe.flip, recipe.jitter, recipe.grey, recipe.blur, recipe.solarize)
    flip, jitter, grey, blur, solarize = (rng.random(5) < chances).tolist()
    drawn_jitter = draw_jitter(recipe.strength, rng) if jitter else None
    return Drawn(*box, flip, drawn_jitter, grey, rng.uniform(*SIGMA) if blur else 0.0, solarize)


def crop_box(
    height: int, width: int, scale: tuple[float, float], ratio: tuple[float, float], rng: np.random.Generator
) -> tuple[int, int, int, int]:
    """(top, left, height, width) of a random crop: area uniform in `scale`, width / height log-uniform in `ratio`.

    When no drawn shape fits into the image, the largest central crop whose shape is allowed.
    """
    low, high = np.log(ratio[0]), np.log(ratio[1])
    for _ in range(_CROP_ATTEMPTS):
        share, shape, y, x = rng.random(4)
        area = height * width * (scale[0] + share * (scale[1] - scale[0]))
        aspect = np.exp(low + shape * (high - low))
        w, h = round((area * aspect) ** 0.5), round((area / aspect) ** 0.5)
        if 0 < w <= width and 0 < h <= height:
            return int(y * (height - h + 1)), int(x * (width - w + 1)), h, w
    w = max(1, min(width, round(height * ratio[1])))
    h = max(1, min(height, round(width / ratio[0])))
    return (height - h) // 2, (width - w) // 2, h, w


def draw_jitter(strength: float, rng: np.random.Generator) -> Jitter:
    """Brightness, contrast, saturation (factors 1 +- 0.8 s) and hue (+- 0.2 s of a turn) in random order."""
    brightness, contrast, saturation = (1 + 0.8 * strength * (2 * rng.random(3) - 1)).tolist()
    turn = 0.2 * strength * (2 * rng.random() - 1)
    return Jitter(brightness, contrast, saturation, turn, tuple(rng.permutation(4).tolist()))


def rendered(image: np.ndarray, drawn: Drawn, side: int) -> np.ndarray:
    """The view (side, side, 3) uint8 of an image (H, W, 3) uint8."""
    crop = image[drawn.top : drawn.top + drawn.height, drawn.left : drawn.left + drawn.width]
    view = pixels.resized(crop, side)
    if drawn.flip:
        view = cv2.flip(view, 1)
    if drawn.jitter:
        view = jittered(view, drawn.jitter)
    if drawn.grey:
        view = pixels.grey(view)
    if drawn.sigma:
        view = pixels.gaussian_blur(view, drawn.sigma)
    if drawn.solarize:
        view = pixels.solarize(view)
    return view


def jittered(image: np.ndarray, jitter: Jitter) -> np.ndarray:
    """(H, W, 3) uint8, its colours changed."""
    for step in jitter.order:
        if step == BRIGHTNESS:
            image = pixels.brightness(image, jitter.brightness)
        elif step == CONTRAST:
            image = pixels.contrast(image, jitter.contrast)
        elif step == SATURATION:
            image = pixels.saturation(image, jitter.saturation)
        else:
            image = pixels.hue(image, jitter.turn)
    return image
