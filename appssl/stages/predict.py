"""A finished model or encoder applied to new data: the new table is prepared as the training data was."""

import json
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import torch

from appssl import registry
from appssl.artifact import Artifact, ArtifactWriter, write_bytes, write_table, written_aside
from appssl.contracts import PreparedData, Quarantined, Views
from appssl.engine.loading import embed
from appssl.errors import ArtifactError, DataError
from appssl.ops.signals.label_intervals import label_intervals
from appssl.stages.bag_scores import bag_column, bag_probabilities, class_logits, in_bags
from appssl.stages.models import load_encoder, load_model, method, read_meta
from appssl.stages.recommend import recommend
from appssl.stages.slide_features import file_names, write_hdf5

FORMATS = (".parquet", ".csv")


class ArrayModel:
    """An exported model that maps arrays to arrays; what the model registry serves."""

    def __init__(self, folder: Path) -> None:
        self._artifact = Artifact.open(folder, "model")
        self._model, _, self.about = load_model(self._artifact)

    def predict_array(self, array: np.ndarray) -> np.ndarray:
        """(B, *input_shape) inputs, as the plain view gives them, to (B, K) probabilities float32.

        For ranking, (B,) user numbers to (B, items) scores.
        """
        with torch.no_grad():
            if self.about["meta"]["task"] == "ranking":
                return self._model.score_users(torch.as_tensor(array)).numpy()
            return torch.softmax(self._model(torch.as_tensor(array)).float(), dim=1).numpy()


def load_array_model(folder: Path) -> ArrayModel:
    return ArrayModel(folder)


def predict(
    model_dir: Path,
    table: Path,
    out: Path,
    *,
    top_k: int = 20,
    accelerator: str = "auto",
    workers: int | None = None,
) -> list[Quarantined]:
    """Writes predictions for a new table: id, group, prediction, confidence and a probability per class; for ranking
    the best `top_k` items of every user, with reasons.

    For a model of bags there is a row per bag (slide); the rows of their tiles lie in NAME.tiles.SUFFIX beside it, and
    pictures of slides in NAME.heatmaps. For windows of time NAME.intervals.SUFFIX beside it has intervals of one class.

    Returns:
        What was left out or could not be read of the table, with reasons.
    """
    _writable(out)
    artifact = Artifact.open(stage_folder(model_dir, "finetune"), "model")
    model, views, about = load_model(artifact)
    if about["meta"]["task"] == "ranking":
        frame, left = recommend(artifact, model, table, top_k)
        _write(frame, out)
        return left
    how: dict[str, Any] = {"accelerator": accelerator, "workers": workers}
    with prepared(about, table, str(artifact.folder / "model.json")) as (data, left):
        column = bag_column(about["meta"]["facts"], data.samples)
        if column is not None:
            _write_bags(model, data, views, column, about["meta"]["classes"], out, how)
            return left
        rows = np.arange(len(data.samples))
        logits = torch.as_tensor(embed(model, data, rows, views, **how))
        known = data.samples.drop("label", "true_label", "split", "index")
        probabilities, classes = torch.softmax(logits, dim=1).numpy(), about["meta"]["classes"]
        _write(_judged(known, probabilities, classes), out)
        if {"session", "start_seconds", "end_seconds"} <= set(known.columns):
            _write(label_intervals(known, probabilities, classes), out.with_name(f"{out.stem}.intervals{out.suffix}"))
        return left


def _write_bags(
    model: Any, data: PreparedData, views: Views, column: str, classes: list[str], out: Path, how: dict[str, Any]
) -> None:
    table, offsets = in_bags(data, column)
    features = embed(model.backbone, data, table["index"].to_numpy(), views, **how)
    tiles = torch.from_numpy(class_logits(model, features)).softmax(1).numpy()
    names = table.group_by(column, maintain_order=True).agg(pl.len().alias("num_tiles"))
    judged = _judged(names, bag_probabilities(model, features, offsets), classes)
    _write(judged, out)
    known = table.drop("label", "true_label", "split", "index")
    _write(_judged(known, tiles, classes), out.with_name(f"{out.stem}.tiles{out.suffix}"))
    if column == "slide_id" and hasattr(data, "heatmap"):
        _write_heatmaps(data, judged, tiles, offsets, classes, out)


def _write_heatmaps(
    data: Any, slides: pl.DataFrame, probabilities: np.ndarray, offsets: np.ndarray, classes: list[str], out: Path
) -> None:
    """Probability of a class on every slide, as a PNG and as GeoJSON for QuPath.

    Of two classes it is the second, so that slides can be compared; of more it is the one that the slide was given.
    """
    folder = out.with_name(f"{out.stem}.heatmaps")
    folder.mkdir(exist_ok=True)
    names = slides["slide_id"].to_list()
    shown = [classes[-1] if len(classes) == 2 else prediction for prediction in slides["prediction"]]
    files = file_names(names)
    for slide, name, first, last in zip(names, shown, offsets[:-1], offsets[1:], strict=True):
        picture, tiles = data.heatmap(slide, probabilities[first:last, classes.index(name)], f"p_{name}")
        write_bytes(folder / f"{files[slide]}.png", picture)
        write_bytes(folder / f"{files[slide]}.geojson", json.dumps(tiles).encode())


def _judged(known: pl.DataFrame, probabilities: np.ndarray, classes: list[str]) -> pl.DataFrame:
    return known.with_columns(
        prediction=pl.Series(np.array(classes)[probabilities.argmax(axis=1)]),
        confidence=pl.Series(probabilities.max(axis=1)),
        **{f"p_{name}": pl.Series(probabilities[:, k]) for k, name in enumerate(classes)},
    )


def embed_table(
    model_dir: Path, table: Path, out: Path, *, accelerator: str = "auto", workers: int | None = None
) -> list[Quarantined]:
    """Writes encoder features for a new table: id, group, and `embedding` (F,) float32 (Parquet) or f0.. (CSV).

    An `out` without a suffix is a folder, which gets an HDF5 file per slide. For ranking the table is one of items.
    Returns as `predict`.
    """
    if out.suffix:
        _writable(out, "; for HDF5, a folder")
    folder = stage_folder(model_dir, "pretrain")
    if Artifact.open(folder, check=False).kind == "encoder":
        encoder, views, about = load_encoder(Artifact.open(folder, "encoder"))
    else:
        model, views, about = load_model(Artifact.open(folder, "model"))
        encoder = model.backbone
    with prepared(about, table, str(folder)) as (data, left):
        features = embed(encoder, data, np.arange(len(data.samples)), views, accelerator=accelerator, workers=workers)
        frame = data.samples.drop("label", "true_label", "split", "index")
        if not out.suffix:
            write_hdf5(frame, features, dict(data.meta.facts), out)
            return left
        if out.suffix == ".parquet":
            frame = frame.with_columns(embedding=pl.Series(features, dtype=pl.Array(pl.Float32, features.shape[1])))
        else:
            frame = frame.with_columns(**{f"f{k}": pl.Series(features[:, k]) for k in range(features.shape[1])})
        _write(frame, out)
        return left


@contextmanager
def prepared(about: dict[str, Any], table: Path, file: str) -> Iterator[tuple[PreparedData, list[Quarantined]]]:
    """A new table, prepared with the settings of the training data, without labels or splits.

    Raises:
        DataError: if nothing of the table can be used.
    """
    if not table.exists():
        raise DataError(f"{table}: no such table.")
    source = about["source"]
    module = registry.load("sources", source["name"])
    trained = method("sources", source, file=file)
    if hasattr(module, "open_new"):
        yield module.open_new(trained, table, read_meta(about["meta"]))
        return
    config = module.for_new_data(trained, table.name)
    built = module.build(config)
    root = table.resolve().parent
    with tempfile.TemporaryDirectory(prefix="appssl-") as folder:
        shard = ArtifactWriter(Path(folder) / "shard", "shard", settings_digest="", inputs={})
        merged = ArtifactWriter(Path(folder) / "data", "data", settings_digest="", inputs={})
        try:
            built.prepare(root, 0, 1, shard)
            built.merge(root, [shard.finish()], merged)
        except DataError as error:
            raise DataError(
                f"{table}: cannot be used: {error}{_reasons(merged.quarantine or shard.quarantine)}"
            ) from None
        data = built.open(merged.finish())
        if data.samples.is_empty():
            raise DataError(f"{table}: nothing in it can be used.{_reasons(merged.quarantine)}")
        yield data, merged.quarantine


def _reasons(quarantine: list[Quarantined]) -> str:
    return "".join(f"\n  {q.item} ({q.where}): {q.reason}: {q.detail}" for q in quarantine[:10])


def stage_folder(result: Path, stage: str) -> Path:
    """A stage folder, given itself or its run."""
    if (result / "manifest.json").is_file():
        return result
    for name in dict.fromkeys((stage, "finetune", "pretrain")):
        if (result / name / "manifest.json").is_file():
            return result / name
    raise ArtifactError(
        f"{result}: no finished model here. Give a folder such as results/wsi/demo/s0 or its finetune stage."
    )


def _writable(out: Path, or_else: str = "") -> None:
    if out.suffix not in FORMATS:
        raise DataError(f"--out {out}: give a file name that ends in {' or '.join(FORMATS)}{or_else}.")


def _write(frame: pl.DataFrame, out: Path) -> None:
    with written_aside(out) as file:
        write_table(file, frame, out.suffix)


def write_left_out(left: list[Quarantined], out: Path) -> Path | None:
    """`NAME.left_out.csv` beside `out`: a row for everything that was not used; None, and no file, if all was."""
    path = out.with_name(f"{out.stem}.left_out.csv")
    if not left:
        path.unlink(missing_ok=True)
        return None
    _write(pl.DataFrame([q.plain() for q in left]), path)
    return path
