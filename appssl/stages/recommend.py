"""A finished ranking model applied to users: the best items that a user has not seen."""

from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import torch

from appssl.artifact import Artifact
from appssl.contracts import Quarantined
from appssl.errors import DataError

_USERS_AT_ONCE = 256


def recommend(artifact: Artifact, model: Any, table: Path, top_k: int) -> tuple[pl.DataFrame, list[Quarantined]]:
    """Best `top_k` items for every user of a table with a column `user`, `user_id` or the name used in training.

    Returns:
        (user, rank, item, score), and the users that training did not know.
    Raises:
        DataError: if the table cannot be read, has no such column, or none of its users is known.
    """
    users = artifact.table("users.parquet")  # number, id
    items = artifact.table("items.parquet")  # number, id
    seen = artifact.table("seen.parquet")  # user, item numbers
    source = artifact.json("model.json")["source"]
    wanted = _read_users(table, (source.get("columns") or {}).get("user"))
    numbered = users.with_columns(pl.col("id").cast(pl.String))
    known = wanted.join(numbered, left_on="user", right_on="id", how="left", maintain_order="left")
    unknown = known.filter(pl.col("number").is_null())["user"].to_list()
    numbers = known.filter(pl.col("number").is_not_null())["number"].to_numpy().astype(np.int64)
    if len(numbers) == 0:
        raise DataError(f"{table}: none of its {len(wanted)} users was known in training, such as {unknown[0]}.")
    seen_of = dict(seen.group_by("user").agg("item").iter_rows())
    names, ids = dict(users.select("number", "id").iter_rows()), items.sort("number")["id"].to_list()
    frames = []
    for start in range(0, len(numbers), _USERS_AT_ONCE):
        block = numbers[start : start + _USERS_AT_ONCE]
        with torch.no_grad():
            scores = model.score_users(torch.as_tensor(block))
        for row, user in enumerate(block):
            scores[row, seen_of.get(int(user), [])] = -torch.inf
        best = scores.topk(min(top_k, scores.shape[1]), dim=1)
        for row, user in enumerate(block):
            kept = torch.isfinite(best.values[row])
            frames.append(
                pl.DataFrame(
                    {
                        "user": [str(names[int(user)])] * int(kept.sum()),
                        "rank": list(range(1, int(kept.sum()) + 1)),
                        "item": [str(ids[i]) for i in best.indices[row][kept].tolist()],
                        "score": best.values[row][kept].tolist(),
                    }
                )
            )
    left = [
        Quarantined("user", u or "(empty)", table.name, "failed", "unknown user", "was not in the training data")
        for u in unknown
    ]
    return pl.concat(frames), left


def _read_users(table: Path, trained: str | None) -> pl.DataFrame:
    """Distinct users, in order. trained: the column's name in the training data."""
    if not table.exists():
        raise DataError(f"{table}: no such table.")
    try:
        frame = pl.read_parquet(table) if table.suffix == ".parquet" else pl.read_csv(table, infer_schema=False)
    except (pl.exceptions.PolarsError, OSError) as error:
        raise DataError(
            f"{table}: cannot be read: {error}. Give a CSV or Parquet file with a column user_id."
        ) from None
    usual = [c for c in frame.columns if c.lower() in ("user", "user_id", "userid")]
    column = trained if trained in frame.columns else next(iter(usual), None)
    if column is None:
        named = "user_id" if trained in (None, "user_id") else f"user_id or {trained}"
        raise DataError(f"{table}: needs a column {named}; it has {', '.join(frame.columns)}.")
    found = frame.select(pl.col(column).cast(pl.String).alias("user")).fill_null("").unique(maintain_order=True)
    if found.is_empty():
        raise DataError(f"{table}: holds no users in column {column}.")
    return found
