"""Stage pseudolabel: labels judged or made from the encoder's features, with the reason for every row."""

from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import torch

from appssl import registry
from appssl.artifact import Artifact, ArtifactWriter
from appssl.contracts import LABEL_COLUMNS, LABEL_KINDS
from appssl.engine.loading import embed
from appssl.errors import AppsslError
from appssl.evaluators.classification import binary_auroc
from appssl.ops.journal import Journal
from appssl.ops.rows import training_rows
from appssl.plan import StageConfig
from appssl.stages.frame import Inputs, run_stage
from appssl.stages.models import load_encoder, open_data
from appssl.stages.rows import take_fraction


def pseudolabel(
    config: StageConfig, data_dir: Path, encoder_dir: Path, out: Path, *, accelerator: str = "auto"
) -> Artifact:
    """Labels the training part.

    Args:
        data_dir: a data artifact. encoder_dir: an encoder artifact. out: gets `labels.parquet` (LABEL_COLUMNS),
            `ledger.json`, and where the truth is known `metrics.json`.
    """
    settings = config.settings

    def work(inputs: Inputs, writer: ArtifactWriter, journal: Journal) -> dict[str, Any]:
        torch.set_num_threads(settings.threads)
        data = open_data(inputs["data"])
        encoder, views, _ = load_encoder(inputs["encoder"])
        rows = training_rows(data.samples)
        features = embed(encoder, data, rows, views, threads=settings.threads, accelerator=accelerator)
        known = _hide_labels(data.samples[rows], settings.label_fraction or 1.0, config.seed)
        table = known.select("id", "group", "label", "split").with_columns(
            embedding=pl.Series(features.astype(np.float32), dtype=pl.Array(pl.Float32, features.shape[1]))
        )
        labeler = registry.build("labelers", settings.labeler, seed=config.seed)
        labeler.fit(table)
        labels = labeler.label(table)
        _check(labels, table)
        ledger = labeler.ledger()
        writer.table("labels.parquet", labels)
        writer.json("ledger.json", ledger)
        metrics = {**_kinds(labels), **_against_truth(labels, known, data.meta.classes)}
        writer.json("metrics.json", {name: {"value": value} for name, value in metrics.items()})
        journal.metrics(1, {f"labels/{name}": value for name, value in metrics.items()})
        return {"rounds": len(ledger)}

    return run_stage(config, out, {"data": data_dir, "encoder": encoder_dir}, work, method=settings.labeler.name)


def _hide_labels(known: pl.DataFrame, fraction: float, seed: int) -> pl.DataFrame:
    """The training rows with all but a share of the given labels taken away."""
    seen = take_fraction(known.filter(pl.col("label").is_not_null()), fraction, seed)
    return known.with_columns(label=pl.when(pl.col("id").is_in(seen["id"].implode())).then("label"))


def _check(labels: pl.DataFrame, table: pl.DataFrame) -> None:
    missing = [c for c in LABEL_COLUMNS if c not in labels.columns]
    if missing or labels["id"].to_list() != table["id"].to_list():
        raise AppsslError(
            f"the labeler broke its contract: {missing or 'rows differ from those it was given'}. Report this."
        )
    strange = set(labels["kind"].unique().to_list()) - set(LABEL_KINDS)
    if strange:
        raise AppsslError(f"the labeler made unknown kinds {sorted(strange)}; allowed: {', '.join(LABEL_KINDS)}.")


def _kinds(labels: pl.DataFrame) -> dict[str, float]:
    counts = dict(labels.group_by("kind").len().iter_rows())
    return {f"share_{kind}": counts.get(kind, 0) / len(labels) for kind in LABEL_KINDS}


def _against_truth(labels: pl.DataFrame, known: pl.DataFrame, classes: tuple[str, ...]) -> dict[str, float]:
    """Noise detection and label accuracy where the truth is known; never seen by the labeler.

    `noise_auroc` ranks by the labeler's `p_clean` (probability that the given label is right).
    """
    joined = labels.with_columns(given=known["label"], truth=known["true_label"]).filter(pl.col("truth").is_not_null())
    if joined.is_empty():
        return {}
    metrics = {}
    given = joined.filter(pl.col("given").is_not_null())
    if "p_clean" in joined.columns and not given.is_empty():
        noisy = (given["given"] != given["truth"]).to_numpy()
        metrics["given_label_accuracy"] = float(1 - noisy.mean())
        if 0 < noisy.sum() < len(noisy):
            suspicion = 1 - given["p_clean"].to_numpy()
            metrics["noise_auroc"] = binary_auroc(noisy, suspicion)
            outside = (~given["truth"].is_in(list(classes))).to_numpy()
            for name, kind in (("ood", outside), ("id", noisy & ~outside)):
                chosen = kind | ~noisy
                if kind.any():
                    metrics[f"noise_auroc_{name}"] = binary_auroc(kind[chosen], suspicion[chosen])
    used = joined.filter((pl.col("weight") > 0) & pl.col("label").is_not_null())
    metrics["used_share"] = len(used) / len(joined)
    if not used.is_empty():
        metrics["used_label_accuracy"] = float(np.mean((used["label"] == used["truth"]).to_numpy()))
    return metrics
