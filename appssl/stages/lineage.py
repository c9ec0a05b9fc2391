"""Where a result came from: manifests name the digests of their inputs; the folders around are searched for those."""

from pathlib import Path
from typing import Any

from appssl.artifact import MANIFEST, Artifact, sha256_file
from appssl.errors import ArtifactError, SettingsError
from appssl.settings import read_yaml


def last_stage(result: Path) -> Path:
    """The folder of the last finished stage of a run, or `result` if it is a stage."""
    if (result / MANIFEST).is_file():
        return result
    for stage in ("evaluate", "finetune", "pseudolabel", "pretrain", "report"):
        if (result / stage / MANIFEST).is_file():
            return result / stage
    raise ArtifactError(f"{result}: no finished stage here. Give a folder such as results/wearable/demo/s0.")


def results_root(stage: Path) -> Path:
    """The results folder that a stage folder (`<domain>/<recipe>/s<seed>/<stage>` or `data/<key>`) lies in."""
    resolved = stage.resolve()
    depth = 1 if resolved.parent.name == "data" else 3
    if len(resolved.parents) <= depth:
        raise ArtifactError(f"{stage}: is not in a results folder. Give a folder such as results/wearable/demo/s0.")
    return resolved.parents[depth]


def trace(result: Path) -> dict[str, Any]:
    """Tree of a result and its inputs, down to the digests of raw tables."""
    stage = last_stage(result)
    root = results_root(stage)
    known = {sha256_file(path): path.parent for path in sorted(root.rglob(MANIFEST))}
    return _node(stage.name, Artifact.open(stage, check=False), known)


def _node(name: str, artifact: Artifact, known: dict[str, Path]) -> dict[str, Any]:
    inputs = []
    for input_name, digest in artifact.manifest["inputs"].items():
        if digest in known:
            inputs.append(_node(input_name, Artifact.open(known[digest], check=False), known))
        else:
            raw = input_name.startswith("table:")
            inputs.append(
                {"name": input_name, "digest": digest, "folder": "raw input" if raw else "not found", "matches": raw}
            )
    node = {
        "name": name,
        "digest": artifact.digest,
        "folder": str(artifact.folder),
        "version": artifact.manifest["version"],
        "settings": artifact.manifest["settings"],
        "inputs": inputs,
    }
    return {**node, **_method(artifact.folder)}


def _method(folder: Path) -> dict[str, str]:
    """Names of the methods in the stage's settings."""
    try:
        settings = read_yaml(folder / "config.yaml").get("settings") or {}
    except SettingsError:
        return {}
    names = [f"{key}={value['name']}" for key, value in settings.items() if isinstance(value, dict) and "name" in value]
    return {"method": ", ".join(names)} if names else {}
