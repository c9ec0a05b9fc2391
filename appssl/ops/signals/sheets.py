"""Figures of prepared signals: example windows, how many a subject has of each activity, and what became of all."""

import io
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import polars as pl

from appssl.ops.sheet import Sheet
from appssl.ops.signals.window_accounts import KEPT

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_EXAMPLES, _CLASSES, _CHANNELS = 3, 8, 3  # at most: windows of a class, classes, channels of a window
_SESSIONS = 6  # at most, whose clocks are shown
_SUBJECTS, _NAME = 40, 30  # at most: subjects, letters of a name
_STYLE: Any = {"font.size": 7, "legend.frameon": False, "lines.linewidth": 0.7, "text.parse_math": False}


def figures(samples: pl.DataFrame, signal: np.ndarray, classes: Sequence[str], facts: dict[str, Any]) -> list[Sheet]:
    """
    Args:
        samples: windows with group, label and position. signal: (ticks, devices * channels) float32.
        facts: devices, channels, sampling_hz and window_samples of the prepared data.
    """
    if samples.is_empty():
        return []
    return [_examples(samples, signal, classes, facts), _counts(samples, classes)]


def clock_figures(clocks: pl.DataFrame) -> list[Sheet]:
    """How far the clocks of devices are apart over the first sessions.

    Args:
        clocks: columns of `ops.clock_correction.CLOCKS`.
    """
    own = clocks.filter(pl.col("offset_seconds").is_not_null())
    shown = own["session"].unique(maintain_order=True).to_list()[:_SESSIONS]
    if not shown:
        return []

    def draw(figure: "Figure") -> None:
        for axis, session in zip(figure.subplots(len(shown), 1, squeeze=False)[:, 0], shown, strict=True):
            for row in own.filter(pl.col("session") == session).iter_rows(named=True):
                hours = np.array(row["block_seconds"]) / 3600
                (points,) = axis.plot(hours, row["lag_seconds"], ".", label=f"{row['device']} - {row['reference']}")
                line = row["offset_seconds"] + row["drift_seconds_per_day"] / 24 * hours
                axis.plot(hours, line, color=points.get_color())
            axis.set_title(f"session {session}")
            axis.set_ylabel("seconds")
            axis.legend(loc="upper right")
        axis.set_xlabel("hours of the session")
        figure.subplots_adjust(0.1, 0.5 / height, 0.98, 1 - 0.3 / height, hspace=0.4)

    height = 1.5 * len(shown) + 0.6
    total = own["session"].n_unique()
    which = f"{len(shown)} of {total} sessions"
    caption = f"Clock of each device minus that of the reference: blocks and the line through them, {which}."
    return [Sheet("figures/clocks.png", "Clocks", caption, _png(7, height, draw))]


def account_figures(accounts: pl.DataFrame, notes: str) -> list[Sheet]:
    """Windows that were kept and left out, by subject, device and activity.

    Args:
        accounts: columns of `ops.window_accounts.ACCOUNTS`. notes: a sentence for the caption.
    """
    if accounts.is_empty():
        return []
    reasons = sorted(accounts["reason"].unique(), key=lambda name: (name != KEPT, name))
    parts = {by: accounts.filter(by=by) for by in ("subject", "device", "activity")}
    names = {by: part["name"].unique(maintain_order=True).to_list()[:_SUBJECTS] for by, part in parts.items()}
    height = 0.17 * sum(map(len, names.values())) + 1.6

    def draw(figure: "Figure") -> None:
        axes = figure.subplots(3, 1, sharex=True, height_ratios=[max(len(own), 1) for own in names.values()])
        for axis, (by, part) in zip(axes, parts.items(), strict=True):
            table = np.zeros((len(names[by]), len(reasons)))
            for _, name, reason, count in part.iter_rows():
                if name in names[by]:
                    table[names[by].index(name), reasons.index(reason)] = count
            shares = table / table.sum(axis=1, keepdims=True)
            begin = np.cumsum(shares, axis=1) - shares
            for k, reason in enumerate(reasons):
                color = "0.8" if reason == KEPT else f"C{k - 1}"
                axis.barh(range(len(shares)), shares[:, k], left=begin[:, k], height=0.75, color=color, label=reason)
            axis.set_yticks(range(len(shares)), [(name or "no label")[:_NAME] for name in names[by]])
            axis.invert_yaxis()
            axis.set_title(f"by {by}")
        handles = axes[0].get_legend_handles_labels()
        figure.legend(*handles, loc="lower right", ncols=len(reasons))
        figure.subplots_adjust(0.25, 0.55 / height, 0.98, 1 - 0.25 / height, hspace=0.9 / max(height - 0.8, 0.5))

    total = parts["subject"]["windows"].sum()
    caption = f"Shares of {total:,} windows that were kept or left out, by reason. {notes}".strip()
    return [Sheet("figures/accounts.png", "Windows kept and left out", caption, _png(7, height, draw))]


def _examples(samples: pl.DataFrame, signal: np.ndarray, classes: Sequence[str], facts: dict[str, Any]) -> Sheet:
    shown: list[str | None] = [name for name in classes if (samples["label"] == name).any()]
    shown = shown[:_CLASSES] or [None]
    channels, size = facts["channels"][:_CHANNELS], facts["window_samples"]
    seconds = np.arange(size) / facts["sampling_hz"]
    height = 1.1 * len(shown) + 0.6

    def draw(figure: "Figure") -> None:
        axes = figure.subplots(len(shown), _EXAMPLES, squeeze=False, sharex=True, sharey="row")
        for line, name in zip(axes, shown, strict=True):
            own = samples.filter(pl.col("label").eq_missing(name))
            chosen = np.linspace(0, len(own) - 1, _EXAMPLES).round().astype(int)  # far apart: other subjects
            for axis, row in zip(line, np.unique(chosen).tolist(), strict=False):
                start = own["position"][row]
                axis.plot(seconds, signal[start : start + size, : len(channels)])
                axis.set_title(f"{name or 'no label'}, subject {own['group'][row]}")
        axes[-1, 0].set_xlabel("seconds")
        figure.legend(axes[0, 0].get_lines(), channels, loc="lower right", ncols=len(channels))
        figure.subplots_adjust(0.05, 0.5 / height, 0.99, 1 - 0.25 / height, hspace=0.5, wspace=0.08)

    caption = f"First channels of {facts['devices'][0]} in windows of {len(shown)} activities, before normalization."
    content = _png(3 * _EXAMPLES, height, draw)
    return Sheet("figures/windows.png", "Example windows", caption, content)


def _counts(samples: pl.DataFrame, classes: Sequence[str]) -> Sheet:
    groups = sorted(samples["group"].unique())
    columns = [*classes, "(none)"]
    table = np.zeros((len(groups), len(columns)), np.int64)
    for group, label, count in samples.group_by("group", "label").len().iter_rows():
        table[groups.index(group), -1 if label is None else columns.index(label)] += count
    part = table[:_SUBJECTS]
    splits = dict(samples.select("group", "split").unique().iter_rows())

    def draw(figure: "Figure") -> None:
        axis = figure.subplots()
        image = axis.imshow(part, aspect="auto", cmap="viridis", vmin=0)
        axis.set_yticks(range(len(part)), [f"{group} ({splits[group]})" for group in groups[:_SUBJECTS]])
        axis.set_xticks(range(len(columns)), [name[:_NAME] for name in columns], rotation=60, ha="right")
        figure.colorbar(image, label="windows")
        figure.subplots_adjust(0.9 / width, below / height, 0.98, 1 - 0.1 / height)

    caption = f"Windows of each activity, {len(part)} of {len(groups)} subjects."
    below = 0.25 + 0.05 * min(_NAME, max(map(len, columns)))  # inches for the names
    width, height = max(4, 0.38 * len(columns) + 1.5), max(1.5, 0.24 * len(part)) + below + 0.1
    content = _png(width, height, draw)
    return Sheet("figures/counts.png", "Windows per subject and activity", caption, content)


def _png(width: float, height: float, draw: Callable[["Figure"], None]) -> bytes:
    from matplotlib import style
    from matplotlib.figure import Figure

    with style.context(_STYLE, after_reset=True):  # whatever the user's own matplotlibrc says
        figure = Figure(figsize=(width, height))
        draw(figure)
        stream = io.BytesIO()
        figure.savefig(stream, format="png", dpi=80, metadata={"Software": None})
    return stream.getvalue()
