"""Views of images of which only what is random about them has been drawn; their pixels are computed in batches.

`render()` gives what `ops/images/draws.rendered` gives of every image by itself, within a few levels, on whatever
device the tensors are. It does not wait for the device.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from appssl.errors import DataError
from appssl.ops.images import batch_pixels
from appssl.ops.images.draws import BRIGHTNESS, CONTRAST, HUE, SATURATION, SIGMA, Drawn
from appssl.ops.images.pixels import Standardize

_PIXELS = 2**23  # of images or views that are rendered at once: 0.1 GiB for each tensor of three colors
_NO_STEP = 4
_COLUMNS = (
    *("top", "left", "height", "width"),
    *("flip", "brightness", "contrast", "saturation", "hue", "first", "second", "third", "fourth"),
    *("grey", "sigma", "solarize"),
)


@dataclass
class DrawnViews:
    """V views of each of B images.

    Attributes:
        images: (B, H, W, 3) uint8. drawn: (V, B, P) float32. sides: of the V views, pixels.
        scale, shift: (3,) float32, which make network inputs of levels.
        steps: names of the steps that any view takes; the others are left out.
    """

    images: Tensor
    drawn: Tensor
    sides: tuple[int, ...]
    scale: Tensor
    shift: Tensor
    steps: tuple[str, ...]

    def pin_memory(self) -> "DrawnViews":
        tensors = {name: getattr(self, name).pin_memory() for name in ("images", "drawn", "scale", "shift")}
        return replace(self, **tensors)

    @torch.no_grad()
    def render(self) -> list[Tensor]:
        """V tensors (B, 3, side, side) float32, on the device of the images."""
        with torch.autocast(self.images.device.type, enabled=False):
            return [self._view(number) for number in range(len(self.sides))]

    def _view(self, number: int) -> Tensor:
        side = self.sides[number]
        made = torch.empty((len(self.images), 3, side, side), dtype=torch.float32, device=self.images.device)
        scale, shift = (values.view(3, 1, 1) for values in (self.scale, self.shift))
        for part in self._parts(side):
            made[part] = self._levels(self.images[part], self.drawn[number, part], side).mul_(scale).add_(shift)
        return made

    def _parts(self, side: int) -> Iterator[slice]:
        size = max(1, _PIXELS // max(self.images.shape[1] * self.images.shape[2], side**2))
        return (slice(start, start + size) for start in range(0, len(self.images), size))

    def _levels(self, images: Tensor, table: Tensor, side: int) -> Tensor:
        drawn = dict(zip(_COLUMNS, table.unbind(1), strict=True))
        views = batch_pixels.resized_crops(images, table[:, :4], drawn["flip"], side)
        if "jitter" in self.steps:
            views = _jittered(views, drawn)
        if "grey" in self.steps:
            views = _where(drawn["grey"], batch_pixels.grey(views), views)
        if "blur" in self.steps:
            views = batch_pixels.gaussian_blur(views, drawn["sigma"], SIGMA[1])
        if "solarize" in self.steps:
            views = _where(drawn["solarize"], batch_pixels.solarize(views), views)
        return views


def drawn_views(
    images: Sequence[np.ndarray], drawn: Sequence[Sequence[Drawn]], sides: Sequence[int], standardize: Standardize
) -> DrawnViews:
    """Views of B images (H, W, 3) uint8 of one size, with V draws for each.

    Raises:
        DataError: if the images have several sizes.
    """
    sizes = sorted({image.shape[:2] for image in images})
    if len(sizes) > 1:
        found = ", ".join(f"{width} x {height}" for height, width in sizes[:3])
        raise DataError(
            f"views are rendered on the device from images of one size; a batch has images of {found} pixels. "
            "Set views.render to loader, or prepare images of one size."
        )
    views = [view for of_image in drawn for view in of_image]
    taken = {
        "jitter": any(view.jitter for view in views),
        "grey": any(view.grey for view in views),
        "blur": any(view.sigma for view in views),
        "solarize": any(view.solarize for view in views),
    }
    table = np.array([_row(view) for view in views], np.float32).reshape(len(images), len(sides), len(_COLUMNS))
    return DrawnViews(
        images=torch.from_numpy(np.stack(images)),
        drawn=torch.from_numpy(table).transpose(0, 1).contiguous(),
        sides=tuple(sides),
        scale=torch.from_numpy(standardize.scale),
        shift=torch.from_numpy(standardize.shift),
        steps=tuple(name for name, is_taken in taken.items() if is_taken),
    )


def _row(view: Drawn) -> tuple[float, ...]:
    """In the order of the columns; hues turn in whole steps of two degrees, as levels of OpenCV's hue do."""
    jitter = (1, 1, 1, 0, *(_NO_STEP,) * 4)
    if view.jitter is not None:
        *factors, turn, order = view.jitter
        jitter = (*factors, np.floor(180 * turn), *order)
    return (*view[:5], *jitter, view.grey, view.sigma, view.solarize)


def _jittered(views: Tensor, drawn: dict[str, Tensor]) -> Tensor:
    """The steps in the order of each view: up to three before the hue is turned, the hue, up to three after it."""
    factors = _factors(drawn)
    for step in factors[:3]:
        views = batch_pixels.recolored(views, *step)
    views = _where(drawn["first"] != _NO_STEP, batch_pixels.hue(views, drawn["hue"]), views)
    for step in factors[3:]:
        views = batch_pixels.recolored(views, *step)
    return views


def _factors(drawn: dict[str, Tensor]) -> Tensor:
    """Factors own, grey, mean of `batch_pixels.recolored`, (6, 3, N), three times before the hue and three after it."""
    order = torch.stack([drawn[name] for name in ("first", "second", "third", "fourth")])
    place = torch.arange(4, device=order.device)[:, None]
    turn = (order == HUE).int().argmax(0)
    steps = torch.cat([order.where(place < turn, _NO_STEP)[:3], order.where(place > turn, _NO_STEP)[1:]])
    factor = torch.ones_like(steps)
    for step, name in ((BRIGHTNESS, "brightness"), (CONTRAST, "contrast"), (SATURATION, "saturation")):
        factor = torch.where(steps == step, drawn[name], factor)
    return torch.stack([factor, (1 - factor) * (steps == SATURATION), (1 - factor) * (steps == CONTRAST)], dim=1)


def _where(chosen: Tensor, changed: Tensor, views: Tensor) -> Tensor:
    return torch.where(chosen.bool()[:, None, None, None], changed, views)
