"""Stage pseudolabel: labels judged or made from the encoder's features, with the reason for every row."""

from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import torch

from appssl import registry
from appssl.artifact import Artifact, ArtifactWriter
from appssl.engine.loading import embed
from appssl.ops.journal import Journal
from appssl.ops.rows import training_rows
from appssl.plan import StageConfig
from appssl.stages.frame import Inputs, run_stage
from appssl.stages.labels import write_labels
from appssl.stages.models import load_encoder, open_data
from appssl.stages.rows import take_fraction


def pseudolabel(
    config: StageConfig, data_dir: Path, encoder_dir: Path, out: Path, *, accelerator: str = "auto", workers: int = 0
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
        how: dict[str, Any] = {"threads": settings.threads, "accelerator": accelerator, "workers": workers}
        features = embed(encoder, data, rows, views, **how)
        known = _hide_labels(data.samples[rows], settings.label_fraction or 1.0, config.seed)
        table = known.select("id", "group", "label", "split").with_columns(
            embedding=pl.Series(features.astype(np.float32), dtype=pl.Array(pl.Float32, features.shape[1]))
        )
        labeler = registry.build("labelers", settings.labeler, seed=config.seed)
        labeler.fit(table)
        labels = labeler.label(table)
        ledger = labeler.ledger()
        writer.json("ledger.json", ledger)
        write_labels(labels, known, data.meta.classes, writer, journal, step=1)
        return {"rounds": len(ledger)}

    return run_stage(config, out, {"data": data_dir, "encoder": encoder_dir}, work, method=settings.labeler.name)


def _hide_labels(known: pl.DataFrame, fraction: float, seed: int) -> pl.DataFrame:
    """The training rows with all but a share of the given labels taken away."""
    seen = take_fraction(known.filter(pl.col("label").is_not_null()), fraction, seed)
    return known.with_columns(label=pl.when(pl.col("id").is_in(seen["id"].implode())).then("label"))
