"""Signals of sessions that were prepared in shards, joined into one array, with the statistics of its channels."""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import polars as pl

from appssl.errors import DataError
from appssl.ops.signals.resample import NON_WEAR, SATURATED
from appssl.ops.signals.sample_store import slices
from appssl.ops.signals.sessions import Clock, on_one_clock

# Columns of the table of sessions; the sums are over samples that count, one number for each channel of each device.
SESSIONS: dict[str, Any] = {
    "session": pl.String, "subject": pl.String, "start_seconds": pl.Float64, "num_samples": pl.Int64,
    "windows_beyond_limit": pl.Int64, "count": pl.List(pl.Int64), "total": pl.List(pl.Float64),
    "squares": pl.List(pl.Float64),
}  # fmt: skip
_COMMON = ("devices", "channels", "order", "splits", "not_chosen", "num_shards")
_COPIED = 1 << 22  # bytes at once


class Sums:
    """Count, sum and sum of squares of each channel of a session, without samples that are to be left out."""

    def __init__(self, num_devices: int, num_channels: int) -> None:
        self._found = np.zeros((3, num_devices, num_channels))

    def add(self, values: np.ndarray, codes: np.ndarray) -> None:
        """Takes the next samples (m, devices, channels) and their codes (m, devices) uint8 of `ops.resample`."""
        usable = np.isfinite(values)
        if np.isin(codes, (NON_WEAR, SATURATED)).any():
            usable &= ~np.isin(codes, (NON_WEAR, SATURATED))[:, :, None]
        exact = values.astype(np.float64)
        if not usable.all():
            exact[~usable] = 0
        self._found += [usable.sum(0), exact.sum(0), np.einsum("mdc,mdc->dc", exact, exact)]

    def row(self) -> dict[str, list[Any]]:
        """Columns `count`, `total` and `squares` of SESSIONS."""
        count, total, squares = self._found.reshape(3, -1).tolist()
        return {"count": [int(number) for number in count], "total": total, "squares": squares}


def write_session(
    clock: Clock, num_channels: int, file: BinaryIO, *, max_gap: float, seen: Callable[[np.ndarray], None] | None
) -> tuple[np.ndarray, Sums]:
    """Writes the samples (L, devices, channels) float32 of a session on its clock, piece by piece.

    Args:
        seen: gets every piece (m, devices, channels) too, in order.
    Returns:
        Codes (L, devices) uint8 of `ops.resample`, and what is summed over the samples.
    """
    codes = np.empty((clock.length, len(clock.parts)), np.uint8)
    sums = Sums(len(clock.parts), num_channels)
    for piece in on_one_clock(clock, list(range(num_channels)), max_gap=max_gap):
        file.write(piece.values.data)
        codes[piece.first : piece.first + len(piece.codes)] = piece.codes
        sums.add(piece.values, piece.codes)
        if seen is not None:
            seen(piece.values)
    return codes, sums


def refuse_mismatch(about: Sequence[Mapping[str, Any]]) -> None:
    """Raises DataError if the shards, as they say of themselves, are not all parts of one preparation."""
    if any(a[key] != about[0][key] for a in about for key in _COMMON):
        raise DataError("the input changed while its shards were prepared. Prepare all shards again.")
    if sorted(a["shard"] for a in about) != list(range(about[0]["num_shards"])):
        raise DataError(f"shards {[a['shard'] for a in about]} given, {about[0]['num_shards']} are needed, each once.")


def placed(tables: Sequence[pl.DataFrame]) -> pl.DataFrame:
    """Sessions of all shards, sorted, with the shard (`source`) and the first row they have there."""
    found = []
    for n, table in enumerate(tables):
        begin = table["num_samples"].cum_sum() - table["num_samples"]
        found.append(table.with_columns(source=pl.lit(n, pl.Int64), row=begin.cast(pl.Int64)))
    return pl.concat(found).sort("session")


def write_signal(stored: pl.DataFrame, files: Sequence[Path], columns: int, out: BinaryIO) -> None:
    """Writes the sessions, in the order of the table, as one array (samples, columns) float32 in NumPy's format."""
    header = {"descr": "<f4", "fortran_order": False, "shape": (int(stored["num_samples"].sum()), columns)}
    np.lib.format.write_array_header_1_0(out, header)
    for source, row, length in stored.select("source", "row", "num_samples").iter_rows():
        with files[source].open("rb") as file:
            file.seek(row * columns * 4)
            for a, b in slices(length * columns * 4, _COPIED):
                out.write(file.read(b - a))


def statistics(stored: pl.DataFrame, width: tuple[int, int]) -> tuple[np.ndarray, np.ndarray]:
    """Mean and standard deviation (devices, channels) float64 over sessions; 0 without a sample."""
    count, total, squares = (
        np.array(stored[name].to_list(), np.float64).reshape(-1, *width).sum(0)
        for name in ("count", "total", "squares")
    )
    known = np.maximum(count, 1)
    mean = total / known
    return mean, np.sqrt(np.maximum(squares / known - mean**2, 0))


def samples_table(
    kept: pl.DataFrame, stored: pl.DataFrame, splits: Mapping[str, str], seconds: float, *, with_devices: bool
) -> pl.DataFrame:
    """`samples.parquet` of windows that are kept.

    Args:
        seconds: length of a window. with_devices: whether windows may lack devices, and the column `devices` says which
            they have.
    """
    table = kept.join(stored.select("session", "position"), on="session", how="left", maintain_order="left")
    return table.with_row_index("index").select(
        pl.col("index").cast(pl.Int64),
        "id",
        pl.col("subject").alias("group"),
        pl.col("subject").replace_strict(splits, return_dtype=pl.String).alias("split"),
        "label",
        pl.lit(None, pl.String).alias("true_label"),
        "session",
        "start_seconds",
        (pl.col("start_seconds") + seconds).alias("end_seconds"),
        (pl.col("position") + pl.col("offset")).alias("position"),
        "label_share",
        *(["devices"] if with_devices else []),
    )
