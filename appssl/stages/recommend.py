"""A finished ranking model applied to users: the best items that a user has not seen, and why."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import torch

from appssl.artifact import Artifact
from appssl.contracts import Quarantined
from appssl.errors import DataError
from appssl.ops.interactions.reasons import nearest_in_history
from appssl.ops.interactions.topk import best_items, seen_matrix
from appssl.ops.table_limits import UNREADABLE, checked, first_line

_REASONS = 3  # items of the history that are named for each recommended one; more than that nobody reads
_COLUMNS = {
    "user": pl.String,
    "rank": pl.Int64,
    "item": pl.String,
    "score": pl.Float64,
    "because": pl.String,
    "because_similarity": pl.String,
}


def recommend(artifact: Artifact, model: Any, table: Path, top_k: int) -> tuple[pl.DataFrame, list[Quarantined]]:
    """Best `top_k` items for every user of a table with a column `user`, `user_id` or the name used in training.

    Returns:
        (user, rank, item, score, because, because_similarity), and the users that training did not know. `because` is a
        JSON list of the up to three items of the user's history whose vectors are nearest to the item's,
        `because_similarity` one of their cosines; both are null for a model without `item_vectors`.
    Raises:
        DataError: if the table cannot be read, has no such column, or none of its users is known.
    """
    users = artifact.table("users.parquet")  # number, id
    source = artifact.json("model.json")["source"]
    wanted = _read_users(table, (source.get("columns") or {}).get("user"))
    numbered = users.with_columns(pl.col("id").cast(pl.String))
    known = wanted.join(numbered, left_on="user", right_on="id", how="left", maintain_order="left")
    unknown = known.filter(pl.col("number").is_null())["user"].to_list()
    numbers = known.filter(pl.col("number").is_not_null())["number"].to_numpy().astype(np.int64)
    if len(numbers) == 0:
        raise DataError(f"{table}: none of its {len(wanted)} users was known in training, such as {unknown[0]}.")
    names, ids = _ids(users), _ids(artifact.table("items.parquet"))
    events = artifact.table("seen.parquet")  # user, item numbers
    seen = seen_matrix(events["user"].to_numpy(), events["item"].to_numpy(), len(names), len(ids))
    frames = []
    with torch.no_grad():
        for block, items, scores in best_items(
            lambda chosen: model.score_users(torch.as_tensor(chosen)), numbers, seen, min(top_k, len(ids))
        ):
            rows, columns = np.nonzero(items >= 0)
            found = {
                "user": names[block[rows]],
                "rank": columns + 1,
                "item": ids[items[rows, columns]],
                "score": scores[rows, columns],
                "because": None,
                "because_similarity": None,
            }
            if hasattr(model, "item_vectors"):
                near, cosines = nearest_in_history(model.item_vectors, items, block, seen, _REASONS)
                found |= _reasons(near[rows, columns], cosines[rows, columns], ids)
            frames.append(pl.DataFrame(found, schema=_COLUMNS, strict=False))
    left = [
        Quarantined("user", u or "(empty)", table.name, "failed", "unknown user", "was not in the training data")
        for u in unknown
    ]
    return pl.concat(frames), left


def _ids(table: pl.DataFrame) -> np.ndarray:
    """Ids as text, in the order of numbers."""
    return table.sort("number")["id"].cast(pl.String).to_numpy()


def _reasons(near: np.ndarray, cosines: np.ndarray, ids: np.ndarray) -> dict[str, list[str]]:
    """Columns of JSON lists; near (N, num) item numbers, -1 for none, and their cosines."""
    told = [
        [(ids[item], float(cosine)) for item, cosine in zip(*row, strict=True) if item >= 0]
        for row in zip(near, cosines, strict=True)
    ]
    return {
        "because": [json.dumps([item for item, _ in row], ensure_ascii=False) for row in told],
        "because_similarity": [json.dumps([round(cosine, 4) for _, cosine in row]) for row in told],
    }


def _read_users(table: Path, trained: str | None) -> pl.DataFrame:
    """Distinct users, in order. trained: the column's name in the training data."""
    if not table.exists():
        raise DataError(f"{table}: no such table.")
    try:
        frame = (
            pl.read_parquet(checked(table)) if table.suffix == ".parquet" else pl.read_csv(table, infer_schema=False)
        )
    except UNREADABLE as error:
        why = f"cannot be read: {first_line(error)}. Give a CSV or Parquet file with a column user_id"
        raise DataError(f"{table}: {why}.") from None
    usual = [c for c in frame.columns if c.lower() in ("user", "user_id", "userid")]
    column = trained if trained in frame.columns else next(iter(usual), None)
    if column is None:
        named = "user_id" if trained in (None, "user_id") else f"user_id or {trained}"
        raise DataError(f"{table}: needs a column {named}; it has {', '.join(frame.columns)}.")
    found = frame.select(pl.col(column).cast(pl.String).alias("user")).fill_null("").unique(maintain_order=True)
    if found.is_empty():
        raise DataError(f"{table}: holds no users in column {column}.")
    return found
