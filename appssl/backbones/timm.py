"""Any image network of the timm library, by name, with random weights, those of a local file, or published ones.

`weights: published` downloads what timm publishes for the name, as safetensors, once; nothing else uses the network.
The licence of weights is part of the recipe or known to timm, and the report shows it; non-commercial ones need a
second setting.
"""

import re
from pathlib import Path
from types import MethodType
from typing import Any, Literal

import timm
import torch
from huggingface_hub import hf_hub_download, try_to_load_from_cache
from huggingface_hub.errors import HfHubHTTPError
from pydantic import Field, model_validator
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file
from torch import Tensor, nn

from appssl.contracts import Meta
from appssl.errors import DataError, SettingsError
from appssl.settings import Settings, nearest

_NON_COMMERCIAL = re.compile(r"(^|[^a-z])nc([^a-z]|$)|non.?commercial|research|academic|amlr|seer-license")
_PUBLISHED = "published"
_UNKNOWN = (None, "unknown", "other")  # licences that say nothing


class Config(Settings):
    name: Literal["timm"] = "timm"
    model: str = Field("resnet18", description="name of a timm model, such as resnet18 or vit_tiny_patch16_224")
    options: dict[str, bool | int | float | str] = Field(
        {}, description="further arguments of the model, such as init_values: 1e-5 or dynamic_img_size: true"
    )
    channels_last: bool = Field(
        False, description="maps in the order height, width, channels: faster convolutions, results differ by rounding"
    )
    weights: str | None = Field(
        None, description="safetensors file, or `published`: those timm publishes; null: random initialization"
    )
    licence: str | None = Field(
        None, description="licence of these weights, such as apache-2.0; needed for a file, and where timm knows none"
    )
    allow_non_commercial: bool = Field(False, description="use weights whose licence forbids commercial use")

    @model_validator(mode="before")
    @classmethod
    def _known_licence(cls, values: Any) -> Any:
        """The licence of published weights becomes part of the settings, and so of the report."""
        if isinstance(values, dict) and values.get("weights") == _PUBLISHED and values.get("licence") is None:
            try:
                about = timm.get_pretrained_cfg(values.get("model", "resnet18"))
            except RuntimeError:  # an unknown name or tag: refused when the network is built
                about = None
            if about is not None and about.license not in _UNKNOWN:
                return {**values, "licence": about.license}
        return values


def build(config: Config, input_shape: tuple[int, ...], meta: Meta) -> nn.Module:
    """The network without its classifier: (B, C, H, W) -> (B, num_features).

    Raises:
        DataError: if the views are not images, or the weights do not fit. SettingsError: for an unknown name, or a
            licence that is missing or not allowed.
    """
    if len(input_shape) != 3:
        raise DataError(f"backbones/timm needs images (C, H, W); these views have shape {input_shape}.")
    known = timm.list_models()
    if config.model.split(".")[0] not in known:
        raise SettingsError(
            f"backbone.model: {config.model!r} is not a timm model.{nearest(config.model, known)[:200]}"
        )
    if "." in config.model and config.model not in (tagged := timm.list_pretrained(f"{config.model.split('.')[0]}.*")):
        raise SettingsError(
            f"backbone.model: {config.model!r}: timm has {', '.join(tagged)[:200] or 'no weights of it'}."
        )
    try:
        network = _create(config, input_shape)
        width = _num_features(network, input_shape)
    except (AssertionError, RuntimeError, ValueError) as error:
        raise DataError(f"backbones/timm: {config.model} takes no images of shape {input_shape}: {error}") from error
    network.num_features = width  # type: ignore[assignment]
    if hasattr(network, "forward_intermediates"):
        network.stage_features = MethodType(_stage_features, network)  # type: ignore[assignment]
    if config.weights == _PUBLISHED:
        _load(network, _downloaded(config))
    elif config.weights is not None:
        _load_file(network, Path(config.weights), config)
    return network.to(memory_format=torch.channels_last) if config.channels_last else network


def _create(config: Config, input_shape: tuple[int, ...]) -> nn.Module:
    options: dict[str, Any] = {"pretrained": False, "num_classes": 0, "in_chans": input_shape[0], **config.options}
    try:
        return timm.create_model(config.model, **{"img_size": input_shape[1:], **options})
    except TypeError:  # convolutional networks take any size and have no such option
        try:
            return timm.create_model(config.model, **options)
        except TypeError as error:
            raise SettingsError(f"backbone.options: {config.model} does not take them: {error}.") from None


def _stage_features(network: Any, images: Tensor) -> list[Tensor]:
    """Pooled maps (B, F_l) of the stages, for timm the stem of a ResNet is one; the last is what `forward` gives."""
    last, maps = network.forward_intermediates(images)
    return [*(stage.mean(dim=(2, 3)) for stage in maps[:-1]), network.forward_head(last)]


def _num_features(network: nn.Module, input_shape: tuple[int, ...]) -> int:
    """Measured: the network's own `num_features` leaves out a layer before the classifier, where there is one."""
    with torch.no_grad():
        features = network.eval()(torch.zeros(1, *input_shape))
    network.train()
    if features.ndim != 2:
        raise ValueError(f"its features have shape {tuple(features.shape[1:])} instead of one row")
    return int(features.shape[1])


def _downloaded(config: Config) -> Path:
    """
    Raises:
        SettingsError: if nothing is published, or the licence is unknown or not allowed. DataError: without network.
    """
    about = timm.get_pretrained_cfg(config.model)
    if about is None or not about.hf_hub_id:
        raise SettingsError(f"backbone.weights: timm publishes none for {config.model}. Give a file, or leave it out.")
    _check_licence(None if about.license in _UNKNOWN else about.license, f"the weights of {config.model}", config)
    cached = try_to_load_from_cache(about.hf_hub_id, "model.safetensors")
    if isinstance(cached, str):
        return Path(cached)
    try:
        return Path(hf_hub_download(about.hf_hub_id, "model.safetensors"))
    except (HfHubHTTPError, OSError, ValueError) as error:
        why = " ".join(str(error).split())[:200]
        raise DataError(
            f"backbone.weights: those of {config.model} ({about.hf_hub_id}) cannot be downloaded: {why}. Without "
            f"network, copy model.safetensors to this machine and give its path."
        ) from None


def _load_file(network: nn.Module, path: Path, config: Config) -> None:
    if path.suffix != ".safetensors" or not path.is_file():
        raise DataError(f"backbone.weights: {path} is no safetensors file. Pickled weights are not read; convert them.")
    try:
        with safe_open(path, "pt") as file:
            says = (file.metadata() or {}).get("license")
    except SafetensorError as error:
        raise DataError(f"backbone.weights: {path} does not fit this network: {error}") from None
    if config.licence is None:
        known = f"; the file says {says}" if says else ""
        raise SettingsError(f"backbone.licence: state the licence of {path}{known}.")
    _check_licence(says, f"the file {path}", config)
    _load(network, path)


def _load(network: nn.Module, path: Path) -> None:
    try:
        found = network.load_state_dict(load_file(path), strict=False)
    except (SafetensorError, RuntimeError) as error:
        raise DataError(f"backbone.weights: {path} does not fit this network: {error}") from None
    head = [name for name in found.unexpected_keys if not name.startswith(("head", "fc", "classifier"))]
    if found.missing_keys or head:
        wrong = [*found.missing_keys, *head]
        raise DataError(
            f"backbone.weights: {path} does not fit this network ({len(wrong)} names differ, such as {wrong[0]})."
        )


def _check_licence(says: str | None, what: str, config: Config) -> None:
    """
    Args:
        says: the licence that comes with the weights, None where none does.
    """
    if says is None and config.licence is None:
        raise SettingsError(f"backbone.licence: nothing is known of the licence of {what}; state it.")
    if says is not None and config.licence is not None and says.lower() != config.licence.lower():
        raise SettingsError(f"backbone.licence is {config.licence}, {what} says {says}.")
    licence = str(config.licence or says)
    if _NON_COMMERCIAL.search(licence.lower()) and not config.allow_non_commercial:
        raise SettingsError(
            f"backbone.licence: {licence} forbids commercial use. If yours is none, set "
            "backbone.allow_non_commercial: true."
        )
