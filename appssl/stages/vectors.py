"""The vectors of a finished ranking model as tables, and an index of the items' to search in."""

from pathlib import Path
from typing import Any

import polars as pl

from appssl.artifact import Artifact, write_bytes, write_json, write_table, written_aside
from appssl.errors import ArtifactError, DataError, SettingsError
from appssl.ops.interactions.vector_index import build_index, load_faiss
from appssl.stages.models import load_model

INDEX, INDEX_IDS, INDEX_FACTS = "items.faiss", "items.faiss.ids.parquet", "items.faiss.json"


def export_vectors(model_dir: Path, out: Path, *, index: str | None = None) -> None:
    """Writes `users.parquet` and `items.parquet` into a folder: id, and `embedding` (D,) float32.

    A score is the inner product of both. With index "faiss" there is also an index of the items, the ids of its rows,
    in their order, and what it is (`ops/interactions/vector_index.py`).

    Args:
        model_dir: stage folder of a model.
    Raises:
        SettingsError: if the index is another, or its package is not installed. DataError: if `out` is no folder.
        ArtifactError: if the model is not one of vectors.
    """
    if index not in (None, "faiss"):
        raise SettingsError(f"--index {index}: there is no such index. Give faiss, or leave it out.")
    if index:
        load_faiss()
    if out.suffix:
        raise DataError(f"--out {out}: gets the vectors of users and of items, so give a folder, without a suffix.")
    artifact = Artifact.open(model_dir, "model")
    model, _, _ = load_model(artifact)
    if not (hasattr(model, "user_vectors") and hasattr(model, "item_vectors")):
        raise ArtifactError(
            f"{artifact.folder}: has no vectors of users and items, only a ranking model has. Give a table of new "
            "data, to embed it."
        )
    for name in (INDEX, INDEX_IDS, INDEX_FACTS):  # of an earlier export; must not outlive its vectors
        (out / name).unlink(missing_ok=True)
    vectors = {"users": model.user_vectors.numpy(), "items": model.item_vectors.numpy()}
    ids = {name: artifact.table(f"{name}.parquet").sort("number")["id"].cast(pl.String) for name in vectors}
    for name, of in vectors.items():
        embedding = pl.Series(of, dtype=pl.Array(pl.Float32, of.shape[1]))
        _table(out / f"{name}.parquet", pl.DataFrame({"id": ids[name], "embedding": embedding}))
    if index:
        found = build_index(vectors["items"], vectors["users"])
        write_bytes(out / INDEX, found.content)
        _table(out / INDEX_IDS, pl.DataFrame({"id": ids["items"]}).with_row_index("row"))
        write_json(out / INDEX_FACTS, dict[str, Any](found.facts))


def _table(path: Path, frame: pl.DataFrame) -> None:
    with written_aside(path) as file:
        write_table(file, frame)
