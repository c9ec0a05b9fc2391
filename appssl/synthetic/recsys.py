"""Synthetic interaction logs with a planted tail signal.

Items have a category, tags and a price; users like one category and a few tags. Popularity follows a power law, so most
tail items have few events, but what an item is says who will like it: content helps where counts do not. Some rows of
the log are broken on purpose. The tastes are in `truth/users.csv`.
"""

from pathlib import Path
from typing import Literal

import numpy as np
import polars as pl

_SIZES = {"tiny": (60, 80, 1_500), "small": (800, 1_000, 40_000), "large": (20_000, 50_000, 4_000_000)}
_CATEGORIES, _TAGS = 8, 30
_START, _SPAN = 1_600_000_000, 200 * 86_400  # seconds


def make(folder: Path, *, size: Literal["tiny", "small", "large"], seed: int) -> None:
    """Writes `interactions.csv`, `items.csv` and `truth/users.csv`."""
    num_users, num_items, num_events = _SIZES[size]
    rng = np.random.default_rng([seed, num_users])
    category = rng.integers(0, _CATEGORIES, num_items)
    tags = np.argsort(rng.random((num_items, _TAGS)), axis=1)[:, :3]
    price = np.round(np.exp(rng.normal(3, 1, num_items)), 2)
    popularity = 1 / np.arange(1, num_items + 1) ** 0.9
    rng.shuffle(popularity)
    liked = rng.integers(0, _CATEGORIES, num_users)
    liked_tags = np.argsort(rng.random((num_users, _TAGS)), axis=1)[:, :6]
    born = _START + np.sort(rng.random(num_items)) * 0.9 * _SPAN * (rng.random(num_items) < 0.3)
    activity = rng.dirichlet(np.full(num_users, 0.8))
    who = rng.choice(num_users, num_events, p=activity)
    when = np.sort(_START + (rng.random(num_events) * _SPAN).astype(np.int64))
    what = np.empty(num_events, dtype=np.int64)
    has_tag = np.zeros((num_items, _TAGS), dtype=np.float32)
    np.put_along_axis(has_tag, tags, 1, axis=1)
    for user in range(num_users):
        rows = np.flatnonzero(who == user)
        match = has_tag[:, liked_tags[user]].sum(1)
        weight = popularity * np.where(category == liked[user], 12.0, 1.0) * np.exp(1.2 * match)
        what[rows] = rng.choice(num_items, len(rows), p=weight / weight.sum())
    when = np.maximum(when, born[what].astype(np.int64) + 1)  # nothing happens before an item exists
    rating = np.clip(np.round(3 + rng.normal(0.5, 1, num_events)), 1, 5)
    folder.mkdir(parents=True, exist_ok=True)
    log = pl.DataFrame(
        {
            "user_id": [f"u{n:05d}" for n in who],
            "item_id": [f"i{n:05d}" for n in what],
            "timestamp": [str(t) for t in when],
            "rating": rating,
        }
    ).sort("timestamp", "user_id", "item_id")
    _break_rows(log, rng).write_csv(folder / "interactions.csv")
    items = pl.DataFrame(
        {
            "item_id": [f"i{n:05d}" for n in range(num_items)],
            "title": [f"item {n} of kind {c}" for n, c in enumerate(category)],
            "category": [f"c{n}" for n in category],
            "tags": ["|".join(f"t{t}" for t in sorted(row)) for row in tags],
            "price": price,
        }
    )
    items.write_csv(folder / "items.csv")
    (folder / "truth").mkdir(exist_ok=True)
    truth = {"user_id": [f"u{n:05d}" for n in range(num_users)], "category": [f"c{n}" for n in liked]}
    pl.DataFrame(truth).write_csv(folder / "truth" / "users.csv")


def _break_rows(log: pl.DataFrame, rng: np.random.Generator) -> pl.DataFrame:
    """One row each: no time, time in milliseconds, time 0, unknown item."""
    rows = rng.choice(len(log), 4, replace=False)
    times, items = log["timestamp"].to_list(), log["item_id"].to_list()
    times[rows[0]], times[rows[1]], times[rows[2]] = "yesterday", times[rows[1]] + "000", "0"
    items[rows[3]] = "i99999"
    return log.with_columns(timestamp=pl.Series(times), item_id=pl.Series(items))
