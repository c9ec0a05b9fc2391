"""BSS: all images of a batch get the style of one of them, another one in every view, so that style tells nothing.

Batches are those of another sampler. In every view a style image s and an area r, both uniform, are drawn for the
batch, and all images get the low-frequency amplitudes of image s (`ops/batch_style.py`). Then, if asked for, all get
the same colour jitter, grey and blur; views should have none of their own (`jitter: 0, grey: 0`), because it makes
styles differ again. Any image views, learner and objective will do; `same_view_ntxent` has negatives of one style, and
`swav` balances its codes in each view alone.

What is drawn depends on (seed, epoch, row of the first image) only, so workers change nothing. A process standardizes
its own part of a batch, and so does a micro-batch; other parts have another style. With `images`, every so many
consecutive images share one: where it divides the part of a process, styles are the same for any number of processes.

Source: Scalbert et al., Towards domain-invariant self-supervised learning with batch styles standardization, ICLR 2024,
arXiv 2303.06088. Deviations: limits of r and the probability are not known from the paper; `style: image` is its
ablation, Fourier augmentation, with one r for the batch. Views are taken to be normalized linearly, as plain images.
"""

from collections.abc import Mapping
from typing import Any, Literal

import numpy as np
import torch
from pydantic import Field, model_validator
from torch import Tensor

from appssl import registry
from appssl.contracts import Batch, Examples, PreparedData, Views
from appssl.errors import DataError, SettingsError
from appssl.ops.batch_style import with_style
from appssl.ops.images import pixels
from appssl.ops.images.draws import draw_jitter, jittered
from appssl.ops.random import rng_for
from appssl.ops.rows import is_rendered_later, rendered, training_rows
from appssl.registry import Method
from appssl.settings import Settings

_STYLES = 2**62  # streams of styles; above the numbers of rows, below those that other samplers use


class Config(Settings):
    name: Literal["bss"] = "bss"
    sampler: Method("samplers") = Field("uniform", description="which samples make a batch")  # type: ignore[valid-type]
    area: tuple[float, float] = Field((0.02, 1.0), description="smallest and largest share of the frequencies, r")
    style: Literal["batch", "image"] = Field(
        "batch", description="one style image for all; image: one for each (Fourier augmentation, to compare with)"
    )
    probability: float = Field(1.0, ge=0, le=1, description="that a view of a batch is standardized")
    images: int | None = Field(None, ge=1, description="consecutive images that share a style; null: all of a process")
    jitter: float = Field(
        0.0, ge=0, le=1, description="probability of colour jitter, the same for all images of a view"
    )
    strength: float = Field(
        0.5, ge=0, le=1, description="colour strength s: brightness, contrast, saturation 0.8 s, hue 0.2 s"
    )
    grey: float = Field(0.0, ge=0, le=1, description="probability that all images of a view are grey")
    blur: float = Field(0.0, ge=0, le=1, description="probability of one blur for all, sigma 0.1 to 2 pixels")

    @model_validator(mode="after")
    def _ordered(self) -> "Config":
        if not 0 <= self.area[0] <= self.area[1] <= 1:
            raise ValueError("area must be two shares of the frequencies, 0 <= smallest <= largest <= 1")
        return self


class BSS:
    is_drawn_by_batch = True

    def __init__(self, config: Config, examples: Examples, low: Tensor, high: Tensor) -> None:
        """
        Args:
            examples: whose batches are standardized. low, high: values of black and white in the views, (C, 1, 1).
        """
        self.config, self.examples = config, examples
        self._low, self._range = low, high - low
        self.facts: Mapping[str, Any] = examples.facts

    def __len__(self) -> int:
        return len(self.examples)

    def batch(self, indices: np.ndarray, *, seed: int, epoch: int) -> Batch:
        """
        Raises:
            SettingsError: if the batches of the other sampler have no views.
        """
        made = rendered(self.examples.batch(indices, seed=seed, epoch=epoch))
        if "views" not in made:
            raise SettingsError(f"sampler bss: sampler {self.config.sampler.name} makes no views to be standardized.")
        rows = made["index"]
        size = self.config.images or len(rows)
        parts = []
        for start in range(0, len(rows), size):
            rng = rng_for(seed, epoch, _STYLES + int(rows[start]))
            parts.append([self._of_one_style(view[start : start + size], rng) for view in made["views"]])
        return {**made, "views": [torch.cat(view) for view in zip(*parts, strict=True)]}

    def _of_one_style(self, view: Tensor, rng: np.random.Generator) -> Tensor:
        c = self.config
        images = (view - self._low) / self._range
        is_standardized, area = rng.random() < c.probability, rng.uniform(*c.area)
        style = rng.integers(len(images), size=len(images) if c.style == "image" else None)
        if is_standardized:
            images = with_style(images, torch.as_tensor(style), area)
        return self._recolored(images.clamp(0, 1), rng) * self._range + self._low

    def _recolored(self, images: Tensor, rng: np.random.Generator) -> Tensor:
        """Images (N, 3, H, W) in 0..1, changed alike."""
        c = self.config
        jitter, grey, blur = rng.random(3) < (c.jitter, c.grey, c.blur)
        key, sigma = rng.integers(2**63), rng.uniform(0.1, 2.0)
        if not (jitter or grey or blur):
            return images
        changed = (255 * images).round().byte().permute(0, 2, 3, 1).contiguous().numpy()
        colors = draw_jitter(c.strength, np.random.default_rng(key))
        for number, image in enumerate(changed):
            if jitter:
                image = jittered(image, colors)
            if grey:
                image = pixels.grey(image)
            changed[number] = pixels.gaussian_blur(image, sigma) if blur else image
        return torch.from_numpy(changed).permute(0, 3, 1, 2).to(images.dtype) / 255


def build(config: Config, data: PreparedData, views: Views) -> BSS:
    """
    Raises:
        DataError: if the samples are no images (H, W, 3) uint8, or their views are no images (C, H, W).
        SettingsError: if views are rendered on the training's device, after a batch has left the sampler.
    """
    if is_rendered_later(views):
        raise SettingsError(
            "sampler bss: changes views when a batch is made, but views.render: device computes them later. "
            "Set views.render: loader."
        )
    sample = data.read(int(training_rows(data.samples)[0]))
    is_image = isinstance(sample, np.ndarray) and sample.dtype == np.uint8 and sample.ndim == 3
    if not is_image or len(views.input_shape) != 3:
        raise DataError(f"sampler bss needs images; these views have shape {views.input_shape}. Use another sampler.")
    low, high = (views.plain(np.full_like(sample, value))[:, :1, :1] for value in (0, 255))
    return BSS(config, registry.build("samplers", config.sampler, data, views), low, high)
