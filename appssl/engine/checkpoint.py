"""Checkpoints: safetensors and JSON, complete or absent, the newest valid one wins.

A checkpoint is a folder `step-<step>`: `model.safetensors`, `optimizer.safetensors`, and `state.json` with the step,
the plain values, the SHA-256 of both files and a digest of itself. It is written aside, fsynced and renamed, while the
training goes on (`Writing`). No pickle.
"""

import json
import os
import shutil
import sys
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save
from torch import Tensor

from appssl.artifact import sha256_file, write_bytes, write_json
from appssl.errors import NOT_JSON, ArtifactError
from appssl.settings import digest_of

_TENSORS = ("model.safetensors", "optimizer.safetensors")


@dataclass(frozen=True)
class Checkpoint:
    """State after `step` optimizer steps: tensors by name, and plain values."""

    step: int
    model: dict[str, Tensor]
    optimizer: dict[str, Tensor]
    values: dict[str, Any]


def write_checkpoint(folder: Path, checkpoint: Checkpoint, *, keep: int) -> None:
    """Writes `folder/step-<step>` and removes all but the newest `keep`."""
    _write(folder, _owned(checkpoint), keep)


class Writing:
    """Writes checkpoints beside the training, one at a time; only copying the tensors holds it up.

    What goes wrong is raised by the next `start` or `wait`.
    """

    def __init__(self) -> None:
        self._pool = ThreadPoolExecutor(1, "checkpoint")
        self._running: Future[None] | None = None

    def start(self, folder: Path, checkpoint: Checkpoint, *, keep: int) -> None:
        """As `write_checkpoint`, of the state as it is now."""
        self.wait()
        self._running = self._pool.submit(_write, folder, _owned(checkpoint), keep)

    def wait(self) -> None:
        running, self._running = self._running, None
        if running is not None:
            running.result()

    def close(self) -> None:
        """Ends what is being written, whatever came of it."""
        self._pool.shutdown(wait=True)


def _write(folder: Path, checkpoint: Checkpoint, keep: int) -> None:
    final = folder / f"step-{checkpoint.step:010d}"
    aside = folder / f".{final.name}.part"
    shutil.rmtree(aside, ignore_errors=True)
    write_bytes(aside / "model.safetensors", save(checkpoint.model))
    write_bytes(aside / "optimizer.safetensors", save(checkpoint.optimizer))
    digests = {name: sha256_file(aside / name) for name in _TENSORS}
    state = {"step": checkpoint.step, "sha256": digests, "values": checkpoint.values}
    write_json(aside / "state.json", {**state, "digest": digest_of(state)})
    shutil.rmtree(final, ignore_errors=True)
    os.replace(aside, final)
    for old in _folders(folder)[keep:]:
        shutil.rmtree(old, ignore_errors=True)


def _owned(checkpoint: Checkpoint) -> Checkpoint:
    """With copies on the CPU: training goes on, and safetensors refuses tensors that share memory."""
    model, optimizer = (
        {name: tensor.detach().to("cpu", copy=True).contiguous() for name, tensor in tensors.items()}
        for tensors in (checkpoint.model, checkpoint.optimizer)
    )
    return replace(checkpoint, model=model, optimizer=optimizer)


def newest_checkpoint(folder: Path) -> Checkpoint | None:
    """The newest checkpoint that is complete and undamaged, if any. Says on stderr what it passes over."""
    for path in _folders(folder):
        try:
            return read_checkpoint(path)
        except ArtifactError as error:
            print(f"warning: {error} Taking the one before.", file=sys.stderr)
            shutil.rmtree(path, ignore_errors=True)
    return None


def read_checkpoint(path: Path) -> Checkpoint:
    """
    Raises:
        ArtifactError: if a file is missing or differs from its digest.
    """
    try:
        state = json.loads((path / "state.json").read_text(encoding="utf-8"))
        if state.pop("digest") != digest_of(state):
            raise ArtifactError(f"{path}: damaged: state.json changed.")
        wrong = [name for name in _TENSORS if sha256_file(path / name) != state["sha256"][name]]
        if wrong:
            raise ArtifactError(f"{path}: damaged: {', '.join(wrong)} changed.")
        tensors = [load_file(path / name) for name in _TENSORS]
    except (OSError, *NOT_JSON, KeyError, TypeError, AttributeError) as error:
        raise ArtifactError(f"{path}: damaged: {error}.") from None
    return Checkpoint(state["step"], tensors[0], tensors[1], state["values"])


def _folders(folder: Path) -> list[Path]:
    """Checkpoint folders, newest first."""
    return sorted(folder.glob("step-*"), reverse=True)


def flatten_optimizer(state: dict[str, Any]) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """`Optimizer.state_dict()` as tensors named `<parameter>.<entry>`, and the rest as JSON types."""
    tensors: dict[str, Tensor] = {}
    plain: dict[str, Any] = {}
    for parameter, entries in state["state"].items():
        for name, value in entries.items():
            if isinstance(value, Tensor):
                tensors[f"{parameter}.{name}"] = value
            else:
                plain[f"{parameter}.{name}"] = value
    return tensors, {"entries": plain, "param_groups": state["param_groups"]}


def unflatten_optimizer(tensors: dict[str, Tensor], plain: dict[str, Any]) -> dict[str, Any]:
    """Inverse of `flatten_optimizer`."""
    state: dict[int, dict[str, Any]] = {}
    for key, value in {**tensors, **plain["entries"]}.items():
        parameter, _, name = key.partition(".")
        state.setdefault(int(parameter), {})[name] = value
    return {"state": state, "param_groups": plain["param_groups"]}


def random_state() -> dict[str, Tensor]:
    """States of torch's generators, by device."""
    states = {"random.cpu": torch.get_rng_state()}
    if torch.cuda.is_available():
        states["random.cuda"] = torch.cuda.get_rng_state()
    return states


def set_random_state(states: dict[str, Tensor]) -> None:
    torch.set_rng_state(states["random.cpu"])
    if "random.cuda" in states and torch.cuda.is_available():
        torch.cuda.set_rng_state(states["random.cuda"])
