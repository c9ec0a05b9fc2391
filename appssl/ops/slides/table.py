"""Which slides there are, and which labelled points on them: tables and folders become checked frames.

The same inputs give the same rows in the same order (by slide id), so every shard sees the same list. All problems of a
table are reported in one message.
"""

import os
from collections.abc import Mapping, Sequence
from pathlib import Path, PurePosixPath
from typing import Any

import polars as pl
from pydantic import Field

from appssl.errors import DataError
from appssl.ops.paths import inside
from appssl.ops.slides.files import SUFFIXES, slides_among
from appssl.ops.table_limits import UNREADABLE, checked, first_line, refuse, refuse_long_cells
from appssl.settings import Settings, nearest

_PARTS = ("train", "val", "test")
SCHEMA: dict[str, Any] = {
    "slide_id": pl.String, "path": pl.String, "patient": pl.String, "label": pl.String, "split": pl.String,
    "mpp": pl.Float64, "mask": pl.String, "sha256": pl.String, "where": pl.String,
}  # fmt: skip


class Columns(Settings):
    """Which column holds what. `a|b` means a where the table has it, else b.

    Columns that are not required are used where they are there; one that was renamed here must be there.
    """

    slide: str = Field("slide_id", description="unique id of the slide")
    path: str = Field("path", description="path of the slide file, relative to slides_root")
    patient: str | None = Field("patient_id", description="whose slide it is; null: not used")
    label: str | None = Field("label", description="label of the slide; null: not used")
    split: str | None = Field("split", description="train, val or test; empty means train; null: not used")
    mpp: str | None = Field("mpp", description="um per level-0 pixel, wins over the slide's own; null: not used")
    mask: str | None = Field("mask_path", description="GeoJSON of the tissue, relative to slides_root; null: not used")
    sha256: str | None = Field("sha256", description="checksum the slide must have; null: not used")


class Points(Settings):
    """Labelled points on slides; each becomes a tile centred on it."""

    table: str = Field(description="CSV or Parquet table of the points, relative to data.root")
    slide: str = Field("slide_id", description="column with the slide id")
    slide_prefix: str = Field("", description="put before the values of that column to get the slide id")
    x: str = Field("x", description="column with x, level-0 pixels from the left")
    y: str = Field("y", description="column with y, level-0 pixels from the top")
    label: str = Field("label", description="column with the label; empty means unlabelled")
    exclude_labels: tuple[str, ...] = Field((), description="points with these labels are left out")


def read_table(root: Path, path: str, what: str) -> pl.DataFrame:
    """A CSV (all values text) or Parquet table.

    Raises:
        DataError: if it is missing, unreadable or empty.
    """
    full = inside(root, path)
    if not full.is_file():
        raise DataError(f"{path}: there is no such table of {what} in {root}. Correct the setting, or data.root.")
    suffix = full.suffix.lower()
    if suffix not in (".csv", ".parquet"):
        raise DataError(f"{path}: a table is .csv or .parquet, this is {suffix or 'without suffix'}.")
    try:
        frame = pl.read_parquet(checked(full)) if suffix == ".parquet" else pl.read_csv(full, infer_schema=False)
    except pl.exceptions.NoDataError:
        frame = pl.DataFrame()
    except UNREADABLE as error:
        why = f"cannot be read as a table: {first_line(error)}. Write it again as CSV (UTF-8) or Parquet"
        raise DataError(f"{path}: {why}.") from None
    if frame.is_empty():
        raise DataError(f"{path}: the table is empty. Give a table with one row per {what.rstrip('s')}.")
    return refuse_long_cells(frame, path)


def list_slides(root: Path, path: str, columns: Columns, slides_root: Path) -> pl.DataFrame:
    """Slides of a table (`SCHEMA`), sorted by id. `path` there is relative to `slides_root`.

    Raises:
        DataError: for a missing column, empty or repeated id, empty path or one that leaves `slides_root`, a spacing
            that is no number, or an unknown part; all problems in one message.
    """
    raw = read_table(root, path, "slides")
    names, problems = _found(path, raw.columns, columns.model_dump(), Columns().model_dump(), ("slide", "path"))
    refuse(problems)
    texts = {key: _texts(raw[name]) if name else [None] * len(raw) for key, name in names.items()}
    where = [f"{path} row {n + 1}" for n in range(len(raw))]
    problems += _row_problems(where, texts, names)
    problems += _leaving(slides_root, where, texts["path"]) + _leaving(slides_root, where, texts["mask"])
    mpp = []
    for row, text in zip(where, texts.pop("mpp"), strict=True):
        mpp.append(_number(text))
        if text is not None and mpp[-1] is None:
            problems.append(f"{row}: {text!r} in column {names['mpp']} is no number of um per pixel")
    refuse(problems)
    rows = {"slide_id": texts.pop("slide"), **texts, "mpp": mpp, "where": where}
    return pl.DataFrame(rows, schema=SCHEMA).sort("slide_id")


def list_folder(root: Path, path: str) -> tuple[pl.DataFrame, list[str]]:
    """Slide files below a folder (`SCHEMA`; the id is the path without suffix), and other files, sorted.

    Raises:
        DataError: if there is no such folder, or no slide in it.
    """
    base = inside(root, path)
    if not base.is_dir():
        raise DataError(f"{path}: there is no such folder in {root}. Correct data.source.folder, or data.root.")
    files = (Path(where, name).relative_to(base).as_posix() for where, _, names in os.walk(base) for name in names)
    slides, others = slides_among(base, files)
    if not slides:
        raise DataError(f"{path}: no slides in this folder. Their names end in {', '.join(SUFFIXES)}.")
    ids = [str(PurePosixPath(found).with_suffix("")) for found in slides]
    doubled = {name for name in ids if ids.count(name) > 1}
    ids = [found if name in doubled else name for name, found in zip(ids, slides, strict=True)]
    empty = [None] * len(slides)
    rows = dict(zip(SCHEMA, (ids, slides, *[empty] * 6, slides), strict=True))
    return pl.DataFrame(rows, schema=SCHEMA).sort("slide_id"), others


def copies(slides: pl.DataFrame) -> dict[str, str]:
    """Ids of slides that are the same, byte for byte, as an earlier one, and the id of that one.

    Args:
        slides: sorted by id, with sha256, null where a slide was not read.

    Raises:
        DataError: if a slide and its copy have different patients or labels.
    """
    firsts: dict[str, tuple[str, ...]] = {}
    found, problems = {}, []
    for row in slides.filter(pl.col("sha256").is_not_null()).iter_rows(named=True):
        said = tuple(row[key] for key in ("slide_id", "patient", "label"))
        first = firsts.setdefault(row["sha256"], said)
        if first != said:
            found[row["slide_id"]] = first[0]
        if first[1:] != said[1:]:
            same = f"slides {first[0]!r} and {said[0]!r} are the same, byte for byte, but not their patients and labels"
            problems.append(f"{same}: {first[1]}, {first[2]} and {said[1]}, {said[2]}. Take the wrong row out.")
    refuse(problems)
    return found


def list_points(root: Path, points: Points, slides: Sequence[str]) -> pl.DataFrame:
    """Labelled points (slide_id, row from 1, x, y, label, where), sorted by slide and row; on other slides too.

    Args:
        slides: ids of the slides of the table.

    Raises:
        DataError: for a missing column, an empty slide id, coordinates that are no numbers, or when no point is on any
            of `slides`.
    """
    raw = read_table(root, points.table, "points")
    wanted = points.model_dump(include={"slide", "x", "y", "label"})
    names, problems = _found(points.table, raw.columns, wanted, {}, tuple(wanted))
    refuse(problems)
    texts = {key: _texts(raw[str(name)]) for key, name in names.items()}
    where = [f"{points.table} row {n + 1}" for n in range(len(raw))]
    found = {axis: [_number(text) for text in texts[axis]] for axis in "xy"}
    problems = [f"{row}: the slide id is empty" for row, slide in zip(where, texts["slide"], strict=True) if not slide]
    for axis in "xy":
        problems += [
            f"{row}: {text!r} in column {names[axis]} is no number of level-0 pixels"
            for row, text, value in zip(where, texts[axis], found[axis], strict=True)
            if value is None
        ]
    refuse(problems)
    frame = pl.DataFrame(
        {
            "slide_id": [points.slide_prefix + str(slide) for slide in texts["slide"]],
            "row": range(1, len(raw) + 1),
            **found,
            "label": pl.Series(texts["label"], dtype=pl.String),
            "where": where,
        },
        schema_overrides={"row": pl.Int64, "x": pl.Float64, "y": pl.Float64},
    )
    if not frame["slide_id"].is_in(list(slides)).any():
        theirs = ", ".join(frame["slide_id"].unique().sort()[:3])
        raise DataError(
            f"{points.table}: no point is on a slide of the table; its slides are {', '.join(slides[:3])} ..., "
            f"those of the points {theirs} ... Set points.slide or points.slide_prefix."
        )
    return frame.sort("slide_id", "row")


def guessed_columns(names: Sequence[str]) -> dict[str, str]:
    """Settings of `Columns` for columns that seem to be meant but have another name than the usual one."""
    likely = {
        "slide": ("slide_id", "slide", "image_id", "id", "case"),
        "path": ("path", "file", "filename", "file_name", "slide_path"),
        "patient": ("patient_id", "patient", "subject", "case_id"),
        "label": ("label", "class", "diagnosis"),
        "split": ("split", "part"),
        "mpp": ("mpp", "spacing_um", "um_per_px"),
        "mask": ("mask_path", "mask", "geojson"),
    }
    usual = Columns().model_dump()
    found = {key: next((name for name in options if name in names), None) for key, options in likely.items()}
    return {key: name for key, name in found.items() if name is not None and name != usual[key]}


def _found(
    path: str,
    present: Sequence[str],
    wanted: Mapping[str, str | None],
    usual: Mapping[str, str | None],
    required: Sequence[str],
) -> tuple[dict[str, str | None], list[str]]:
    """Column of the table for each key, None where it is not used; and columns that are missing."""
    names: dict[str, str | None] = {}
    problems = []
    for key, name in wanted.items():
        options = name.split("|") if name else []
        names[key] = next((option for option in options if option in present), None)
        renamed = len(options) == 1 and name != usual.get(key)
        if names[key] is None and (key in required or renamed):
            problems.append(f"{path}: has no column {name!r} ({key}).{nearest(str(name), present)}")
    return names, problems


def _row_problems(
    where: Sequence[str], texts: Mapping[str, Sequence[str | None]], names: Mapping[str, str | None]
) -> list[str]:
    problems = []
    first: dict[str, str] = {}
    for n, row in enumerate(where):
        slide, split = texts["slide"][n], texts["split"][n]
        if slide is None:
            problems.append(f"{row}: the slide id is empty (column {names['slide']})")
        elif slide in first:
            problems.append(f"{row}: slide id {slide!r} is there twice, first in {first[slide]}")
        else:
            first[slide] = row
        if texts["path"][n] is None:
            problems.append(f"{row}: the path is empty (column {names['path']})")
        if split is not None and split not in _PARTS:
            problems.append(f"{row}: split {split!r} is not one of {', '.join(_PARTS)} (column {names['split']})")
    return problems


def _leaving(slides_root: Path, where: Sequence[str], paths: Sequence[str | None]) -> list[str]:
    problems = []
    for row, path in zip(where, paths, strict=True):
        try:
            inside(slides_root, path or ".")
        except DataError as error:
            problems.append(f"{row}: {error}")
    return problems


def _texts(column: pl.Series) -> list[str | None]:
    """Values as text, whole floats as integers (a missing value makes a table writer turn them), empty as None."""
    if column.dtype.is_float() and (column.drop_nulls() % 1 == 0).all():
        column = column.cast(pl.Int64, strict=False)
    return [None if value is None or str(value).strip() == "" else str(value).strip() for value in column.to_list()]


def _number(text: str | None) -> float | None:
    try:
        value = float(text or "")
    except ValueError:
        return None
    return value if abs(value) < float("inf") else None
