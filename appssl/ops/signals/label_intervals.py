"""Predictions of overlapping windows as intervals of time with one class each."""

from collections.abc import Sequence
from itertools import pairwise

import numpy as np
import polars as pl

_ROUNDING = 1e-6  # seconds, by which the end of a window and the start of the next may differ


def label_intervals(windows: pl.DataFrame, probabilities: np.ndarray, classes: Sequence[str]) -> pl.DataFrame:
    """Every moment gets the class with the largest mean probability over the windows that cover it.

    Args:
        windows: columns group, session, start_seconds and end_seconds, a row per window. probabilities: (N, K) of them.
    Returns:
        group, session, start_seconds, end_seconds, activity, confidence (mean probability of the activity over the
        interval's time), in order of session and time. Between intervals no window says anything.
    """
    rows = []
    ordered = windows.select("group", "session", "start_seconds", "end_seconds").with_row_index("row")
    for (session,), part in sorted(ordered.group_by("session"), key=lambda item: str(item[0][0])):
        own = probabilities[part["row"].to_numpy()]
        starts, ends = (np.round(part[name].to_numpy() / _ROUNDING) for name in ("start_seconds", "end_seconds"))
        edges, mean = _mean_over_time(starts, ends, own)
        for first, last, number in _runs(mean):
            lengths = np.diff(edges[first : last + 1])
            confidence = float((mean[first:last, number] * lengths).sum() / lengths.sum())
            rows.append(
                (part["group"][0], session, edges[first] * _ROUNDING, edges[last] * _ROUNDING, classes[number],
                 confidence)
            )  # fmt: skip
    schema = {"group": pl.String, "session": pl.String, "start_seconds": pl.Float64, "end_seconds": pl.Float64}
    return pl.DataFrame(rows, schema={**schema, "activity": pl.String, "confidence": pl.Float64}, orient="row")


def _mean_over_time(starts: np.ndarray, ends: np.ndarray, probabilities: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Edges (E + 1,) of the times between starts and ends, and mean probabilities (E, K) there, NaN without windows."""
    edges = np.unique(np.concatenate([starts, ends]))
    change = np.zeros((len(edges), probabilities.shape[1] + 1))
    weighted = np.hstack([probabilities, np.ones((len(probabilities), 1))])  # the last column counts windows
    np.add.at(change, np.searchsorted(edges, starts), weighted)
    np.subtract.at(change, np.searchsorted(edges, ends), weighted)
    total = change.cumsum(axis=0)[:-1]
    count = np.round(total[:, -1:])
    return edges, np.where(count > 0, total[:, :-1] / np.maximum(count, 1), np.nan)


def _runs(mean: np.ndarray) -> list[tuple[int, int, int]]:
    """(first, last + 1, class) of every run of times (E, K) with one class; times without windows belong to none."""
    covered = ~np.isnan(mean[:, 0])
    best = np.where(covered, np.where(covered[:, None], mean, 0).argmax(axis=1), -1)
    cuts = np.flatnonzero(np.diff(best)) + 1
    bounds = [0, *cuts.tolist(), len(best)]
    return [(a, b, int(best[a])) for a, b in pairwise(bounds) if best[a] >= 0]
