"""Figures of prepared interaction logs."""

import io
import itertools
from typing import Any

import numpy as np
import polars as pl

from appssl.ops.interactions.store import PARTS, Stored

_BINS = 60


def figures(items: pl.DataFrame, stored: Stored, leaks: dict[str, Any]) -> list[tuple[dict[str, str], bytes]]:
    """Popularity curve, events over time and who is known in the test: an entry of `figures.json` and the PNG for each.

    Args:
        leaks: of `ops.interaction_leakage`.
    """
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
    edges, counts = events_in_time(stored)
    for part, found in zip(PARTS, counts, strict=True):
        axis.hist(edges[:-1], edges.tolist(), weights=found, label=part)
    axis.set_xlabel("year")
    axis.set_ylabel("events")
    axis.legend(frameon=False)
    told = "The log is divided at two moments, the same for everybody."
    if stored.cuts is None:
        told = "The last event of each user is the test, so training has events later than those of the test."
    entries.append(_save(figure, "time", "Events in time", told))
    entries.append(_known_in_test(leaks))
    return entries


def _known_in_test(leaks: dict[str, Any]) -> tuple[dict[str, str], bytes]:
    """Test events of known and new users and items, and what else could leak, in words."""
    from matplotlib import pyplot

    events = leaks["test_events"]
    both, neither = events["of_known_users_and_items"], events["of_new_users_and_items"]
    rows = {
        "known user, known item": both,
        "known user, new item": events["of_known_users"] - both,
        "new user, known item": events["of_known_items"] - both,
        "new user, new item": neither,
    }
    figure, axis = pyplot.subplots(figsize=(6, 1.9), layout="constrained")
    axis.barh(list(rows)[::-1], [count / events["all"] for count in list(rows.values())[::-1]])
    axis.set_xlim(0, 1)
    axis.set_xlabel("share of the test events")
    caption = (
        f"{events['of_known_users'] / events['all']:.1%} of {events['all']:,} test events are of users with a training "
        f"event. {leaks['users']['cold']:,} users and {leaks['items']['cold']:,} items are cold: first seen after "
        f"training. {leaks['train_events_after_the_first_test_event']:,} training events are later than the first of "
        f"the test. {leaks['users_with_the_items_of_another']:,} users have exactly the items of another user, "
        f"{leaks['test_users_with_the_items_of_another']:,} of them are tested; the largest such group has "
        f"{leaks['largest_group_of_users_with_the_same_items']:,}. The busiest user has "
        f"{leaks['busiest_user_events']:,} events. Features of the item table may be from later than training: it has "
        "no times."
    )
    return _save(figure, "leakage", "Known and new in the test", caption)


def events_in_time(stored: Stored) -> tuple[np.ndarray, np.ndarray]:
    """Edges of bins (years), and events (3, bins) of each part in them; the log is read block by block."""
    times = np.load(stored.columns["timestamp"], mmap_mode="r")
    ends = np.cumsum([0, *stored.counts])
    edge_times = [times[[a, b - 1]] for a, b in itertools.pairwise(ends) if b > a]
    edges = np.histogram_bin_edges(_years(np.concatenate(edge_times)), _BINS)
    counts = np.zeros((len(PARTS), _BINS))
    for part in range(len(PARTS)):
        for (times,) in stored.blocks(part, "timestamp"):
            counts[part] += np.histogram(_years(times), edges)[0]
    return edges, counts


def _years(seconds: np.ndarray) -> np.ndarray:
    return seconds / (365.25 * 86400) + 1970


def _save(figure: Any, name: str, title: str, caption: str) -> tuple[dict[str, str], bytes]:
    from matplotlib import pyplot

    content = io.BytesIO()
    figure.savefig(content, format="png", dpi=110, metadata={"Software": None})
    pyplot.close(figure)
    return {"file": f"figures/{name}.png", "title": title, "caption": caption}, content.getvalue()
