"""The streamed selection against a literal one that has the whole log in a list."""

from collections import Counter

import numpy as np
import polars as pl
import pytest

from appssl.artifact import ArtifactWriter
from appssl.errors import DataError
from appssl.ops.interactions import partitions
from appssl.sources import recsys
from appssl.sources.recsys import Config, build

KNOWN = [f"i{n}" for n in range(12)]
REASONS = {
    "no user", "no item", "timestamp is no time", "timestamp is not after 1970", "timestamp in another unit",
    "rating is no number", "item not in the item table", "rating below min_rating", "repeated event",
    "user has more than max_user_events", "too few events (k-core)",
}  # fmt: skip


def drawn(rng):
    """Rows of text, of which one in twenty has something wrong with each of its cells."""

    def cells(good, bad):
        return [rng.choice(bad if rng.random() < 0.05 else good) for _ in range(count)]

    count = int(rng.integers(40, 120))
    users = cells([f"u{n}" for n in range(9)], [""])
    items = cells(KNOWN, ["", "other"])
    times = cells([str(n) for n in range(1000, 1030)], ["", "never", "0", "-5", "3", "999999999999"])
    ratings = cells(["2", "3", "4.5"], ["", "1", "inf"])
    return [tuple(map(str, row)) for row in zip(users, items, times, ratings, strict=True)]


def literal(rows, *, min_user, min_item, min_rating, most):
    """Account and kept (user, item, time), step by step over lists."""
    counts, good = Counter(), []
    numbers = [int(time) for _, _, time, _ in rows if time.lstrip("-").isdigit() and int(time) > 0]
    median = np.median(numbers) if numbers else None
    for row, (user, item, time, rating) in enumerate(rows):
        number = int(time) if time.lstrip("-").isdigit() else None
        if not user:
            counts["no user"] += 1
        elif not item:
            counts["no item"] += 1
        elif number is None:
            counts["timestamp is no time"] += 1
        elif number <= 0:
            counts["timestamp is not after 1970"] += 1
        elif not median / 100 <= number <= median * 100:
            counts["timestamp in another unit"] += 1
        elif rating in ("", "inf"):
            counts["rating is no number"] += 1
        elif item not in KNOWN:
            counts["item not in the item table"] += 1
        elif float(rating) < min_rating:
            counts["rating below min_rating"] += 1
        else:
            good.append((number, row, user, item))
    seen, first = set(), []
    for number, _, user, item in sorted(good):
        if (user, item) in seen:
            counts["repeated event"] += 1
        else:
            seen.add((user, item))
            first.append((user, number, item))
    kept = []
    for user in {user for user, _, _ in first}:
        own = sorted(event for event in first if event[0] == user)
        counts["user has more than max_user_events"] += len(own[:-most])
        kept += own[-most:]
    while True:
        users, items = Counter(user for user, _, _ in kept), Counter(item for _, _, item in kept)
        left = [event for event in kept if users[event[0]] >= min_user and items[event[2]] >= min_item]
        counts["too few events (k-core)"] += len(kept) - len(left)
        if len(left) == len(kept):
            return +counts, {(user, item, number) for user, number, item in kept}
        kept = left


@pytest.fixture(autouse=True)
def small_parts(monkeypatch):
    monkeypatch.setattr(partitions, "EVENTS_AT_ONCE", 7)
    monkeypatch.setattr(partitions, "RECORDS_READ", 5)
    monkeypatch.setattr(recsys, "figures", lambda *_: [])


def test_equals_a_literal_selection_in_lists(tmp_path_factory):
    explained = Counter()
    for seed in range(20):
        rng = np.random.default_rng(seed)
        rules = {"min_user": int(rng.integers(1, 5)), "min_item": int(rng.integers(1, 4)), "min_rating": 2.0}
        explained += compared(tmp_path_factory.mktemp("log"), drawn(rng), rules, most=int(rng.integers(5, 9)), rng=rng)
    assert set(explained) == REASONS | {"kept"}


def compared(root, events, rules, *, most, rng):
    """Prepares the rows in files and shards, and compares them with the literal selection."""
    counts, kept = literal(events, most=most, **rules)
    (root / "log").mkdir()
    for number, part in enumerate(np.array_split(np.arange(len(events)), rng.integers(1, 4))):
        lines = [",".join(events[row]) for row in part]
        (root / "log" / f"{number}.csv").write_text("\n".join(["user_id,item_id,timestamp,rating", *lines, ""]))
    pl.DataFrame({"item_id": KNOWN, "kind": ["a", "b"] * 6}).write_csv(root / "items.csv")
    config = Config(
        interactions="log", columns={"rating": "rating"}, categorical=("kind",), max_user_events=most, **rules
    )
    source, shards = build(config), []
    for shard in range(2):
        writer = ArtifactWriter(root / f"shard{shard}", "shard", settings_digest="", inputs={})
        source.prepare(root, shard, 2, writer)
        shards.append(writer.finish())
    out = ArtifactWriter(root / "data", "data", settings_digest="", inputs={})
    if len({user for user, _, _ in kept}) < 2:
        with pytest.raises(DataError, match=r"no event is left|a single user"):
            source.merge(root, shards, out)
        return counts
    source.merge(root, shards, out)
    artifact = out.finish()
    data = source.open(artifact)
    account = artifact.accounts()["events"]
    assert {**account.left_out, **account.failed} == counts
    users, items = data.users["id"].to_list(), data.samples["id"].to_list()
    found = [
        (users[user], items[item], time)
        for part in ("train", "val", "test")
        for user, item, time in zip(*(column.tolist() for column in data.interactions(part)), strict=True)
    ]
    assert len(found) == len(kept)
    assert set(found) == kept
    listed = artifact.table("quarantine.parquet").filter(pl.col("what") == "event")
    assert dict(listed.group_by("reason").len().iter_rows()) == counts
    return counts + Counter(kept=len(kept))
