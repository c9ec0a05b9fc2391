"""What evaluators found of each sample, as columns of a table: classes by their names, other numbers as they are."""

from collections.abc import Iterable, Mapping, Sequence
from fnmatch import fnmatch

import numpy as np
import polars as pl


def to_columns(values: Mapping[str, np.ndarray], classes: Sequence[str]) -> list[pl.Series]:
    """values: (N,) each, int64 class numbers or float64."""
    names = np.array(classes)
    return [
        pl.Series(name, names[found] if np.issubdtype(found.dtype, np.integer) else found)
        for name, found in values.items()
    ]


def from_columns(table: pl.DataFrame, names: Iterable[str], classes: Sequence[str]) -> dict[str, np.ndarray]:
    """What `to_columns` was given, of those names that the table has for every row.

    Args:
        names: also patterns, such as `class_after_*`.
    """
    number = {name: n for n, name in enumerate(classes)}
    known = [column for name in names for column in table.columns if fnmatch(column, name)]
    return {
        name: (
            np.array([number[found] for found in table[name]], np.int64)
            if table.schema[name] == pl.String
            else table[name].to_numpy()
        )
        for name in known
        if not table[name].null_count()
    }
