"""Encoders and models on disk: weights as safetensors, what is needed to rebuild them as JSON. No pickle."""

from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file, save
from torch import Tensor, nn

from appssl import registry
from appssl.artifact import Artifact, ArtifactWriter
from appssl.contracts import Context, Meta, PreparedData, Views
from appssl.errors import ArtifactError
from appssl.settings import Settings, validate


def method(kind: str, values: Mapping[str, Any], *, file: str) -> Any:
    """Settings of a method from plain values that were stored with a result."""
    config: type[Settings] = registry.load(kind, values["name"]).Config
    return validate(config, values, file=file, owner=f"{kind}/{values['name']}")


def open_data(artifact: Artifact) -> PreparedData:
    """Prepared data of a data artifact, through the source that made it."""
    source = method("sources", artifact.json("source.json"), file=str(artifact.folder / "source.json"))
    return registry.build("sources", source).open(artifact)


def read_meta(values: Mapping[str, Any]) -> Meta:
    return Meta(**{**values, "classes": tuple(values["classes"])})


def describe(
    *, meta: Meta, backbone: Any, views: Any, input_shape: tuple[int, ...], source: Mapping[str, Any]
) -> dict[str, Any]:
    """What an encoder needs to be rebuilt and applied to new data."""
    return {
        "meta": asdict(meta),
        "backbone": _with_own_weights(backbone.plain()),
        "views": views.plain(),
        "input_shape": list(input_shape),
        "source": dict(source),
    }


def _with_own_weights(settings: dict[str, Any]) -> dict[str, Any]:
    """Settings of a network, and of networks in it, that is built without the file of weights it once began with."""
    inner = {key: _with_own_weights(value) if isinstance(value, dict) else value for key, value in settings.items()}
    return {**inner, "weights": None} if "weights" in inner else inner


def save_state(writer: ArtifactWriter, name: str, tensors: Mapping[str, Tensor]) -> None:
    """Tensors to one safetensors file; shared storage is copied, devices are left behind."""
    writer.bytes(name, save({key: value.detach().cpu().contiguous().clone() for key, value in tensors.items()}))


def load_state(module: nn.Module, path: Path) -> None:
    """Loads weights exactly.

    Raises:
        ArtifactError: if the names or shapes do not fit.
    """
    try:
        module.load_state_dict(load_file(path), strict=True)
    except RuntimeError as error:
        what = " ".join(str(error).split())[:300]
        raise ArtifactError(
            f"{path}: does not fit the network it belongs to: {what} ... Run the stage again."
        ) from None


def build_views(values: Mapping[str, Any], meta: Meta, *, file: str) -> Views:
    return registry.build("views", method("views", values, file=file), meta)


def load_encoder(artifact: Artifact) -> tuple[nn.Module, Views, dict[str, Any]]:
    """Encoder in evaluation mode, its views, and its description."""
    file = str(artifact.folder / "encoder.json")
    about = artifact.json("encoder.json")
    meta = read_meta(about["meta"])
    config = method("backbones", about["backbone"], file=file)
    encoder = registry.build("backbones", config, tuple(about["input_shape"]), meta)
    load_state(encoder, artifact.path("encoder.safetensors"))
    return encoder.eval(), build_views(about["views"], meta, file=file), about


def save_model(
    writer: ArtifactWriter, learner: nn.Module, *, about: Mapping[str, Any], finetuner: Any, context: Context
) -> None:
    """The whole fine-tuned learner, so that it can be exported again."""
    facts = dict(context.facts)
    tensors = {key: torch.as_tensor(v) for key, v in facts.items() if isinstance(v, Tensor | np.ndarray)}
    plain = {key: value for key, value in facts.items() if key not in tensors}
    writer.json(
        "model.json", {**about, "finetuner": finetuner.plain(), "num_samples": context.num_samples, "facts": plain}
    )
    save_state(writer, "model.safetensors", learner.state_dict())
    if tensors:
        save_state(writer, "facts.safetensors", tensors)


def load_model(artifact: Artifact) -> tuple[Any, Views, dict[str, Any]]:
    """Exported model (nn.Module) in evaluation mode, its views, and its description."""
    file = str(artifact.folder / "model.json")
    about = artifact.json("model.json")
    meta = read_meta(about["meta"])
    seen = read_meta(about.get("views_meta", about["meta"]))  # the data that the encoder was trained on
    shape = tuple(about["input_shape"])
    backbone = registry.build("backbones", method("backbones", about["backbone"], file=file), shape, seen)
    tensors = load_file(artifact.path("facts.safetensors")) if artifact.has("facts.safetensors") else {}
    context = Context(
        meta=meta,
        backbone=backbone,
        input_shape=shape,
        num_samples=about["num_samples"],
        facts={**about["facts"], **tensors},
    )
    learner = registry.build("finetuners", method("finetuners", about["finetuner"], file=file), context)
    load_state(learner, artifact.path("model.safetensors"))
    return learner.export().eval(), build_views(about["views"], seen, file=file), about
