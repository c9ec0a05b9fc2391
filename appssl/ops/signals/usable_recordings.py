"""What can be used of a recording, and its row in the table of recordings."""

from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
import polars as pl

from appssl.ops.signals.quality import QUALITY, Wear, quality
from appssl.ops.signals.recording_checks import Checked, check_rate, checked
from appssl.ops.signals.recording_labels import Labels
from appssl.ops.signals.recordings import Recording, RowNumbers, Samples, shown_rows
from appssl.ops.signals.sample_store import Scratch, View
from appssl.ops.signals.sessions import SampleLabels, Usable

RECORDINGS: dict[str, Any] = {
    "id": pl.String, "subject": pl.String, "device": pl.String, "where": pl.String, "sha256": pl.String,
    "sessions": pl.List(pl.String), "start_seconds": pl.Float64,
    "end_seconds": pl.Float64, "recorded_hz": pl.Float64, "num_samples": pl.Int64,
    "repeated": pl.String, "nan": pl.String, "pauses": pl.String, **QUALITY, "outcome": pl.String, "reason": pl.String,
    "detail": pl.String,
}  # fmt: skip


def usable_parts(
    recording: Recording,
    chunks: Iterable[Samples],
    labels: Labels,
    scratch: Scratch,
    *,
    channels: Sequence[str],
    hz: float,
    max_gap: float,
    wear: Wear,
) -> tuple[list[Usable], dict[str, Any]]:
    """The parts of a recording between its pauses, and columns of RECORDINGS that say what it is like.

    Args:
        labels: takes those of its samples. scratch: takes the samples, and holds them as long as the parts are used.
        channels: of the samples. hz, max_gap: of the clock that it is for.
    Raises:
        BadRecording: if it cannot be used.
    """
    found = checked(chunks, labels, scratch)
    check_rate(found.hz, stated=recording.hz, hz=hz, max_gap=max_gap)
    seen = quality(found.clean.seconds, found.clean.values, channels, found.hz, wear)
    parts = [_part(recording, found, seen.flags, begin, end) for begin, end in found.parts()]
    return parts, {**_about(found), **seen.row}


def _part(recording: Recording, found: Checked, flags: np.ndarray, begin: int, end: int) -> Usable:
    labels = None if found.labels is None else SampleLabels(View(found.labels, begin, end), found.names)
    own = flags[(flags[:, 0] < end) & (flags[:, 1] > begin)] - [begin, begin, 0]
    is_whole = not len(found.not_finite)
    return Usable(recording, found.clean.part(begin, end), labels, found.hz, own if len(own) else None, is_whole)


def _about(found: Checked) -> dict[str, Any]:
    paused = sum(seconds for _, seconds in found.pauses)
    return {
        "start_seconds": float(found.clean.seconds[0]),
        "end_seconds": float(found.clean.seconds[-1]),
        "recorded_hz": found.hz,
        "num_samples": found.num_samples,
        "repeated": _counted(found.repeated),
        "nan": _counted(found.not_finite),
        "pauses": f"{len(found.pauses)}, together {paused:.0f} s" if found.pauses else "",
        "sessions": [],
    }


def _counted(rows: RowNumbers) -> str:
    return f"{len(rows)}: {shown_rows(rows)}" if len(rows) else ""
