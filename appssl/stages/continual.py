"""Pretraining that goes on where another one stopped: what is handed on, and what earlier stages' samples lose.

An encoder that keeps `onward` holds `onward/` (a checkpoint: learner, moments) and `stages.json`: the stages of the
chain so far (recipe, digest of the data, `where`) and `losses`, a row for each stage: the loss that its finished model
has on training samples of every stage up to it, null where a stage had other data. A row is measured in evaluation
mode, without gradient, on the same batches, views and draws whatever the model, so that rows can be compared.

Source: the evaluation of Singh et al., Beyond Cosine Decay, CoLLAs 2025, arXiv 2503.02844.
"""

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import torch

from appssl import registry
from appssl.artifact import Artifact, ArtifactWriter
from appssl.contracts import PreparedData, TrainedStage, Views
from appssl.engine.checkpoint import Checkpoint, read_checkpoint
from appssl.engine.loading import Order, make_batch
from appssl.errors import ArtifactError, DataError, SettingsError
from appssl.ops.part import limited, matching
from appssl.ops.rows import rendered
from appssl.plan import StageConfig

STAGES = "stages.json"
_BATCHES = 8  # that a loss is measured on, at most
_FILES = ("model.safetensors", "optimizer.safetensors", "state.json")


def read_start(artifact: Artifact, settings: Any) -> Checkpoint:
    """What `pretrain.after` goes on from.

    Raises:
        SettingsError: if it kept nothing, or moments of another optimizer.
    """
    if not artifact.has("onward/state.json"):
        raise SettingsError(f"{artifact.folder}: keeps nothing to go on from. Set pretrain.onward: true in its recipe.")
    found = read_checkpoint(artifact.folder / "onward")
    if not settings.moments:
        return replace(found, optimizer={})
    kind = artifact.json(STAGES)["stages"][-1]["optimizer"]
    if kind != settings.fit.optimizer:
        raise SettingsError(
            f"pretrain.after was trained with {kind}, this stage with {settings.fit.optimizer}. Use the same "
            "fit.optimizer, or pretrain.moments: false."
        )
    return found


def write_onward(writer: ArtifactWriter, folder: Path) -> None:
    """Copies the checkpoint that `fit` kept in `folder` into the artifact."""
    kept = sorted(folder.glob("step-*"))
    if not kept:
        raise ArtifactError(f"{folder}: the training kept nothing to go on from. Delete its state and run again.")
    read_checkpoint(kept[-1])  # refuses a damaged one
    for name in _FILES:
        writer.bytes(f"onward/{name}", (kept[-1] / name).read_bytes())


def write_stages(
    writer: ArtifactWriter,
    config: StageConfig,
    learner: Any,
    data: PreparedData,
    views: Views,
    *,
    digest: str,
    earlier: Artifact | None,
) -> dict[str, float]:
    """Writes `stages.json`; returns the losses by stage, `stage_loss/1`, ...

    Args:
        learner: trained, and saved already: measuring may change what it remembers. digest: of the data.
        earlier: the encoder that this stage went on from.
    """
    settings = config.settings
    known = earlier.json(STAGES) if earlier is not None else {"stages": [], "losses": []}
    own = {"recipe": config.recipe, "data": digest, "where": settings.where, "optimizer": settings.fit.optimizer}
    stages = [*known["stages"], own]
    losses = [
        _loss(learner, limited(data, stage["where"], field="pretrain.where"), views, settings, config.seed)
        if stage["data"] == digest
        else None
        for stage in stages
    ]
    writer.json(STAGES, {"stages": stages, "losses": [*known["losses"], losses]})
    return {f"stage_loss/{number}": loss for number, loss in enumerate(losses, 1) if loss is not None}


def _loss(learner: Any, data: PreparedData, views: Views, settings: Any, seed: int) -> float:
    """Mean loss of at most 8 batches of training samples."""
    from lightning_fabric.utilities import move_data_to_device  # seconds, and few evaluations need it

    examples = registry.build("samplers", settings.sampler, data, views)
    device = next(learner.parameters()).device
    order = Order(len(examples), min(settings.fit.batch_size, len(examples)), seed)
    learner.eval()
    losses = []
    with torch.random.fork_rng(), torch.no_grad():
        torch.manual_seed(seed)
        for step in range(min(_BATCHES, order.steps_per_epoch)):
            batch = rendered(move_data_to_device(make_batch(examples, order, step, 0), device))
            losses.append(float(learner(batch).loss))
    return float(np.mean(losses))


def trained_stages(
    encoder: Artifact, table: pl.DataFrame, probabilities: np.ndarray, earlier: Mapping[str, np.ndarray]
) -> tuple[TrainedStage, ...]:
    """The stages of a chain as evaluators see them; () if the encoder is of none.

    Args:
        table: test samples (N rows) with `target_label`. probabilities: (N, K) of the model on this encoder.
        earlier: recipe -> (N, K) of the model after an earlier stage.
    Raises:
        DataError: if an earlier stage was not evaluated, or had other data.
    """
    known = encoder.json(STAGES)["stages"] if encoder.has(STAGES) else []
    missing = [stage["recipe"] for stage in known[:-1] if stage["recipe"] not in earlier]
    if missing:
        raise DataError(f"forgetting needs the evaluations of earlier stages. Add {', '.join(missing)} to compare.")
    if len({stage["data"] for stage in known}) > 1:
        raise DataError("forgetting needs stages that are parts of the same data (pretrain.where).")
    losses = encoder.json(STAGES)["losses"] if known else []
    labels = table.with_columns(label=pl.col("target_label"))
    found = []
    for number, stage in enumerate(known):
        own = labels.select(matching(labels, stage["where"], field="pretrain.where")).to_series().to_numpy()
        after = probabilities if number == len(known) - 1 else earlier[stage["recipe"]]
        found.append(TrainedStage(stage["recipe"], own, after, tuple(losses[number])))
    return tuple(found)
