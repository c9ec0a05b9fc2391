"""Ids as numbers: sorted by text, so that they depend on the set of ids only; what is unknown has the number after."""

from collections.abc import Sequence

import numpy as np
import polars as pl


class Seen:
    """Ids of columns of categories, block by block, whose numbers polars gives in the order of threads.

    Attributes:
        categories: what columns are to be cast to.
    """

    def __init__(self) -> None:
        self.categories = pl.Categorical(pl.Categories.random())
        self._held = pl.Series([""]).cast(self.categories)  # polars forgets the numbers when no column is left
        self._known = np.zeros(0, dtype=bool)
        self._codes: list[np.ndarray] = []
        self._ids: list[pl.Series] = []

    def codes(self, column: pl.Series) -> np.ndarray:
        """Categories (N,) uint32 of a block without nulls."""
        codes = column.to_physical().to_numpy()
        if len(codes) and (largest := int(codes.max())) >= len(self._known):
            self._known = np.concatenate([self._known, np.zeros(largest + 1 - len(self._known), dtype=bool)])
        new = np.flatnonzero(~self._known[codes])
        if len(new):
            rows = new[np.unique(codes[new], return_index=True)[1]]
            self._known[codes[rows]] = True
            self._codes.append(codes[rows])
            self._ids.append(column.gather(rows).cast(pl.String))
        return codes

    def sorted(self) -> tuple[pl.Series, np.ndarray]:
        """All ids that are not empty, sorted, and the number of each category; len(ids) for the empty one."""
        ids = pl.concat(self._ids) if self._ids else pl.Series([], dtype=pl.String)
        codes = np.concatenate(self._codes) if self._codes else np.zeros(0, dtype=np.uint32)
        order = ids.arg_sort().to_numpy()
        order = order[(ids.gather(order) != "").to_numpy()]
        number = np.full(max(1, len(self._known)), len(order), dtype=np.uint32)
        number[codes[order]] = np.arange(len(order), dtype=np.uint32)
        return ids.gather(order), number


def numbers_of(ids: pl.Series, known: pl.Series) -> np.ndarray:
    """Numbers (N,) int64 of ids in `known` (sorted, each once); len(known) where it is unknown or null."""
    table = pl.DataFrame({"id": known}).with_row_index("number")
    found = pl.DataFrame({"id": ids}, schema={"id": pl.String}).join(table, on="id", how="left", maintain_order="left")
    return found["number"].cast(pl.Int64).fill_null(len(known)).to_numpy()


def joined(tables: Sequence[pl.Series]) -> tuple[pl.Series, list[np.ndarray]]:
    """Ids of all tables, sorted, each once; and for each table the numbers of its ids, and that of what is unknown."""
    ids = pl.concat([table.cast(pl.String) for table in tables]).unique().sort()
    return ids, [np.append(numbers_of(table, ids), len(ids)).astype(np.uint32) for table in tables]
