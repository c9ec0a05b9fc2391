"""Any image network of the timm library, by name, with random weights or those of a local file.

Weights are never downloaded. Those of a file need their licence stated, which the report then shows; non-commercial
ones need a second setting.
"""

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

import timm
import torch
from pydantic import Field
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file
from torch import nn

from appssl.contracts import Meta
from appssl.errors import DataError, SettingsError
from appssl.settings import Settings, nearest

_NON_COMMERCIAL = re.compile(r"(^|[^a-z])nc([^a-z]|$)|non.?commercial|research|academic")


class Config(Settings):
    name: Literal["timm"] = "timm"
    model: str = Field("resnet18", description="name of a timm model, such as resnet18 or vit_tiny_patch16_224")
    weights: str | None = Field(None, description="safetensors file with weights; null: random initialization")
    licence: str | None = Field(None, description="licence of these weights, such as apache-2.0; needed with weights")
    allow_non_commercial: bool = Field(False, description="use weights whose licence forbids commercial use")


def build(config: Config, input_shape: tuple[int, ...], meta: Meta) -> nn.Module:
    """The network without its classifier: (B, C, H, W) -> (B, num_features).

    Raises:
        DataError: if the views are not images, or the weights do not fit. SettingsError: for an unknown name, or a
            licence that is missing or not allowed.
    """
    if len(input_shape) != 3:
        raise DataError(f"backbones/timm needs images (C, H, W); these views have shape {input_shape}.")
    known = timm.list_models()
    if config.model not in known:
        raise SettingsError(
            f"backbone.model: {config.model!r} is not a timm model.{nearest(config.model, known)[:200]}"
        )
    try:
        network = _create(config.model, input_shape)
        width = _num_features(network, input_shape)
    except (AssertionError, RuntimeError, ValueError) as error:
        raise DataError(f"backbones/timm: {config.model} takes no images of shape {input_shape}: {error}") from error
    network.num_features = width  # type: ignore[assignment]
    if config.weights is not None:
        _load(network, Path(config.weights), config)
    return network


def _create(model: str, input_shape: tuple[int, ...]) -> nn.Module:
    options: dict[str, Any] = {"pretrained": False, "num_classes": 0, "in_chans": input_shape[0]}
    try:
        return timm.create_model(model, img_size=input_shape[1:], **options)
    except TypeError:  # convolutional networks take any size and have no such option
        return timm.create_model(model, **options)


def _num_features(network: nn.Module, input_shape: tuple[int, ...]) -> int:
    """Measured: the network's own `num_features` leaves out a layer before the classifier, where there is one."""
    with torch.no_grad():
        features = network.eval()(torch.zeros(1, *input_shape))
    network.train()
    if features.ndim != 2:
        raise ValueError(f"its features have shape {tuple(features.shape[1:])} instead of one row")
    return int(features.shape[1])


def _load(network: nn.Module, path: Path, config: Config) -> None:
    if path.suffix != ".safetensors" or not path.is_file():
        raise DataError(f"backbone.weights: {path} is no safetensors file. Pickled weights are not read; convert them.")
    try:
        with safe_open(path, "pt") as file:
            _check_licence(file.metadata() or {}, config)
        found = network.load_state_dict(load_file(path), strict=False)
    except (SafetensorError, RuntimeError) as error:
        raise DataError(f"backbone.weights: {path} does not fit this network: {error}") from None
    head = [name for name in found.unexpected_keys if not name.startswith(("head", "fc", "classifier"))]
    if found.missing_keys or head:
        wrong = [*found.missing_keys, *head]
        raise DataError(
            f"backbone.weights: {path} does not fit this network ({len(wrong)} names differ, such as {wrong[0]})."
        )


def _check_licence(metadata: Mapping[str, str], config: Config) -> None:
    """
    Args:
        metadata: of the safetensors file, which may say `license`.
    """
    says = metadata.get("license")
    if config.licence is None:
        known = f"; the file says {says}" if says else ""
        raise SettingsError(f"backbone.licence: state the licence of {config.weights}{known}.")
    if says is not None and says.lower() != config.licence.lower():
        raise SettingsError(f"backbone.licence is {config.licence}, the file {config.weights} says {says}.")
    if _NON_COMMERCIAL.search(config.licence.lower()) and not config.allow_non_commercial:
        raise SettingsError(
            f"backbone.licence: {config.licence} forbids commercial use. If yours is none, set "
            "backbone.allow_non_commercial: true."
        )
