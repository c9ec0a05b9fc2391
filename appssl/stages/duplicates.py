"""Near-duplicates among prepared images: the same picture cropped, scaled or saved again, by an encoder's features."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import polars as pl

from appssl.artifact import Artifact, write_table, written_aside
from appssl.contracts import SPLITS
from appssl.engine.loading import embed
from appssl.errors import ArtifactError
from appssl.ops.images.semantic_duplicates import NearDuplicates, near_duplicates
from appssl.stages.models import load_encoder, load_model, open_data

TABLE = "semantic_duplicates.parquet"
_DIGITS = 4  # of a similarity that is written: what differs between machines lies behind


@dataclass(frozen=True)
class Found:
    """`table` as it was written to `path`; groups that join parts are in `leaks`."""

    table: pl.DataFrame
    path: Path
    num_images: int

    @property
    def leaks(self) -> pl.DataFrame:
        return self.table.filter("leak")

    @property
    def num_groups(self) -> int:
        return self.table["group"].n_unique()


def duplicates(
    encoder_dir: Path,
    data_dir: Path,
    out: Path,
    *,
    threshold: float = 0.97,
    accelerator: str = "auto",
    workers: int | None = None,
) -> Found:
    """Writes `semantic_duplicates.parquet` and `.csv`: group, id, split, label, similarity, nearest, leak.

    Similarity is the cosine of features from which their mean over all images was taken: what every image of these data
    has in common would otherwise count as likeness. A row is a leak if a near-duplicate of it is in another part.
    Groups with leaks come first, then the most similar.

    Args:
        encoder_dir: an encoder or model artifact, or a run that holds one. data_dir: a data artifact of images.
        threshold: cosine from which two images are near-duplicates, in (0, 1]. workers: as for `engine.loading.embed`.
    """
    data = open_data(Artifact.open(data_dir, "data"))
    artifact = encoder_of(encoder_dir)
    if artifact.kind == "encoder":
        encoder, views, _ = load_encoder(artifact)
    else:
        model, views, _ = load_model(artifact)
        encoder = model.backbone
    features = embed(encoder, data, np.arange(len(data.samples)), views, accelerator=accelerator, workers=workers)
    features -= features.mean(axis=0, dtype=np.float64).astype(np.float32)
    parts = np.array([SPLITS.index(name) for name in data.samples["split"]])
    table = as_table(near_duplicates(features, parts, threshold=threshold), data.samples)
    path = out / TABLE
    for name in (path, path.with_suffix(".csv")):
        with written_aside(name) as file:
            write_table(file, table, name.suffix)
    return Found(table, path, len(data.samples))


def encoder_of(result: Path) -> Artifact:
    """The encoder or model: `result` itself, or that of a run."""
    for folder in (result, result / "pretrain", result / "finetune"):
        if (folder / "manifest.json").is_file():
            artifact = Artifact.open(folder)
            if artifact.kind in ("encoder", "model"):
                return artifact
    raise ArtifactError(f"{result}: no encoder here. Give a folder such as results/webnoisy/demo/s0 or its pretrain.")


def as_table(found: NearDuplicates, samples: pl.DataFrame) -> pl.DataFrame:
    """A row for every image with a near-duplicate; groups are numbered from 1 in their order."""
    ids = samples["id"]
    rows = np.flatnonzero(found.group >= 0)
    table = samples[rows].select(
        pl.Series("root", found.group[rows]),
        "id",
        "split",
        "label",
        pl.Series("similarity", found.similarity[rows].astype(np.float64)).round(_DIGITS),
        pl.Series("nearest", ids.gather(found.nearest[rows])),
        pl.Series("leak", found.crosses[rows]),
    )
    order = [pl.col("leak").any().over("root"), pl.col("similarity").max().over("root"), "root", "similarity", "id"]
    ordered = table.sort(order, descending=[True, True, False, True, False])
    number = pl.col("root").rle_id().cast(pl.Int64) + 1
    return ordered.select(number.alias("group"), pl.all().exclude("root"))
