"""What the settings of a user's table of recordings, or long table of samples, would be, guessed from its columns."""

from pathlib import Path
from typing import Any

import polars as pl

from appssl.errors import DataError
from appssl.ops.signals.recording_tables import TABLE_COLUMNS
from appssl.ops.signals.recordings import LABEL_COLUMNS, open_table, read_rows

_USUAL = {  # names that columns often have, the likeliest first
    "subject": ("subject_id", "subject", "user_id", "user", "person", "participant", "id"),
    "device": ("device", "device_id", "sensor", "placement", "position"),
    "time": ("time", "timestamp", "seconds", "time_ms", "datetime", "t"),
    "label": ("label", "activity", "class", "annotation"),
    "session": ("session", "session_id", "execution", "trial", "recording", "recording_id"),
}
_UNIX_MS = 1e11  # numbers above are milliseconds since 1970: as seconds they would be in the year 5138


def drafted(table: Path) -> dict[str, Any]:
    """Settings of the source for a table, or a folder with `recordings.csv`, relative to the folder it lies in.

    Raises:
        DataError: if the columns that are needed are not found.
    """
    root, path = table.resolve().parent, table.name
    if table.is_dir():
        path = f"{table.name}/recordings.csv"
        if not (root / path).is_file():
            raise DataError(
                f"{table}: the folder has no recordings.csv. Write one with the columns {', '.join(TABLE_COLUMNS)}, "
                "a row per recording, or give a long table."
            )
    columns = open_table(root, path).collect_schema().names()
    found = _recordings(root, path, columns) if {"path", "recording_id"} & set(columns) else _long(root, path, columns)
    labels = f"{table.name}/labels.csv" if table.is_dir() else "labels.csv"
    if "label" not in found.get("columns", {}) and (root / labels).is_file() and _holds_labels(root, labels):
        found["labels"] = labels
    return found


def _holds_labels(root: Path, path: str) -> bool:
    return set(LABEL_COLUMNS) <= set(open_table(root, path).collect_schema().names())


def _recordings(root: Path, path: str, columns: list[str]) -> dict[str, Any]:
    missing = [name for name in TABLE_COLUMNS if name not in columns]
    if missing:
        raise DataError(
            f"{path}: a table of recordings needs the columns {', '.join(TABLE_COLUMNS)}; "
            f"there is no {', '.join(missing)}. It has: {', '.join(columns)}."
        )
    files = read_rows(root, path, open_table(root, path).select(pl.col("path").cast(pl.String)).head(1), ["path"])
    if files.is_empty():
        raise DataError(f"{path}: the table is empty. Give a table with one row per recording.")
    first = str(files["path"][0])
    if not (root / first).is_file():
        raise DataError(f"{path} row 1: {first!r} is not found in {root}. Paths are relative to the folder of --table.")
    known = open_table(root, first).collect_schema().names()
    time = _first("time", known)
    if time is None and "sampling_hz" not in columns:
        raise DataError(
            f"{first}: no column of times ({', '.join(_USUAL['time'])}) among {', '.join(known)}, and no "
            f"sampling_hz in {path}. Rename the column, or state the rate."
        )
    return {"table": path, **_about(root, first, {"time": time, "label": _first("label", known)})}


def _long(root: Path, path: str, columns: list[str]) -> dict[str, Any]:
    named = {key: _first(key, columns) for key in ("subject", "device", "time", "label")}
    if named["subject"] is None or named["device"] is None or named["time"] is None:
        missing = [key for key in ("subject", "device", "time") if named[key] is None]
        raise DataError(
            f"{path}: no column for {', '.join(missing)} among {', '.join(columns[:30])}. A long table needs subject, "
            f"device and time (for example {', '.join(_USUAL[key][0] for key in missing)}); rename the columns, or "
            "write the recipe by hand with `columns` and `wide`: 'appssl show sources wearable'."
        )
    session = _first("session", columns)
    return {"long_table": path, **_about(root, path, {**named, "session": [session] if session else None})}


def _about(root: Path, path: str, named: dict[str, Any]) -> dict[str, Any]:
    """Of a table with samples: columns that differ from the usual, and the unit of time."""
    default = {"subject": "subject_id", "device": "device", "label": None, "session": None}
    columns = {key: name for key, name in named.items() if name != default.get(key, "time")}
    unit = _unit(root, path, named["time"]) if named["time"] else "seconds"
    values: dict[str, Any] = {"columns": columns} if columns else {}
    return values if unit == "seconds" else {**values, "time_unit": unit}


def _unit(root: Path, path: str, column: str) -> str:
    first = read_rows(root, path, open_table(root, path).select(column).drop_nulls().head(1), [column])
    value = first[column][0] if len(first) else 0.0
    try:
        return "unix_ms" if float(value) > _UNIX_MS else "seconds"
    except (TypeError, ValueError):
        return "iso"


def _first(key: str, columns: list[str]) -> str | None:
    return next((name for name in _USUAL[key] if name in columns), None)
