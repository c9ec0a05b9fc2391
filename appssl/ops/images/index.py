"""What images there are: folders, tables and tar shards become one table of units, before any image is decoded.

A unit is one image: its id, web label, truth where known, part, and where its bytes lie. The same inputs give the same
units in the same order, so every shard of a preparation sees the same list.
"""

import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import Any, TypeVar

import polars as pl
from pydantic import Field

from appssl.addresses import masked
from appssl.errors import DataError
from appssl.ops.images.decoding import SUFFIXES
from appssl.ops.paths import inside
from appssl.ops.table_limits import UNREADABLE, checked, first_line, refuse, refuse_long_cells
from appssl.settings import Settings, listed, nearest

OOD = "__ood__"  # true label of an image that shows none of the classes
PARTS = ("train", "val", "test")
T = TypeVar("T")

# file: relative to the root. row: in a table with image bytes, else -1. offset, length: in a tar, else -1.
SCHEMA: dict[str, Any] = {
    "id": pl.String, "group": pl.String, "split": pl.String, "label": pl.String, "true_label": pl.String,
    "url": pl.String, "origin": pl.String, "where": pl.String, "file": pl.String, "row": pl.Int64, "offset": pl.Int64,
    "length": pl.Int64,
}  # fmt: skip


_USUAL = {  # names that columns often have, the likeliest first
    "id": ("id", "image_id", "key", "index"),
    "path": ("path", "image_path", "file", "filename", "file_name", "image"),
    "label": ("label", "class", "query", "category", "keyword"),
    "true_label": ("true_label", "clean_label"),
    "split": ("split", "part"),
    "group": ("group", "site", "source"),
    "url": ("url", "source_url", "image_url"),
}


class Columns(Settings):
    """Which column of a table (or key of a tar shard's .json) holds what."""

    id: str | None = Field("id", description="unique id; null: the path, or the row number")
    image: str = Field("image", description="encoded image bytes, in a Parquet table")
    path: str = Field("path", description="path of the image file relative to data.root; used when there are no bytes")
    label: str | None = Field(
        "label", description="web label: a class name, or its position in class_names; null: none"
    )
    true_label: str | None = Field(None, description=f"true class where known, {OOD} for none of the classes")
    split: str | None = Field(None, description="train, val or test; empty means train")
    group: str | None = Field(None, description="what must not cross the split, such as the site or photographer")
    url: str | None = Field(None, description="address where the image was found, shown to reviewers; never opened")


@dataclass(frozen=True)
class Skipped:
    """Something found among the inputs that is no usable image."""

    item: str
    where: str
    reason: str
    detail: str
    failed: bool


@dataclass
class Listing:
    """Units of one input (`SCHEMA`; labels as written there), what was skipped, and problems of the input itself."""

    frame: pl.DataFrame
    skipped: list[Skipped] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)


# Tables


def list_table(root: Path, path: str, columns: Columns, origin: str) -> Listing:
    """Units of a CSV or Parquet table.

    Raises:
        DataError: if the table is missing, unreadable, empty, or lacks a column.
    """
    raw, path_column = _read(root, path, columns)
    rows = pl.Series("row", range(len(raw)), dtype=pl.Int64)
    has_bytes = path_column is None
    files = _texts(raw[path_column]) if path_column else [path] * len(raw)
    ids = _texts(raw[columns.id]) if columns.id else [str(r + 1) if has_bytes else f for r, f in enumerate(files)]
    frame = pl.DataFrame(
        {
            "id": ids,
            "group": _texts(raw[columns.group]) if columns.group else ids,
            "split": _texts(raw[columns.split]) if columns.split else None,
            "label": _texts(raw[columns.label]) if columns.label else None,
            "true_label": _texts(raw[columns.true_label]) if columns.true_label else None,
            "url": [url and masked(url) for url in _texts(raw[columns.url])] if columns.url else None,
            "origin": origin,
            "where": [f"{path} row {row + 1}" for row in rows],
            "file": files,
            "row": rows if has_bytes else pl.Series([-1] * len(raw), dtype=pl.Int64),
            "offset": -1,
            "length": -1,
        },
        schema_overrides=SCHEMA,
    )
    problems = row_problems(frame, columns)
    if not has_bytes:
        problems += _leaving(root, frame)
    return Listing(frame, problems=problems)


def _read(root: Path, path: str, columns: Columns) -> tuple[pl.DataFrame, str | None]:
    """The wanted columns without image bytes, which are read later in parts; and the column of paths, if any."""
    full = inside(root, path)
    if not full.is_file():
        raise DataError(f"{path}: there is no such table in {root}. Correct the setting, or data.root.")
    schema = _schema(full, path)
    wanted, path_column = _wanted(path, schema, columns)
    wanted = wanted or [next(iter(schema))]
    raw = _columns(full, path, wanted)
    if raw.is_empty():
        raise DataError(f"{path}: the table is empty. Give a table with one row per image.")
    return raw, path_column


def text_table(full: Path, path: str, names: Sequence[str]) -> pl.DataFrame:
    """Columns of a CSV or Parquet table as text, empty as null; it may have no rows. path: as messages name it.

    Raises:
        DataError: if it is missing or unreadable, or lacks a column.
    """
    if not full.is_file():
        raise DataError(f"{path}: there is no such table. Correct the setting, or data.root.")
    schema = _schema(full, path)
    refuse([f"{path}: has no column {name!r}.{nearest(name, schema)}" for name in names if name not in schema])
    raw = _columns(full, path, list(names))
    return pl.DataFrame({name: _texts(raw[name]) for name in names}, schema=dict.fromkeys(names, pl.String))


def _columns(full: Path, path: str, names: list[str]) -> pl.DataFrame:
    """Columns of a table; those of a CSV are text."""
    if full.suffix.lower() == ".parquet":
        found = _reading(path, lambda: pl.read_parquet(checked(full, names), columns=names))
    else:
        found = _reading(path, lambda: pl.read_csv(full, columns=names, infer_schema=False))
    return refuse_long_cells(found, path)


def _schema(full: Path, path: str) -> dict[str, pl.DataType]:
    """Names and types of the columns; those of a CSV are all text."""
    suffix = full.suffix.lower()
    if suffix == ".parquet":
        return dict(_reading(path, lambda: pl.read_parquet_schema(full)))
    if suffix == ".csv":
        return dict(_reading(path, lambda: pl.read_csv(full, n_rows=0, infer_schema=False).schema))
    raise DataError(f"{path}: a table is .csv or .parquet, this is {suffix or 'without suffix'}.")


def _reading(path: str, read: Callable[[], T]) -> T:
    try:
        return read()
    except pl.exceptions.NoDataError:
        raise DataError(f"{path}: the table is empty. Give a table with one row per image.") from None
    except UNREADABLE as error:
        why = f"cannot be read as a table: {first_line(error)}. Write it again as CSV (UTF-8) or Parquet"
        raise DataError(f"{path}: {why}.") from None


def _wanted(path: str, schema: Mapping[str, Any], columns: Columns) -> tuple[list[str], str | None]:
    """Columns to read, and which of them holds paths (None when there are bytes)."""
    named = {key: getattr(columns, key) for key in ("id", "label", "true_label", "split", "group", "url")}
    problems = [
        f"{path}: has no column {name!r} (columns.{key}).{nearest(name, schema)}"
        for key, name in named.items()
        if name and name not in schema
    ]
    path_column = None
    if not isinstance(schema.get(columns.image), pl.Binary):
        path_column = next((name for name in (columns.path, columns.image) if name in schema), None)
        if path_column is None:
            problems.append(
                f"{path}: has neither a column {columns.image!r} with image bytes (columns.image) nor {columns.path!r} "
                f"with paths (columns.path). Its columns: {listed(list(schema))}."
            )
    refuse(problems)
    return list(dict.fromkeys(name for name in (*named.values(), path_column) if name)), path_column


def _texts(column: pl.Series) -> list[str | None]:
    """Values as text, whole floats as integers (a missing value makes a table writer turn them), empty as None."""
    if column.dtype.is_float() and (column.drop_nulls() % 1 == 0).all():
        column = column.cast(pl.Int64, strict=False)
    return [None if value in (None, "") else str(value) for value in column.to_list()]


def guessed_columns(path: Path) -> dict[str, str | None]:
    """Settings for a table from the names of its columns, only those that differ from the defaults.

    Raises:
        DataError: if it cannot be read.
    """
    schema = _schema(path, path.name)
    found: dict[str, str | None] = {}
    for key, names in _USUAL.items():
        found[key] = next((name for name in names if name in schema), None)
    stored = [name for name, kind in schema.items() if isinstance(kind, pl.Binary)]
    found["image"] = stored[0] if stored else "image"
    found["path"] = found["path"] or "path"
    defaults = Columns().plain()
    return {key: name for key, name in found.items() if name != defaults[key]}


def row_problems(frame: pl.DataFrame, columns: Columns) -> list[str]:
    """Empty ids and paths, and parts that do not exist."""
    problems = [f"{where}: the id is empty" for where in frame.filter(pl.col("id").is_null())["where"]]
    problems += [f"{where}: the path is empty" for where in frame.filter(pl.col("file").is_null())["where"]]
    wrong = frame.filter(pl.col("split").is_not_null() & ~pl.col("split").is_in(PARTS))
    problems += [
        f"{where}: split {value!r} is not one of {', '.join(PARTS)} (column {columns.split})"
        for where, value in wrong.select("where", "split").iter_rows()
    ]
    return problems


def _leaving(root: Path, frame: pl.DataFrame) -> list[str]:
    """Paths that leave the root as written; links that do are found when the file is read."""
    problems = []
    for where, file in frame.filter(pl.col("file").is_not_null()).select("where", "file").iter_rows():
        if file.startswith("/") or ".." in file or "\0" in file:
            try:
                inside(root, file)
            except DataError as error:
                problems.append(f"{where}: {error}")
    return problems


# Folders


def list_folder(root: Path, path: str) -> Listing:
    """Units of a folder with one subfolder per label; images that lie directly in it have no label.

    Raises:
        DataError: if the folder is missing or holds no image.
    """
    base = inside(root, path)
    if not base.is_dir():
        raise DataError(f"{path}: there is no such folder in {root}. Correct data.source.folder, or data.root.")
    units: list[dict[str, Any]] = []
    skipped: list[Skipped] = []
    for where, subfolders, files in os.walk(base):
        subfolders.sort()
        for name in [n for n in subfolders if Path(where, n).is_symlink()]:
            item = Path(where, name).relative_to(base).as_posix()
            skipped.append(Skipped(item, f"{path}/{item}", "linked_folder", "links to folders are not followed", False))
        for name in sorted(files):
            parts = Path(where, name).relative_to(base)
            item = parts.as_posix()
            if parts.suffix.lower() in SUFFIXES:
                units.append({"id": item, "label": parts.parts[0] if len(parts.parts) > 1 else None})
            else:
                skipped.append(Skipped(item, f"{path}/{item}", "not_an_image_file", f"suffix {parts.suffix!r}", False))
    if not units:
        raise DataError(
            f"{path}: no images in this folder. Expected is <label>/<image>, images end in {', '.join(SUFFIXES)}."
        )
    files = [(PurePosixPath(path) / found["id"]).as_posix() for found in units]
    rows = [unit(**u, origin="input", where=file, file=file) for u, file in zip(units, files, strict=True)]
    frame = pl.DataFrame(rows, schema=SCHEMA)
    return Listing(frame, skipped)


def unit(**values: Any) -> dict[str, Any]:
    """A row of `SCHEMA` from what is known."""
    empty = {name: -1 if kind == pl.Int64 else None for name, kind in SCHEMA.items()}
    return {**empty, "group": values["id"], **values}
