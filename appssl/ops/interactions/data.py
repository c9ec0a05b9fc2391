"""Prepared logs, opened: items as samples, and events as columns that are mapped into memory."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import polars as pl

from appssl.ops.interactions.numbers import numbers_of
from appssl.ops.interactions.store import PARTS

if TYPE_CHECKING:
    from appssl.artifact import Artifact
    from appssl.contracts import Meta


class InteractionData:
    """Items as samples, and the log.

    `tokens` (num_items, L) int64; `user_tokens` (num_users, L) int64, or None without a table of users; `popularity`
    (num_items,) int64 training events; `slices` (num_items,) str head, middle, tail or cold. Numbers beyond the last
    stand for what is unknown: `num_users`, `num_items`.
    """

    def __init__(self, artifact: Artifact, meta: Meta) -> None:
        self.meta = meta
        self.samples = artifact.table("samples.parquet")
        self.users = artifact.table("users.parquet")
        self.tokens = np.load(artifact.path("tokens.npy"), mmap_mode="r")
        has_users = artifact.has("user_tokens.npy")
        self.user_tokens = np.load(artifact.path("user_tokens.npy"), mmap_mode="r") if has_users else None
        self.popularity = self.samples["popularity"].to_numpy()
        self.slices = self.samples["slice"].to_numpy()
        self.num_users, self.num_items = len(self.users), len(self.samples)
        self._artifact = artifact
        sizes = [self.meta.facts["events"][part] for part in PARTS]
        ends = np.cumsum(sizes).tolist()
        self._rows = {part: slice(end - size, end) for part, size, end in zip(PARTS, sizes, ends, strict=True)}

    def interactions(self, split: str) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """User numbers, item numbers and times (N,) int64 of a part, in order of time; read-only, not in memory."""
        user, item, time = (self._column(name, split) for name in ("user", "item", "timestamp"))
        return user, item, time

    def weights(self, split: str) -> np.ndarray | None:
        """Weights (N,) float32 of the events of a part, or None where the log has none."""
        return self._column("weight", split) if self._artifact.has("events/weight.npy") else None

    def sessions(self, split: str) -> np.ndarray | None:
        """Session (N,) int32 of the events of a part among those of their user, or None where there are none."""
        return self._column("session", split) if self._artifact.has("events/session.npy") else None

    def user_numbers(self, ids: pl.Series) -> np.ndarray:
        """Numbers (N,) int64 of users by their ids; `num_users` for one that is unknown."""
        return numbers_of(ids, self.users["id"])

    def item_numbers(self, ids: pl.Series) -> np.ndarray:
        """Numbers (N,) int64 of items by their ids; `num_items` for one that is unknown."""
        return numbers_of(ids, self.samples["id"])

    def read(self, row: int) -> np.ndarray:
        """Tokens (L,) int64 of an item."""
        return np.asarray(self.tokens[row])

    def _column(self, name: str, split: str) -> np.ndarray:
        rows = self._rows.get(split, slice(0, 0))
        return np.asarray(np.load(self._artifact.path(f"events/{name}.npy"), mmap_mode="r")[rows])


class NewItems:
    """Items as samples, without a log: what `embed` takes."""

    def __init__(self, ids: pl.Series, tokens: np.ndarray, meta: Meta) -> None:
        self.meta, self._tokens = meta, tokens
        nothing = pl.lit(None, pl.String)
        self.samples = pl.DataFrame({"id": ids, "group": ids}).select(
            pl.int_range(pl.len(), dtype=pl.Int64).alias("index"),
            "id",
            "group",
            split=pl.lit("test"),
            label=nothing,
            true_label=nothing,
        )

    def read(self, row: int) -> np.ndarray:
        """Tokens (L,) int64 of an item."""
        return self._tokens[row]
