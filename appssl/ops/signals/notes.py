"""What the quality of all recordings says together: units that differ between subjects, and how many have notes."""

import numpy as np
import polars as pl

from appssl.ops.signals.quality import LARGEST_RAD

_OTHER_UNIT = 20.0  # ratio of angular velocities of two people from which their units differ; degrees are 57 times more
_SHOWN = 5  # names in a message


def units_differ(recordings: pl.DataFrame) -> list[str]:
    """Warnings for the report where subjects have one kind of device in several units.

    Args:
        recordings: columns subject, device, outcome and those of QUALITY.
    """
    own = recordings.filter(pl.col("outcome") == "kept").sort("device", "subject")
    found = []
    for device in own["device"].unique(maintain_order=True):
        part = own.filter(device=device)
        found += [_acceleration_differs(device, part), _rotation_differs(device, part)]
    return [text for text in found if text]


def _acceleration_differs(device: str, part: pl.DataFrame) -> str:
    known = part.filter(pl.col("acc_unit").is_not_null())
    if known["acc_unit"].n_unique() < 2:
        return ""
    groups = []
    for unit in known["acc_unit"].unique(maintain_order=True):
        rows = known.filter(acc_unit=unit)
        groups.append(f"{_median(rows['gravity']):.4g} ({unit}) in {_named_subjects(rows['subject'])}")
    return (
        f"Units of the acceleration differ between recordings of device {device}: at rest its length is "
        f"{'; '.join(groups)}. A model would learn the unit in place of the motion. Bring all recordings to one unit "
        "and prepare again; recordings.parquet has gravity and acc_unit of each."
    )


def _rotation_differs(device: str, part: pl.DataFrame) -> str:
    known = part.filter(pl.col("gyro_p99") > 0).group_by("subject", maintain_order=True).agg(pl.col("gyro_p99").max())
    fast = known.filter(pl.col("gyro_p99") > LARGEST_RAD)
    slow = known.filter(pl.col("gyro_p99") * _OTHER_UNIT < _median(fast["gyro_p99"]))
    if fast.is_empty() or slow.is_empty():
        return ""
    return (
        f"Units of the angular velocity seem to differ between subjects for device {device}: its 99th percentile is "
        f"{_median(fast['gyro_p99']):.4g} in {_named_subjects(fast['subject'])}, as in degrees/s, and "
        f"{_median(slow['gyro_p99']):.3g} in {_named_subjects(slow['subject'])}, as in rad/s. Bring all recordings to "
        "one unit and prepare again, unless those subjects hardly moved."
    )


def _median(numbers: pl.Series) -> float:
    """0 of none."""
    return float(np.median(numbers.to_numpy())) if len(numbers) else 0.0


def _named_subjects(subjects: pl.Series) -> str:
    names = subjects.unique(maintain_order=True).to_list()
    more = f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else ""
    return f"{len(names)} subject(s): {', '.join(names[:_SHOWN])}{more}"


def noted(recordings: pl.DataFrame) -> str:
    """How many recordings have which notes, as a sentence; empty without any."""
    own = recordings.filter(pl.col("outcome") == "kept")
    counts = {
        text: own.filter(pl.col(column).is_not_null() & (pl.col(column) != "")).height
        for column, text in (("non_wear", "not worn"), ("saturated", "saturated"), ("constant", "constant channels"))
    }
    counts["unit of acceleration unclear"] = own.filter(pl.col("acc_unit") == "unclear").height
    named = [f"{count} {text}" for text, count in counts.items() if count]
    return f"Recordings with notes, of {len(own)}: {', '.join(named)}; see recordings.parquet." if named else ""
