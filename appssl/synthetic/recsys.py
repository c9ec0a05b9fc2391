"""Synthetic interaction logs with a planted tail signal.

Items have a category, tags and a price; users like one category and a few tags. Popularity follows a power law, so most
tail items have few events, but what an item is says who will like it: content helps where counts do not. A third of the
items appear during the log. Some rows are broken on purpose. Tastes, births and broken rows are in `truth/`.
"""

from pathlib import Path
from typing import Literal

import numpy as np
import polars as pl

_SIZES = {"tiny": (60, 80, 1_500), "small": (800, 1_000, 40_000), "large": (20_000, 50_000, 4_000_000)}
_CATEGORIES, _TAGS = 8, 30
_TAGS_OF_ITEM, _TAGS_LIKED = 3, 6
_START, _SPAN = 1_600_000_000, 200 * 86_400  # seconds
_EXPONENT = 0.9  # of the power law of popularity
_CATEGORY_FACTOR, _TAG_FACTOR = 12.0, float(np.exp(1.2))  # how much more often what is liked is chosen
_ROWS_AT_ONCE = 250_000
_BROKEN = ("timestamp is no time", "timestamp in another unit", "timestamp is not after 1970", "unknown item")


def make(folder: Path, *, size: Literal["tiny", "small", "large"], seed: int) -> None:
    """Writes `interactions.csv` and `items.csv`, and what is true of them.

    `truth/users.csv` (user_id, category, tags), `truth/items.csv` (item_id, born: Unix seconds), `truth/broken.csv`
    (row of the log from 1, problem). Time and memory grow with events (about 100 bytes each).
    """
    num_users, num_items, num_events = _SIZES[size]
    rng = np.random.default_rng([seed, num_users])
    category = rng.integers(0, _CATEGORIES, num_items)
    tags = _draw_tags(rng, num_items, _TAGS_OF_ITEM)
    price = np.round(np.exp(rng.normal(3, 1, num_items)), 2)
    popularity = 1 / np.arange(1, num_items + 1) ** _EXPONENT
    rng.shuffle(popularity)
    liked, liked_tags = rng.integers(0, _CATEGORIES, num_users), _draw_tags(rng, num_users, _TAGS_LIKED)
    born = _START + (rng.random(num_items) * 0.9 * _SPAN * (rng.random(num_items) < 0.3)).astype(np.int64)

    events_of = rng.multinomial(num_events, rng.dirichlet(np.full(num_users, 0.8)))
    who = np.repeat(np.arange(num_users), events_of)
    likes = np.zeros((num_users, _TAGS), dtype=bool)
    np.put_along_axis(likes, liked_tags, True, axis=1)
    in_category = category == np.arange(_CATEGORIES)[:, None]
    what = _choices(rng, who, popularity * np.where(in_category, _CATEGORY_FACTOR, 1.0), liked, tags, likes)
    # Nothing happens before an item exists.
    when = born[what] + 1 + (rng.random(num_events) * (_START + _SPAN - born[what] - 1)).astype(np.int64)
    order = np.lexsort((what, who, when))
    broken = rng.choice(num_events, len(_BROKEN), replace=False)

    (folder / "truth").mkdir(parents=True, exist_ok=True)
    _write_log(folder / "interactions.csv", who[order], what[order], when[order], broken, rng)
    users, items = [f"u{n:05d}" for n in range(num_users)], [f"i{n:05d}" for n in range(num_items)]
    kinds = [f"c{n}" for n in category]
    titles = [f"item {n} of kind {c}" for n, c in enumerate(category)]
    columns = {"item_id": items, "title": titles, "category": kinds, "tags": _joined(tags), "price": price}
    pl.DataFrame(columns).write_csv(folder / "items.csv")
    tastes = {"user_id": users, "category": [f"c{n}" for n in liked], "tags": _joined(liked_tags)}
    pl.DataFrame(tastes).write_csv(folder / "truth" / "users.csv")
    pl.DataFrame({"item_id": items, "born": born}).write_csv(folder / "truth" / "items.csv")
    rows = pl.DataFrame({"row": broken + 1, "problem": _BROKEN}).sort("row")
    rows.write_csv(folder / "truth" / "broken.csv")


def _draw_tags(rng: np.random.Generator, count: int, each: int) -> np.ndarray:
    """Distinct tag numbers (count, each)."""
    return np.argsort(rng.random((count, _TAGS)), axis=1)[:, :each]


def _joined(tags: np.ndarray) -> list[str]:
    return ["|".join(f"t{t}" for t in sorted(row)) for row in tags]


def _choices(
    rng: np.random.Generator,
    who: np.ndarray,
    popularity: np.ndarray,
    liked: np.ndarray,
    tags: np.ndarray,
    likes: np.ndarray,
) -> np.ndarray:
    """Items (N,) int64 that are chosen by popularity times taste.

    Items are proposed by popularity and category and accepted by tags, so the time does not grow with users x items.

    Args:
        who: (N,) user of each event. popularity: (categories, items) for users who like that category, any scale.
        liked: (users,) category. tags: (items, 3) numbers. likes: (users, tags) bool.
    """
    summed = np.cumsum(popularity, axis=1)
    accept = _TAG_FACTOR ** np.arange(-_TAGS_OF_ITEM, 1.0)
    chosen = np.empty(len(who), dtype=np.int64)
    left = np.arange(len(who))
    while len(left):
        proposed = np.empty(len(left), dtype=np.int64)
        drawn = rng.random(len(left))
        for number, total in enumerate(summed):
            here = liked[who[left]] == number
            proposed[here] = np.searchsorted(total, drawn[here] * total[-1], side="right")
        matches = likes[who[left][:, None], tags[proposed]].sum(axis=1)
        taken = rng.random(len(left)) < accept[matches]
        chosen[left[taken]] = proposed[taken]
        left = left[~taken]
    return chosen


def _write_log(
    path: Path, who: np.ndarray, what: np.ndarray, when: np.ndarray, broken: np.ndarray, rng: np.random.Generator
) -> None:
    """Writes the log a block of rows at a time, with the `broken` rows, one for each kind of problem."""
    with path.open("wb") as file:
        for start in range(0, len(who), _ROWS_AT_ONCE):
            rows = slice(start, start + _ROWS_AT_ONCE)
            number = [pl.Series(values[rows]).cast(pl.String) for values in (who, what, when)]
            users, items = (prefix + number[k].str.zfill(5) for k, prefix in enumerate("ui"))
            times = number[2]
            for problem, row in zip(_BROKEN, (broken - start).tolist(), strict=True):
                if 0 <= row < len(times):
                    time, item = _spoilt(problem, times[row], items[row])
                    times, items = times.scatter(row, time), items.scatter(row, item)
            rating = np.clip(np.round(3 + rng.normal(0.5, 1, len(times))), 1, 5)
            block = pl.DataFrame({"user_id": users, "item_id": items, "timestamp": times, "rating": rating})
            block.write_csv(file, include_header=start == 0)


def _spoilt(problem: str, time: str, item: str) -> tuple[str, str]:
    spoilt = {
        "timestamp is no time": ("yesterday", item),
        "timestamp in another unit": (f"{time}000", item),
        "timestamp is not after 1970": ("0", item),
        "unknown item": (time, "i99999"),
    }
    return spoilt[problem]
