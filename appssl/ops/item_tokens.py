"""Features of items as tokens: every field has its own range of numbers, 0 is missing."""

import re
from dataclasses import dataclass

import numpy as np
import polars as pl

_LONGEST_MULTI = 32  # values of one item in a multi-valued field that are kept, in order


@dataclass(frozen=True)
class FieldValues:
    """A field as lists of values per item."""

    name: str
    values: list[list[str]]
    length: int


def multi(name: str, column: pl.Series, separator: str) -> FieldValues:
    values = [_split(text, separator) for text in column.cast(pl.String).to_list()]
    return FieldValues(name, values, max(1, *(len(v) for v in values)) if values else 1)


def _split(text: str | None, separator: str) -> list[str]:
    parts = [part.strip() for part in (text or "").split(separator)]
    return list(dict.fromkeys(part for part in parts if part))[:_LONGEST_MULTI]


def categorical(name: str, column: pl.Series) -> FieldValues:
    return FieldValues(name, [[text] if text else [] for text in column.cast(pl.String).to_list()], 1)


def pattern(name: str, column: pl.Series, regex: str) -> FieldValues:
    """First group (or the whole match) of a regular expression in a text column."""
    compiled = re.compile(regex)
    values = []
    for text in column.cast(pl.String).to_list():
        found = compiled.search(text or "")
        values.append([found.group(1) if compiled.groups else found.group(0)] if found else [])
    return FieldValues(name, values, 1)


def numeric(name: str, column: pl.Series, known: np.ndarray, bins: int) -> FieldValues:
    """Quantile bins, with borders from the `known` items (N,) bool only."""
    numbers = column.cast(pl.Float64, strict=False).to_numpy()
    finite = np.isfinite(numbers)
    borders = (
        np.unique(np.quantile(numbers[known & finite], np.linspace(0, 1, bins + 1)[1:-1]))
        if (known & finite).any()
        else np.array([])
    )
    return FieldValues(
        name,
        [[str(int(np.searchsorted(borders, x, "right")))] if ok else [] for x, ok in zip(numbers, finite, strict=True)],
        1,
    )


def tokens(fields: list[FieldValues], known: np.ndarray) -> tuple[np.ndarray, list[dict[str, object]], int]:
    """Token numbers (N, L) int64, the fields (name, start, length, first, size), and the vocabulary's size.

    The vocabulary is that of the `known` items (N,) bool: a value that only later items have is missing (0).
    """
    columns, about, first, start = [], [], 1, 0
    for field in fields:
        vocabulary = sorted({value for values, k in zip(field.values, known, strict=True) if k for value in values})
        number = {value: first + position for position, value in enumerate(vocabulary)}
        block = np.zeros((len(field.values), field.length), dtype=np.int64)
        for row, values in enumerate(field.values):
            found = [number[value] for value in values if value in number]
            block[row, : len(found)] = found
        columns.append(block)
        about.append(
            {"name": field.name, "start": start, "length": field.length, "first": first, "size": len(vocabulary)}
        )
        first, start = first + len(vocabulary), start + field.length
    return np.concatenate(columns, axis=1), about, first - 1
