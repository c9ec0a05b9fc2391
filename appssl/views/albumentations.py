"""Views that are written down as transforms of albumentations: any recipe of that library, by name, in the recipe.

    views:
      name: albumentations
      transforms:
        - {name: RandomResizedCrop, size: [64, 64], scale: [0.2, 1.0]}
        - {name: HorizontalFlip}
        - {name: RandomBrightnessContrast, p: 0.8}

Source: Buslaev et al., Albumentations, Information 2020, arXiv 1809.06839. Deviations: none; every view is seeded by
(seed, epoch, index), so that it does not depend on the process that makes it. `image_two_crop` is faster where it does.
"""

import os
from collections.abc import Mapping, Sequence
from typing import Any, Literal

os.environ.setdefault("NO_ALBUMENTATIONS_UPDATE", "1")  # before the import: it asks the network for its newest version

import albumentations
import numpy as np
from pydantic import Field
from torch import Tensor

from appssl.contracts import Meta
from appssl.errors import SettingsError
from appssl.ops.images import pixels
from appssl.settings import Settings, nearest
from appssl.views.image_two_crop import of_images


class Config(Settings):
    name: Literal["albumentations"] = "albumentations"
    transforms: tuple[dict[str, Any], ...] = Field(
        min_length=1, description="transforms in order, each `name` and its arguments"
    )
    light: tuple[dict[str, Any], ...] = Field(
        ({"name": "HorizontalFlip"},), description="transforms while training with labels"
    )
    num_views: int = Field(2, ge=1, le=16, description="augmented views per image")


class Albumentations:
    """Views of (H, W, 3) uint8 images as (3, H', W') float32, normalized with the training images' statistics."""

    def __init__(self, config: Config, *, size: int, mean: np.ndarray, std: np.ndarray) -> None:
        self.num_views = config.num_views
        self._strong, self._light = (_composed(name, getattr(config, name)) for name in ("transforms", "light"))
        self._standardize = pixels.Standardize(mean, std)
        self._size = size
        trial = self._made("transforms", self._strong, np.zeros((size, size, 3), np.uint8), np.random.default_rng(0))
        self.input_shape = tuple(trial.shape)

    def views(self, sample: Any, rng: np.random.Generator) -> list[Tensor]:
        return [self._made("transforms", self._strong, sample, rng) for _ in range(self.num_views)]

    def augment(self, sample: Any, rng: np.random.Generator) -> Tensor:
        return self._made("light", self._light, self._fit(sample), rng)

    def plain(self, sample: Any) -> Tensor:
        return self._standardize(self._fit(sample))

    def _fit(self, image: np.ndarray) -> np.ndarray:
        side = self.input_shape[1]
        return np.asarray(image) if image.shape[:2] == (side, side) else pixels.resized(image, side)

    def _made(self, field: str, pipeline: Any, image: np.ndarray, rng: np.random.Generator) -> Tensor:
        pipeline.set_random_seed(int(rng.integers(2**32)))
        made = pipeline(image=np.asarray(image))["image"]
        if not isinstance(made, np.ndarray) or made.dtype != np.uint8 or made.shape[0] != made.shape[1]:
            shown = f"{getattr(made, 'dtype', type(made).__name__)} of shape {tuple(made.shape)}"
            raise SettingsError(
                f"views.{field} makes {shown}; square uint8 images are needed. Leave out Normalize and ToTensorV2 "
                "(done here, with the statistics of the training images), and end with one size."
            )
        return self._standardize(made)


def _composed(field: str, transforms: Sequence[Mapping[str, Any]]) -> Any:
    return albumentations.Compose([_transform(f"views.{field}[{n}]", t) for n, t in enumerate(transforms)])


def _transform(field: str, described: Mapping[str, Any]) -> Any:
    arguments = dict(described)
    name = arguments.pop("name", None)
    known = [key for key in dir(albumentations) if _is_transform(getattr(albumentations, key))]
    if name not in known:
        raise SettingsError(f"{field}.name: albumentations has no transform {name!r}.{nearest(str(name), known)}")
    allowed = set(getattr(albumentations, name).InitSchema.model_fields) | {"p"}
    unknown = sorted(set(arguments) - allowed)
    if unknown:  # albumentations itself only warns, and goes on without
        raise SettingsError(f"{field}.{unknown[0]}: {name} has no such argument; it has {', '.join(sorted(allowed))}.")
    try:
        return getattr(albumentations, name)(**arguments)
    except (TypeError, ValueError) as error:
        raise SettingsError(f"{field}: {name} refuses its arguments: {error}") from error


def _is_transform(found: Any) -> bool:
    base = albumentations.BasicTransform
    return isinstance(found, type) and issubclass(found, base) and hasattr(found, "InitSchema")


def build(config: Config, meta: Meta) -> Albumentations:
    """
    Raises:
        DataError: if the data are not images. SettingsError: for unknown transforms and wrong arguments.
    """
    size, mean, std = of_images("albumentations", meta)
    return Albumentations(config, size=size, mean=mean, std=std)
