"""The tables of items and of users: rows checked, items that the log uses as samples, and features as tokens."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
from pydantic import Field, field_validator

from appssl.errors import DataError
from appssl.ops.interactions import item_tokens
from appssl.ops.interactions.event_tables import as_text, reading, require, scan
from appssl.ops.interactions.notes import LISTED, Notes
from appssl.ops.interactions.statistics import popularity_slices
from appssl.ops.table_limits import checked
from appssl.settings import Settings


class Multi(Settings):
    """A text column that holds several values."""

    column: str = Field(description="column of the item table")
    separator: str = Field("|", min_length=1, description="what stands between the values")


class Pattern(Settings):
    """A feature cut out of a text column."""

    name: str = Field(description="name of the feature")
    column: str = Field(description="column of the item table")
    regex: str = Field(description="regular expression; its first group is the value")

    @field_validator("regex")
    @classmethod
    def _compiles(cls, value: str) -> str:
        try:
            re.compile(value)
        except re.error as error:
            raise ValueError(f"is no regular expression: {error}") from None
        return value


class Text(Settings):
    """A text column whose words are features, hashed into a fixed number of buckets."""

    column: str = Field(description="column of the item table")
    buckets: int = Field(4096, ge=2, le=1 << 22, description="tokens of the field; words that share one are reported")
    words: int = Field(16, ge=1, le=256, description="first different words of a text that are used")


@dataclass(frozen=True)
class Features:
    """Columns of a table and what is made of them, as in the source's settings. what: item or user. file: as messages
    name it. key: column of ids.
    """

    what: str
    file: str
    key: str
    title: str | None
    categorical: tuple[str, ...]
    multi: tuple[Multi, ...]
    numeric: tuple[str, ...]
    patterns: tuple[Pattern, ...]
    texts: tuple[Text, ...]
    bins: int

    def columns(self) -> list[str]:
        own = [*self.categorical, *self.numeric]
        own += [*(m.column for m in self.multi), *(p.column for p in self.patterns), *(t.column for t in self.texts)]
        return list(dict.fromkeys([self.key, *own, *([self.title] if self.title else [])]))

    def values(self, table: pl.DataFrame, borders: Mapping[str, Sequence[float]]) -> list[item_tokens.FieldValues]:
        """Values of all fields; borders: of the bins of numeric fields, none where a field is not to be used."""
        numeric = [(name, borders.get(name, ())) for name in self.numeric]
        return [
            *(item_tokens.categorical(name, table[name]) for name in self.categorical),
            *(item_tokens.multi(m.column, table[m.column], m.separator) for m in self.multi),
            *(item_tokens.numeric(name, table[name], tuple(of)) for name, of in numeric),
            *(item_tokens.pattern(p.name, table[p.column], p.regex) for p in self.patterns),
            *(item_tokens.words(t.column, table[t.column], t.buckets, t.words) for t in self.texts),
        ]


@dataclass(frozen=True)
class Tokens:
    """Tokens (N, L) int64, their fields, the size of the vocabulary, and what hashing loses."""

    numbers: np.ndarray
    fields: list[dict[str, Any]]
    vocab_size: int
    collisions: list[dict[str, Any]]


def read_table(path: Path, features: Features) -> pl.DataFrame:
    """A table of items or users, one row per id, sorted by id.

    Raises:
        DataError: if a column is missing, an id is missing or twice, or the table is empty.
    """
    frame = scan(path)
    require(frame, features.columns(), path, "data.source")
    key, what = features.key, features.what
    with reading(path):
        checked(path, features.columns())
        table = frame.select(*features.columns()).with_columns(as_text(frame, key).alias(key)).collect()
    if table.is_empty():
        raise DataError(f"{path}: holds no {what}s.")
    problems = []
    nameless = table[key].fill_null("") == ""
    if nameless.any():
        rows = ", ".join(str(row + 1) for row in nameless.arg_true()[:10])
        problems.append(f"{nameless.sum()} row(s) have no {key}: row {rows}.")
        table = table.filter(~nameless)
    repeated = table.filter(pl.col(key).is_duplicated())[key].unique().sort().to_list()
    if repeated:
        shown = ", ".join(map(str, repeated[:10]))
        problems.append(f"{len(repeated)} {what} id(s) occur more than once: {shown}.")
    if problems:
        raise DataError(f"{path}: {' '.join(problems)} Every {what} needs one row with its id.")
    return table.sort(key)


def used_items(
    ids: pl.Series,
    popularity: np.ndarray,
    catalogue: pl.DataFrame,
    features: Features,
    shares: tuple[float, float],
    notes: Notes,
) -> tuple[pl.DataFrame, Tokens]:
    """Rows of `samples.parquet` and tokens of items with an event; the others of the catalogue are left out.

    Args:
        ids: sorted. popularity: (N,) int64 training events of each. shares: head and middle share.
    """
    key = features.key
    without = catalogue.filter(~pl.col(key).is_in(ids.implode()))[key]
    notes.count("items", "kept", len(ids))
    notes.count("items", "left_out", len(without), "no events")
    for item in without.head(LISTED).to_list():
        notes.row("item", item, features.file, "left_out", "no events", "no kept event names it")
    table = pl.DataFrame({key: ids}).join(catalogue, on=key, how="left", maintain_order="left")
    tokens = feature_tokens(table, popularity > 0, features, notes)
    nothing = pl.Series([None], dtype=pl.String).new_from_index(0, len(ids))
    samples = pl.DataFrame(
        {
            "index": np.arange(len(ids)),
            "id": ids,
            "group": ids,
            "split": np.where(popularity > 0, "train", "test"),
            "label": nothing,
            "true_label": nothing,
            "title": table[features.title] if features.title else nothing,
            "popularity": popularity,
            "slice": popularity_slices(popularity, *shares).astype(str),
        }
    )
    return samples, tokens


def feature_tokens(table: pl.DataFrame, known: np.ndarray, features: Features, notes: Notes) -> Tokens:
    """Tokens of the rows of a table, with the vocabulary of those that are `known` (N,) bool."""
    _check_numbers(table, features, notes)
    borders = {name: item_tokens.borders_of(table[name], known, features.bins) for name in features.numeric}
    fields = _telling(features.values(table, borders), known, features, notes)
    numbers, about, vocab = item_tokens.tokens(fields, known)
    _note_featureless(table[features.key], numbers, features, notes)
    return Tokens(numbers, about, vocab, [item_tokens.collisions(field, known) for field in fields if field.buckets])


def new_tokens(table: pl.DataFrame, features: Features, fields: list[dict[str, Any]]) -> np.ndarray:
    """Tokens (N, L) int64 of items of a new table, with the vocabulary of the training items, that of `fields`."""
    about = {field["name"]: field for field in fields}
    values = features.values(table, {name: field["borders"] for name, field in about.items()})
    return item_tokens.encoded([field for field in values if field.name in about], fields)


def _telling(
    fields: list[item_tokens.FieldValues], known: np.ndarray, features: Features, notes: Notes
) -> list[item_tokens.FieldValues]:
    """Fields that tell those of training apart; those with one value for all are left out.

    Raises:
        DataError: if there is none.
    """
    what, reason, telling = f"{features.what}_features", f"the same for every training {features.what}", []
    for field in fields:
        values = {tuple(of) for of, k in zip(field.values, known, strict=True) if k}
        if len(values) > 1:
            telling.append(field)
            continue
        shown = ", ".join(next(iter(values), ())) or "no value"
        notes.count(what, "left_out", 1, reason)
        notes.row("feature", field.name, features.file, "left_out", reason, f"value {shown}")
    notes.count(what, "kept", len(telling))
    if not telling:
        names = ", ".join(field.name for field in fields)
        raise DataError(f"{features.file}: {names}: {reason}. Name features that differ.")
    return telling


def _note_featureless(ids: pl.Series, tokens: np.ndarray, features: Features, notes: Notes) -> None:
    """Items or users without any known feature are used, and told: to the model they are all the same."""
    none = np.flatnonzero(~tokens.any(axis=1))
    what, reason = f"{features.what}s_with_features", "no known feature"
    notes.count(what, "kept", len(ids) - len(none))
    notes.count(what, "left_out", len(none), reason)
    detail = "used, but without features: not in the table, or no value that occurs in training"
    for row in none[:LISTED].tolist():
        notes.row(features.what, ids[row], features.file, "left_out", reason, detail)


def _check_numbers(table: pl.DataFrame, features: Features, notes: Notes) -> None:
    """Text where a number should be is a missing feature, and says so; an empty cell is just missing."""
    for name in features.numeric:
        text = table[name].cast(pl.String)
        given = (text.fill_null("").str.strip_chars() != "").to_numpy()
        bad = given & ~np.isfinite(table[name].cast(pl.Float64, strict=False).to_numpy())
        notes.count("numeric_values", "kept", int(given.sum() - bad.sum()))
        notes.count("numeric_values", "failed", int(bad.sum()), f"{name} is no number")
        for row in np.flatnonzero(bad)[:LISTED].tolist():
            item, reason = table[features.key][row], f"{name} is no number"
            detail = f"value {text[row]}; treated as missing"
            notes.row("value", item, features.file, "failed", reason, detail)
