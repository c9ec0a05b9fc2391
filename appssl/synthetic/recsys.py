"""Synthetic interaction logs with a planted tail signal.

Items have a category, tags and a price; users like one category and a few tags. Popularity follows a power law, so most
tail items have few events, but what an item is says who will like it: content helps where counts do not. A third of the
items appear during the log. Some rows are broken on purpose. Tastes, births and broken rows are in `truth/`.
"""

import itertools
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import polars as pl

_SIZES = {"tiny": (60, 80, 1_500), "small": (800, 1_000, 40_000), "large": (20_000, 50_000, 4_000_000)}
_CATEGORIES, _TAGS = 8, 30
_TAGS_OF_ITEM, _TAGS_LIKED = 3, 6
_START, _SPAN = 1_600_000_000, 200 * 86_400  # seconds
_ACTIVITY = 0.8  # shape of the gamma distribution of users' activity
_EVENTS_OF_FILE = 2_000_000
_EXPONENT = 0.9  # of the power law of popularity
_CATEGORY_FACTOR, _TAG_FACTOR = 12.0, float(np.exp(1.2))  # how much more often what is liked is chosen
_ROWS_AT_ONCE = 250_000
_BROKEN = ("timestamp is no time", "timestamp in another unit", "timestamp is not after 1970", "unknown item")


@dataclass(frozen=True)
class World:
    """Items and users: category (I,), tags (I, 3), price and popularity (I,), the seconds at which items are born (I,);
    what users like: liked (U,) category, liked_tags (U, 6).
    """

    category: np.ndarray
    tags: np.ndarray
    price: np.ndarray
    popularity: np.ndarray
    liked: np.ndarray
    liked_tags: np.ndarray
    born: np.ndarray

    @classmethod
    def drawn(cls, rng: np.random.Generator, num_users: int, num_items: int) -> "World":
        category = rng.integers(0, _CATEGORIES, num_items)
        tags = _draw_tags(rng, num_items, _TAGS_OF_ITEM)
        price = np.round(np.exp(rng.normal(3, 1, num_items)), 2)
        popularity = 1 / np.arange(1, num_items + 1) ** _EXPONENT
        rng.shuffle(popularity)
        liked, liked_tags = rng.integers(0, _CATEGORIES, num_users), _draw_tags(rng, num_users, _TAGS_LIKED)
        born = _START + (rng.random(num_items) * 0.9 * _SPAN * (rng.random(num_items) < 0.3)).astype(np.int64)
        return cls(category, tags, price, popularity, liked, liked_tags, born)

    def liking(self) -> np.ndarray:
        """How often users who like a category choose an item, (categories, I), any scale."""
        in_category = self.category == np.arange(_CATEGORIES)[:, None]
        return self.popularity * np.where(in_category, _CATEGORY_FACTOR, 1.0)

    def choices(self, rng: np.random.Generator, who: np.ndarray, liking: np.ndarray) -> np.ndarray:
        """Items (N,) int64 that users (N,) choose."""
        likes = np.zeros((len(self.liked), _TAGS), dtype=bool)
        np.put_along_axis(likes, self.liked_tags, True, axis=1)
        return _choices(rng, who, liking, self.liked, self.tags, likes)

    def write(self, folder: Path) -> None:
        """Writes `items.csv`, `truth/users.csv` and `truth/items.csv`."""
        (folder / "truth").mkdir(parents=True, exist_ok=True)
        users = [f"u{n:05d}" for n in range(len(self.liked))]
        items = [f"i{n:05d}" for n in range(len(self.category))]
        kinds = [f"c{n}" for n in self.category]
        titles = [f"item {n} of kind {c}" for n, c in enumerate(self.category)]
        columns = {"item_id": items, "title": titles, "category": kinds, "tags": _joined(self.tags)}
        pl.DataFrame({**columns, "price": self.price}).write_csv(folder / "items.csv")
        tastes = {"user_id": users, "category": [f"c{n}" for n in self.liked], "tags": _joined(self.liked_tags)}
        pl.DataFrame(tastes).write_csv(folder / "truth" / "users.csv")
        pl.DataFrame({"item_id": items, "born": self.born}).write_csv(folder / "truth" / "items.csv")


def make(folder: Path, *, size: str, seed: int) -> None:
    """Writes `interactions.csv` and `items.csv`, and what is true of them.

    `truth/users.csv` (user_id, category, tags), `truth/items.csv` (item_id, born: Unix seconds), `truth/broken.csv`
    (row of the log from 1, problem). Time and memory grow with events (about 100 bytes each).

    Args:
        size: tiny, small or large; or a number of events: then the log is a folder `interactions` of Parquet files, and
            memory grows with users and items only.
    """
    if size not in _SIZES:
        make_blocks(folder, num_events=int(size), seed=seed)
        return
    num_users, num_items, num_events = _SIZES[size]
    rng = np.random.default_rng([seed, num_users])
    world = World.drawn(rng, num_users, num_items)
    events_of = rng.multinomial(num_events, rng.dirichlet(np.full(num_users, _ACTIVITY)))
    who = np.repeat(np.arange(num_users), events_of)
    what = world.choices(rng, who, world.liking())
    # Nothing happens before an item exists.
    when = world.born[what] + 1 + (rng.random(num_events) * (_START + _SPAN - world.born[what] - 1)).astype(np.int64)
    order = np.lexsort((what, who, when))
    broken = rng.choice(num_events, len(_BROKEN), replace=False)

    world.write(folder)
    _write_log(folder / "interactions.csv", who[order], what[order], when[order], broken, rng)
    rows = pl.DataFrame({"row": broken + 1, "problem": _BROKEN}).sort("row")
    rows.write_csv(folder / "truth" / "broken.csv")


def make_blocks(folder: Path, *, num_events: int, seed: int) -> None:
    """Writes a log of many files, one span of time after the other, with about 100 events a user and 500 an item."""
    num_users, num_items = max(60, num_events // 100), max(80, num_events // 500)
    rng = np.random.default_rng([seed, num_events])
    world = World.drawn(rng, num_users, num_items)
    world.write(folder)
    (folder / "interactions").mkdir(exist_ok=True)
    liking, activity = world.liking(), np.cumsum(rng.gamma(_ACTIVITY, size=num_users))
    edges = np.linspace(_START, _START + _SPAN, -(-num_events // _EVENTS_OF_FILE) + 1).astype(np.int64)
    exists = [np.clip(end - np.maximum(world.born, begin), 0, None) for begin, end in itertools.pairwise(edges)]
    exists = [there / (_START + _SPAN - world.born) for there in exists]
    share = np.array([(liking * there).sum() for there in exists])
    counts = rng.multinomial(num_events, share / share.sum())
    broken = []
    for number, count in enumerate(counts.tolist()):
        who = np.searchsorted(activity, rng.random(count) * activity[-1], side="right")
        what = world.choices(rng, who, liking * exists[number])
        first = np.maximum(world.born[what], edges[number])
        when = first + (rng.random(count) * (edges[number + 1] - first)).astype(np.int64)
        order = np.lexsort((what, who, when))
        frame = _events(rng, who[order], what[order], pl.Series(when[order]))
        if count and number % 10 == 0:
            row = int(rng.integers(count))
            frame = frame.with_columns(timestamp=pl.when(pl.int_range(pl.len()) != row).then("timestamp"))
            broken.append((f"interactions/{number:05d}.parquet", row + 1, "timestamp is no time"))
        frame.write_parquet(folder / "interactions" / f"{number:05d}.parquet", row_group_size=1 << 19)
    names = ["file", "row", "problem"]
    pl.DataFrame(broken, schema=names, orient="row").write_csv(folder / "truth" / "broken.csv")


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
            block = _events(rng, who[rows], what[rows], pl.Series(when[rows]).cast(pl.String))
            times, items = block["timestamp"], block["item_id"]
            for problem, row in zip(_BROKEN, (broken - start).tolist(), strict=True):
                if 0 <= row < len(times):
                    time, item = _spoilt(problem, times[row], items[row])
                    times, items = times.scatter(row, time), items.scatter(row, item)
            block = block.with_columns(times, items)
            block.write_csv(file, include_header=start == 0)


def _events(rng: np.random.Generator, who: np.ndarray, what: np.ndarray, when: pl.Series) -> pl.DataFrame:
    users, items = (prefix + pl.Series(of).cast(pl.String).str.zfill(5) for prefix, of in (("u", who), ("i", what)))
    rating = np.clip(np.round(3 + rng.normal(0.5, 1, len(who))), 1, 5)
    return pl.DataFrame({"user_id": users, "item_id": items, "timestamp": when, "rating": rating})


def _spoilt(problem: str, time: str, item: str) -> tuple[str, str]:
    spoilt = {
        "timestamp is no time": ("yesterday", item),
        "timestamp in another unit": (f"{time}000", item),
        "timestamp is not after 1970": ("0", item),
        "unknown item": (time, "i99999"),
    }
    return spoilt[problem]
