"""Figures of the report: plain arrays in, SVG bytes out, the same bytes for the same input."""

import io
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from appssl.ops.metrics import NUM_BINS, confidence_bins

if TYPE_CHECKING:
    from matplotlib.figure import Figure

INK, SOFT, ACCENT, SECOND = "#1c2430", "#5b6675", "#1f6f8b", "#c8553d"
# Paul Tol's "bright", "muted" and "light" colours, told apart with colour-blind eyes.
COLORS = (
    "#4477AA", "#EE6677", "#228833", "#CCBB44", "#66CCEE", "#AA3377", "#332288", "#DDCC77", "#117733", "#88CCEE",
    "#882255", "#44AA99", "#999933", "#AA4499", "#BBBBBB", "#CC6677", "#000000", "#77AADD", "#EE8866", "#EEDD88",
)  # fmt: skip
SLICES = ("head", "middle", "tail", "cold")
_STYLE: Any = {
    "font.size": 8.5, "axes.titlesize": 9, "axes.edgecolor": SOFT, "axes.labelcolor": INK, "axes.spines.top": False,
    "axes.spines.right": False, "text.color": INK, "xtick.color": SOFT, "ytick.color": SOFT, "axes.grid": True,
    "grid.color": "#e6eaef", "grid.linewidth": 0.6, "axes.axisbelow": True, "lines.linewidth": 1.4,
    "legend.frameon": False, "text.parse_math": False,
    "svg.hashsalt": "appssl", "svg.fonttype": "path", "figure.dpi": 100, "savefig.dpi": 200,
}  # fmt: skip


def _draw(width: float, height: float, draw: Any) -> bytes:
    """`draw(figure)` on a figure of width x height inches, as SVG without date."""
    from matplotlib import style
    from matplotlib.figure import Figure

    with style.context(_STYLE, after_reset=True):  # whatever the user's own matplotlibrc says
        figure = Figure(figsize=(width, height), layout="constrained")
        draw(figure)
        buffer = io.BytesIO()
        figure.savefig(buffer, format="svg", metadata={"Date": None})
    return buffer.getvalue()


def training_curves(curves: Mapping[str, Sequence[tuple[int, float]]]) -> bytes:
    """Loss and its terms (left), learning rate (right). curves: name -> (step, value); names end in loss..., lr."""
    losses = {name: points for name, points in curves.items() if _leaf(name).startswith("loss")}
    rates = {name: points for name, points in curves.items() if _leaf(name) == "lr"}

    def draw(figure: "Figure") -> None:
        left, right = figure.subplots(1, 2, width_ratios=[3, 2])
        for axes, found, title in ((left, losses, "loss"), (right, rates, "learning rate")):
            for color, (name, points) in zip(_cycle(len(found)), found.items(), strict=True):
                steps, values = zip(*points, strict=True)
                axes.plot(steps, values, color=color, label=_leaf(name), marker="o" if len(steps) == 1 else None)
            axes.set_title(title, loc="left")
            axes.set_xlabel("optimizer step")
        right.set_ylim(bottom=0)
        if len(losses) > 1:
            left.legend()

    return _draw(7.6, 2.4, draw)


def _leaf(name: str) -> str:
    return name.rsplit("/", 1)[-1]


def _cycle(num: int) -> list[str]:
    return [COLORS[i % len(COLORS)] for i in range(num)]


def embedding_map(x: np.ndarray, y: np.ndarray, labels: Sequence[str], classes: Sequence[str]) -> bytes:
    """Points (N,) coloured by class; a legend for at most as many classes as there are colours."""
    named = np.asarray(labels, dtype=object)

    def draw(figure: "Figure") -> None:
        axes = figure.subplots()
        for color, name in zip(_cycle(len(classes)), classes, strict=True):
            chosen = named == name
            axes.scatter(x[chosen], y[chosen], s=7, color=color, alpha=0.7, linewidths=0, label=name, rasterized=True)
        axes.set(xticks=[], yticks=[])
        axes.spines[["left", "bottom"]].set_visible(False)
        if len(classes) <= len(COLORS):
            figure.legend(
                *axes.get_legend_handles_labels(), loc="outside right upper", markerscale=2, handletextpad=0.2
            )

    return _draw(5.6, 3.6, draw)


def confusion(matrix: np.ndarray, classes: Sequence[str]) -> bytes:
    """Counts (K, K), rows true, columns predicted; shaded by the share of the row."""
    num = len(classes)
    share = matrix / np.maximum(matrix.sum(1, keepdims=True), 1)

    def draw(figure: "Figure") -> None:
        axes = figure.subplots()
        axes.imshow(share, cmap="Blues", vmin=0, vmax=1, interpolation="nearest")
        axes.grid(False)
        axes.set(xlabel="predicted", ylabel="true")
        if num <= 40:
            axes.set_xticks(range(num), [_short(c) for c in classes], rotation=90)
            axes.set_yticks(range(num), [_short(c) for c in classes])
        if num <= 12:
            for i, j in np.ndindex(num, num):
                color = "white" if share[i, j] > 0.55 else INK
                axes.text(j, i, f"{int(matrix[i, j])}", ha="center", va="center", color=color, fontsize=7.5)

    side = min(max(3.6, 1.4 + 0.22 * num), 5.8)
    return _draw(side, side, draw)


def _short(name: str) -> str:
    return name if len(name) <= 18 else f"{name[:17]}…"


def reliability(confidence: np.ndarray, correct: np.ndarray) -> bytes:
    """Accuracy of samples (N,) in equal-width bins of confidence, with the number of samples below."""
    bins = confidence_bins(confidence)
    size = np.bincount(bins, minlength=NUM_BINS)
    accuracy = np.bincount(bins, correct, minlength=NUM_BINS) / np.maximum(size, 1)
    centre = (np.arange(NUM_BINS) + 0.5) / NUM_BINS

    def draw(figure: "Figure") -> None:
        top, bottom = figure.subplots(2, 1, sharex=True, height_ratios=[3, 1])
        width = 0.9 / NUM_BINS
        top.bar(centre[size > 0], accuracy[size > 0], width, color=ACCENT, alpha=0.8)
        top.plot([0, 1], [0, 1], color=SOFT, linewidth=1, linestyle="--")
        top.set(xlim=(0, 1), ylim=(0, 1), ylabel="accuracy")
        bottom.bar(centre, size, width, color=SOFT, alpha=0.6)
        bottom.set(xlabel="confidence", ylabel="samples")

    return _draw(3.6, 3.6, draw)


def slice_bars(found: Mapping[str, Mapping[str, Mapping[str, Any]]]) -> bytes:
    """One panel per metric, a bar per slice with its interval. found: metric -> slice -> {value, low, high}.

    Slices are `all`, those of SLICES, and others by name; of decile_01 the number is written.
    """
    columns = min(3, len(found))
    lines = -(-len(found) // columns)

    def draw(figure: "Figure") -> None:
        panels = figure.subplots(lines, columns, squeeze=False).ravel()
        for axes in panels[len(found) :]:
            axes.set_visible(False)
        for axes, (metric, slices) in zip(panels, found.items(), strict=False):
            usual = [name for name in ("all", *SLICES) if name in slices]
            names = usual + sorted(set(slices) - set(usual))
            for i, name in enumerate(names):
                values = slices[name]
                axes.bar(i, values["value"], 0.6, color=SOFT if name == "all" else ACCENT, alpha=0.8)
                if values.get("low") is not None:
                    axes.vlines(i, values["low"], values["high"], color=INK, linewidth=1.2)
            axes.set_xticks(range(len(names)), [name.removeprefix("decile_").lstrip("0") for name in names])
            axes.set_title(metric, loc="left")
            axes.grid(axis="x", visible=False)

    return _draw(2.6 * columns, 2.2 * lines, draw)


def compact(content: bytes, *, max_bytes: int = 600_000, max_side: int = 1800) -> tuple[bytes, str]:
    """A PNG as it is if it is small, otherwise shrunk and as JPEG; returns content and kind."""
    if len(content) <= max_bytes:
        return content, "png"
    from PIL import Image

    with Image.open(io.BytesIO(content)) as image:
        image.thumbnail((max_side, max_side))
        buffer = io.BytesIO()
        image.convert("RGB").save(buffer, "JPEG", quality=85)
    return buffer.getvalue(), "jpeg"
