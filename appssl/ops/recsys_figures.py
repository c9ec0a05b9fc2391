"""Figures of prepared interaction logs."""

import io
from typing import Any

import numpy as np
import polars as pl


def figures(items: pl.DataFrame, events: pl.DataFrame) -> list[tuple[dict[str, str], bytes]]:
    """Popularity curve and events over time: an entry of `figures.json` and the PNG for each."""
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
        _save(figure, "time", "Events in time", "The log is divided at two moments, the same for everybody.")
    )
    return entries


def _save(figure: Any, name: str, title: str, caption: str) -> tuple[dict[str, str], bytes]:
    from matplotlib import pyplot

    content = io.BytesIO()
    figure.savefig(content, format="png", dpi=110, metadata={"Software": None})
    pyplot.close(figure)
    return {"file": f"figures/{name}.png", "title": title, "caption": caption}, content.getvalue()
