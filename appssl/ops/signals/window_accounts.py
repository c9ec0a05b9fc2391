"""How many windows each subject, device and activity has, and why others were left out, in tables that sum.

For a subject or an activity every window has one row: kept, or its reason. For a device it is what became of the
device's part: `kept`, its own reason, or `another_device` where it could be used and the window was left out for
another's sake. Each device has every window once.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
import polars as pl

from appssl.ops.signals.resample import OK
from appssl.ops.signals.windows import REASONS

ACCOUNTS: dict[str, Any] = {"by": pl.String, "name": pl.String, "reason": pl.String, "windows": pl.Int64}
KEPT, ANOTHER = "kept", "another_device"


def of_devices(worst: np.ndarray, is_kept: np.ndarray, devices: Sequence[str]) -> pl.DataFrame:
    """Account of every device, columns of ACCOUNTS.

    Args:
        worst: (W, devices) uint8 of `ops.windows.gravest`. is_kept: (W,) bool.
    """
    names = {OK: KEPT, **REASONS}
    rows = []
    for d, device in enumerate(devices):
        other = np.count_nonzero((worst[:, d] == OK) & ~is_kept)
        counts = np.bincount(worst[:, d], minlength=max(names) + 1)
        counts[OK] -= other
        found = {names[code]: int(n) for code, n in enumerate(counts)} | {ANOTHER: int(other)}
        rows += [{"by": "device", "name": device, "reason": name, "windows": n} for name, n in found.items() if n]
    return pl.DataFrame(rows, schema=ACCOUNTS)


def accounts(windows: pl.DataFrame, devices: Sequence[pl.DataFrame]) -> pl.DataFrame:
    """Account of every subject, device and activity (null: windows without label), columns of ACCOUNTS.

    Args:
        windows: columns subject, label and reason, "" if kept. devices: what `of_devices` gave for parts of them.
    """
    reason = pl.when(pl.col("reason") == "").then(pl.lit(KEPT)).otherwise("reason").alias("reason")
    parts = [pl.DataFrame(schema=ACCOUNTS), *devices]
    for by, column in (("subject", "subject"), ("activity", "label")):
        named = windows.select(
            pl.lit(by).alias("by"), pl.col(column).alias("name"), reason, windows=pl.lit(1, pl.Int64)
        )
        parts.append(named)
    together = pl.concat(parts).group_by("by", "name", "reason").agg(pl.col("windows").sum())
    return together.sort("by", "name", "reason")
