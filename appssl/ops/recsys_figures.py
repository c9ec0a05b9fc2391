"""Figures of prepared interaction logs."""

import io
from typing import Any

import numpy as np
import polars as pl

from appssl.artifact import ArtifactWriter


def figures(out: ArtifactWriter, items: pl.DataFrame, events: pl.DataFrame, titled: bool) -> list[dict[str, str]]:
    """Writes the popularity curve and events over time; returns entries of `figures.json`."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    entries = []
    figure, axis = pyplot.subplots(figsize=(6, 3.2), layout="constrained")
    ordered = items.filter(pl.col("popularity") > 0).sort("popularity", "index", descending=[True, False])
    rank = np.arange(1, len(ordered) + 1)
    for name in ("head", "middle", "tail"):
        chosen = (ordered["slice"] == name).to_numpy()
        axis.loglog(
            rank[chosen],
            ordered["popularity"].to_numpy()[chosen],
            ".",
            markersize=3,
            label=f"{name}: {chosen.sum()} items",
        )
    axis.set_xlabel("rank of the item")
    axis.set_ylabel("training events")
    axis.legend(frameon=False)
    cold = int((items["popularity"] == 0).sum())
    entries.append(
        _save(
            out,
            figure,
            "head_tail",
            "Head and tail",
            f"Training events of every item; {cold} items are cold (first seen after the cut).",
        )
    )
    figure, axis = pyplot.subplots(figsize=(6, 2.4), layout="constrained")
    times = events["timestamp"].to_numpy() / (365.25 * 86400) + 1970
    bins = np.histogram_bin_edges(times, 60).tolist()
    for part in ("train", "val", "test"):
        axis.hist(times[(events["split"] == part).to_numpy()], bins, label=part)
    axis.set_xlabel("year")
    axis.set_ylabel("events")
    axis.legend(frameon=False)
    entries.append(
        _save(out, figure, "time", "Events in time", "The log is divided at two moments, the same for everybody.")
    )
    return entries


def _save(out: ArtifactWriter, figure: Any, name: str, title: str, caption: str) -> dict[str, str]:
    from matplotlib import pyplot

    content = io.BytesIO()
    figure.savefig(content, format="png", dpi=110, metadata={"Software": None})
    pyplot.close(figure)
    out.bytes(f"figures/{name}.png", content.getvalue())
    return {"file": f"figures/{name}.png", "title": title, "caption": caption}
