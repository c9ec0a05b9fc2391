"""The table of the windows of a session: where each begins, its label, and why it is left out."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import polars as pl

from appssl.ops.signals.resample import OK
from appssl.ops.signals.windows import device_bits, left_out, majority

WINDOWS: dict[str, Any] = {
    "id": pl.String, "session": pl.String, "subject": pl.String, "offset": pl.Int64, "start_seconds": pl.Float64,
    "label": pl.String, "label_share": pl.Float64, "devices": pl.Int64, "reason": pl.String, "detail": pl.String,
}  # fmt: skip


def window_table(
    session: str,
    subject: str,
    seconds: np.ndarray,
    *,
    codes: np.ndarray,
    first: np.ndarray,
    worst: np.ndarray,
    size: int,
    labels: np.ndarray,
    names: Sequence[str],
    purity: float,
    devices: Sequence[str],
    min_devices: int | None,
) -> pl.DataFrame:
    """Columns of WINDOWS, a row per window; `reason` is empty where it is kept.

    Args:
        seconds: (W,) float64 when each begins. codes: (L, devices) uint8 of `ops.resample`. first: (W,) first ticks.
        worst: (W, devices) of `ops.windows.gravest`. labels, names, purity: as of `ops.windows.majority`.
        min_devices: devices that a window needs; null: all, and the column `devices` is null.
    """
    label, share = majority(labels, first, size, names, purity)
    why = left_out(codes, first, worst, size, min_devices=len(devices) if min_devices is None else min_devices)
    details = [
        ", ".join(f"{devices[d]} {count} of {size} samples" for d, count in found[1].items()) if found else ""
        for found in why
    ]
    columns = {
        "id": [f"{session}/{k:06d}" for k in range(len(first))],
        "session": [session] * len(first),
        "subject": [subject] * len(first),
        "offset": first,
        "start_seconds": seconds,
        "label": label,
        "label_share": share,
        "devices": [None] * len(first) if min_devices is None else device_bits(worst == OK),
        "reason": [found[0] if found else "" for found in why],
        "detail": details,
    }
    return pl.DataFrame(columns, schema=WINDOWS)
