"""Interaction logs and items: events become users x items in time, items become feature tokens.

Events are checked row by row, repeated ones and those of rare users and items are left out with their reason, and the
log is divided at two moments in time, the same for everybody. Users and items that only occur after the first cut are
kept and measured as their own slices. Feature vocabularies and bins come from items that training has seen.
"""

import hashlib
import re
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, Literal

import numpy as np
import polars as pl
from pydantic import Field, field_validator, model_validator

from appssl.artifact import Artifact, ArtifactWriter, sha256_file
from appssl.contracts import Meta, Quarantined
from appssl.errors import DataError
from appssl.ops import item_tokens
from appssl.ops.event_draft import drafted
from appssl.ops.event_tables import read_events, require, scan
from appssl.ops.interactions import k_core, popularity_slices, time_cuts
from appssl.ops.paths import inside
from appssl.ops.recsys_figures import figures
from appssl.settings import Settings

SPLITS = ("train", "val", "test")
_QUARANTINED_ROWS = 1000  # rows of one reason that are listed one by one; the account counts all


class Columns(Settings):
    """Names of the columns of the log."""

    user: str = Field("user_id", description="who")
    item: str = Field("item_id", description="what")
    timestamp: str = Field("timestamp", description="when: Unix seconds, or ISO 8601")
    rating: str | None = Field(None, description="how much, for min_rating")


class Multi(Settings):
    """A text column that holds several values."""

    column: str = Field(description="column of the item table")
    separator: str = Field("|", min_length=1, description="what stands between the values")


class Pattern(Settings):
    """A feature cut out of a text column."""

    name: str = Field(description="name of the feature")
    column: str = Field(description="column of the item table")
    regex: str = Field(description="regular expression; its first group is the value")

    @field_validator("regex")
    @classmethod
    def _compiles(cls, value: str) -> str:
        try:
            re.compile(value)
        except re.error as error:
            raise ValueError(f"is no regular expression: {error}") from None
        return value


class Config(Settings):
    name: Literal["recsys"] = "recsys"
    interactions: str = Field("interactions.csv", description="log, CSV or Parquet, one event per row")
    columns: Columns = Field(Columns(), description="names of its columns")
    items: str = Field("items.csv", description="table of items with their features, CSV or Parquet")
    item_id: str = Field("item_id", description="its key column")
    title: str | None = Field(None, description="column shown to people")
    categorical: tuple[str, ...] = Field((), description="columns with one value per item")
    multi: tuple[Multi, ...] = Field((), description="columns with several values per item")
    numeric: tuple[str, ...] = Field((), description="columns with a number, divided into quantile bins")
    patterns: tuple[Pattern, ...] = Field((), description="features cut out of text columns")
    bins: int = Field(8, ge=2, le=256, description="bins of numeric columns")
    unknown_items: Literal["leave_out", "keep"] = Field(
        "leave_out", description="events of items not in the item table"
    )
    min_rating: float | None = Field(None, description="events with a lower rating are left out")
    min_user: int = Field(5, ge=1, description="fewest events of a user (k-core)")
    min_item: int = Field(1, ge=1, description="fewest events of an item (k-core)")
    train_share: float = Field(0.8, gt=0, lt=1, description="share of the events, in time, that are trained on")
    val_share: float = Field(0.1, ge=0, lt=1, description="share of the events after those, for validation")
    head_share: float = Field(0.5, gt=0, lt=1, description="share of training events that the head items cover")
    middle_share: float = Field(0.3, gt=0, lt=1, description="share that the middle items cover after the head")
    limit_users: int | None = Field(None, ge=2, description="at most this many users, chosen by a hash of their id")

    @model_validator(mode="after")
    def _shares(self) -> "Config":
        if self.train_share + self.val_share >= 1:
            raise ValueError("train_share + val_share must be below 1, nothing is left for the test")
        if self.head_share + self.middle_share >= 1:
            raise ValueError("head_share + middle_share must be below 1, nothing is left for the tail")
        if not (self.categorical or self.multi or self.numeric or self.patterns):
            raise ValueError("name at least one feature: categorical, multi, numeric or patterns")
        return self


class RecsysData:
    """Items as samples, and the log.

    `tokens` (num_items, L) int64; `popularity` (num_items,) int64 training events; `slices` (num_items,) str head,
    middle, tail or cold.
    """

    def __init__(self, artifact: Artifact) -> None:
        values = artifact.json("meta.json")
        self.meta = Meta(**{**values, "classes": tuple(values["classes"])})
        self.samples = artifact.table("samples.parquet")
        self.users = artifact.table("users.parquet")
        self.tokens = np.load(artifact.path("tokens.npy"), mmap_mode="r")
        self.popularity = self.samples["popularity"].to_numpy()
        self.slices = self.samples["slice"].to_numpy()
        self.num_users, self.num_items = len(self.users), len(self.samples)
        self._events = artifact.table("interactions.parquet")

    def interactions(self, split: str) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """User numbers, item numbers and times (N,) int64 of a part, in order of time."""
        part = self._events.filter(pl.col("split") == split)
        user, item, time = (part[name].to_numpy().astype(np.int64) for name in ("user", "item", "timestamp"))
        return user, item, time

    def read(self, row: int) -> np.ndarray:
        """Tokens (L,) int64 of an item."""
        return np.asarray(self.tokens[row])


class NewItems:
    """Items as samples, without a log: what `embed` takes."""

    def __init__(self, ids: pl.Series, tokens: np.ndarray, meta: Meta) -> None:
        self.meta, self._tokens = meta, tokens
        nothing = pl.lit(None, pl.String)
        self.samples = pl.DataFrame({"id": ids, "group": ids}).select(
            pl.int_range(pl.len(), dtype=pl.Int64).alias("index"),
            "id",
            "group",
            split=pl.lit("test"),
            label=nothing,
            true_label=nothing,
        )

    def read(self, row: int) -> np.ndarray:
        """Tokens (L,) int64 of an item."""
        return self._tokens[row]


class Recsys:
    def __init__(self, config: Config) -> None:
        self.config = config

    def inputs(self, root: Path) -> list[Path]:
        return [root / self.config.interactions, root / self.config.items]

    def prepare(self, root: Path, shard: int, num_shards: int, out: ArtifactWriter) -> None:
        """Checks the rows of the log whose number is `shard` modulo `num_shards`."""
        log, items = (inside(root, name) for name in (self.config.interactions, self.config.items))
        columns = self.config.columns
        rating = columns.rating
        if self.config.min_rating is not None and rating is None:
            raise DataError("data.source.min_rating is given, but data.source.columns.rating names no column.")
        events = read_events(log, user=columns.user, item=columns.item, timestamp=columns.timestamp, rating=rating)
        self._read_items(items)
        out.input("table:interactions", sha256_file(log))
        out.input("table:items", sha256_file(items))
        out.table("events.parquet", events.filter(pl.col("row") % num_shards == shard))

    def merge(self, root: Path, shards: Sequence[Artifact], out: ArtifactWriter) -> None:
        config = self.config
        events = pl.concat([shard.table("events.parquet") for shard in shards]).sort("row")
        table = inside(root, config.items)
        if any(shard.manifest["inputs"]["table:items"] != sha256_file(table) for shard in shards):
            raise DataError(f"{table}: changed since the shards were prepared. Delete their folder and run again.")
        catalogue = self._read_items(table)
        kept = self._select(events, catalogue, out)
        first, second = time_cuts(kept["timestamp"].to_numpy(), config.train_share, config.val_share)
        early = pl.when(pl.col("timestamp") < first).then(pl.lit("train"))
        split = early.when(pl.col("timestamp") < second).then(pl.lit("val")).otherwise(pl.lit("test"))
        kept = kept.with_columns(split=split).sort("timestamp", "row")
        self._check_parts(kept)
        users = self._users(events, kept, out)
        items, tokens, fields, vocab = self._items(kept, catalogue, out)
        numbered = kept.join(users.select(user="id", user_number="number"), on="user").join(
            items.select(item="id", item_number="index"), on="item"
        )
        numbered = numbered.sort("timestamp", "row")
        log = numbered.select(
            user=pl.col("user_number"), item=pl.col("item_number"), timestamp=pl.col("timestamp"), split=pl.col("split")
        )
        out.table("interactions.parquet", log)
        out.table("users.parquet", users)
        out.table("samples.parquet", items)
        out.array("tokens.npy", tokens)
        train, test = (kept.filter(pl.col("split") == part) for part in ("train", "test"))
        known = int(test["user"].is_in(train["user"].unique().implode()).sum())
        out.account("test_events_of_warm_users").keep(known)
        out.account("test_events_of_cold_users").keep(len(test) - known)
        facts = {
            "fields": fields,
            "vocab_size": vocab,
            "train_until_unix_seconds": first,
            "val_until_unix_seconds": second,
            "num_users": len(users),
            "num_items": len(items),
            "test_events": len(test),
            "test_events_of_known_users": known,
            "test_events_of_known_items": int(test["item"].is_in(train["item"].unique().implode()).sum()),
            "items_without_features": int((tokens == 0).all(axis=1).sum()),
        }
        meta = Meta(source="recsys", domain="recsys", task="ranking", group="user", facts=facts)
        out.json("meta.json", asdict(meta))
        drawn = figures(items, kept)
        for entry, content in drawn:
            out.bytes(entry["file"], content)
        out.json("figures.json", [entry for entry, _ in drawn])

    def open(self, artifact: Artifact) -> RecsysData:
        return RecsysData(artifact)

    def _read_items(self, path: Path) -> pl.DataFrame:
        """The item table, one row per id, as text.

        Raises:
            DataError: if a column is missing, an id is missing or twice, or the table is empty.
        """
        config = self.config
        frame = scan(path)
        named = [
            *config.categorical,
            *(m.column for m in config.multi),
            *config.numeric,
            *(p.column for p in config.patterns),
        ]
        wanted = [config.item_id, *named, *([config.title] if config.title else [])]
        require(frame, wanted, path, "data.source")
        table = frame.select(*dict.fromkeys(wanted)).with_columns(pl.col(config.item_id).cast(pl.String)).collect()
        if table.is_empty():
            raise DataError(f"{path}: holds no items.")
        problems = []
        nameless = table[config.item_id].fill_null("") == ""
        if nameless.any():
            rows = ", ".join(str(row + 1) for row in nameless.arg_true()[:10])
            problems.append(f"{nameless.sum()} row(s) have no {config.item_id}: row {rows}.")
            table = table.filter(~nameless)
        repeated = table.filter(pl.col(config.item_id).is_duplicated())[config.item_id].unique().sort().to_list()
        if repeated:
            shown = ", ".join(map(str, repeated[:10]))
            problems.append(f"{len(repeated)} item id(s) occur more than once: {shown}.")
        if problems:
            raise DataError(f"{path}: {' '.join(problems)} Every item needs one row with its id.")
        return table.sort(config.item_id)

    def _select(self, events: pl.DataFrame, catalogue: pl.DataFrame, out: ArtifactWriter) -> pl.DataFrame:
        """Events that are used; the others go to account and quarantine."""
        config = self.config
        account = out.account("events")
        bad = events.filter(pl.col("problem").is_not_null())
        for reason, group in sorted((str(k[0]), g) for k, g in bad.group_by("problem")):
            account.fail(reason, len(group))
            self._note(out, group.sort("row"), "failed", reason)
        kept = events.filter(pl.col("problem").is_null())
        steps: list[tuple[str, pl.DataFrame]] = []
        if config.limit_users is not None:
            chosen = sorted(kept["user"].unique().to_list(), key=_hash)[: config.limit_users]
            steps.append(("user not in the limit", kept.filter(pl.col("user").is_in(chosen))))
        kept = steps[-1][1] if steps else kept
        if config.unknown_items == "leave_out":
            steps.append(
                ("item not in the item table", kept.filter(pl.col("item").is_in(catalogue[config.item_id].implode())))
            )
            kept = steps[-1][1]
        if config.min_rating is not None:
            steps.append(("rating below min_rating", kept.filter(pl.col("rating") >= config.min_rating)))
            kept = steps[-1][1]
        steps.append(
            (
                "repeated event",
                kept.sort("timestamp", "row").unique(["user", "item"], keep="first", maintain_order=True).sort("row"),
            )
        )
        steps.append(("too few events (k-core)", k_core(steps[-1][1], config.min_user, config.min_item)))
        before = events.filter(pl.col("problem").is_null())
        for reason, after in steps:
            gone = before.filter(~pl.col("row").is_in(after["row"].implode()))
            if not gone.is_empty():
                account.leave_out(reason, len(gone))
                self._note(out, gone, "left_out", reason)
            before = after
        account.keep(len(before))
        if before.is_empty():
            why = ", ".join(f"{count} {reason}" for reason, count in {**account.left_out, **account.failed}.items())
            raise DataError(
                f"no event is left of {account.total}: {why}. "
                "Lower min_user, min_item or min_rating, or check the item ids."
            )
        if before["user"].n_unique() < 2:
            raise DataError("the log holds a single user after selection; a ranking needs two or more. Add users.")
        return before

    def _note(
        self, out: ArtifactWriter, rows: pl.DataFrame, outcome: Literal["failed", "left_out"], reason: str
    ) -> None:
        for row in rows.head(_QUARANTINED_ROWS).iter_rows(named=True):
            detail = f"user {row['user']}, item {row['item']}, value {row['seen']}"
            if len(rows) > _QUARANTINED_ROWS:
                detail += f" (first {_QUARANTINED_ROWS} of {len(rows)} are listed)"
            where = f"{self.config.interactions} row {row['row']}"
            out.quarantine.append(Quarantined("event", str(row["row"]), where, outcome, reason, detail))

    def _check_parts(self, kept: pl.DataFrame) -> None:
        empty = [part for part in ("train", "test") if kept.filter(pl.col("split") == part).is_empty()]
        if empty:
            raise DataError(
                f"the {' and '.join(empty)} part is empty: too many events share one time. "
                "Check the timestamps, or change train_share and val_share."
            )

    def _users(self, events: pl.DataFrame, kept: pl.DataFrame, out: ArtifactWriter) -> pl.DataFrame:
        """number (int64), id, events per part; users without a kept event are left out."""
        named = events.filter(pl.col("user").fill_null("") != "")["user"].unique().sort()
        gone = named.filter(~named.is_in(kept["user"].unique().implode())).to_list()
        account = out.account("users")
        account.keep(kept["user"].n_unique())
        if gone:
            account.leave_out("no event left", len(gone))
            where, detail = self.config.interactions, "all events were left out or could not be read"
            out.quarantine += [
                Quarantined("user", user, where, "left_out", "no event left", detail)
                for user in gone[:_QUARANTINED_ROWS]
            ]
        counts = [(pl.col("split") == part).sum().cast(pl.Int64).alias(f"{part}_events") for part in SPLITS]
        users = kept.group_by("user").agg(*counts).sort("user").rename({"user": "id"})
        return users.with_row_index("number").with_columns(pl.col("number").cast(pl.Int64))

    def _items(
        self, kept: pl.DataFrame, catalogue: pl.DataFrame, out: ArtifactWriter
    ) -> tuple[pl.DataFrame, np.ndarray, list[dict[str, Any]], int]:
        config = self.config
        used = kept.group_by("item").agg(popularity=(pl.col("split") == "train").sum().cast(pl.Int64)).sort("item")
        account = out.account("items")
        without = catalogue.filter(~pl.col(config.item_id).is_in(used["item"].implode()))
        account.keep(len(used))
        if not without.is_empty():
            account.leave_out("no events", len(without))
            for item in without[config.item_id].head(_QUARANTINED_ROWS).to_list():
                out.quarantine.append(
                    Quarantined("item", item, config.items, "left_out", "no events", "no kept event names it")
                )
        table = used.join(catalogue, left_on="item", right_on=config.item_id, how="left").sort("item")
        self._check_numbers(table, out)
        counts = table["popularity"].to_numpy()
        known = counts > 0
        borders = [item_tokens.borders_of(table[name], known, config.bins) for name in config.numeric]
        numbers, about, vocab = item_tokens.tokens(self._fields(table, borders), known)
        slices = popularity_slices(counts, config.head_share, config.middle_share)
        title = pl.col(config.title) if config.title else pl.lit(None, pl.String)
        samples = table.with_row_index("index").select(
            pl.col("index").cast(pl.Int64),
            id=pl.col("item"),
            group=pl.col("item"),
            split=pl.when(pl.col("popularity") > 0).then(pl.lit("train")).otherwise(pl.lit("test")),
            label=pl.lit(None, pl.String),
            true_label=pl.lit(None, pl.String),
            title=title,
            popularity=pl.col("popularity"),
            slice=pl.Series(slices.astype(str)),
        )
        return samples, numbers, about, vocab

    def _fields(self, table: pl.DataFrame, borders: Sequence[Sequence[float]]) -> list[item_tokens.FieldValues]:
        """Values of all fields; borders: of the bins of each numeric field."""
        config = self.config
        numeric = zip(config.numeric, borders, strict=True)
        return [
            *(item_tokens.categorical(name, table[name]) for name in config.categorical),
            *(item_tokens.multi(m.column, table[m.column], m.separator) for m in config.multi),
            *(item_tokens.numeric(name, table[name], tuple(of)) for name, of in numeric),
            *(item_tokens.pattern(p.name, table[p.column], p.regex) for p in config.patterns),
        ]

    def new_items(self, table: Path, meta: Meta) -> "NewItems":
        """Items of a new table, with the vocabulary of the training items (`meta`)."""
        about = meta.facts["fields"]
        after = len(self.config.categorical) + len(self.config.multi)
        borders = [field["borders"] for field in about[after : after + len(self.config.numeric)]]
        items = self._read_items(table)
        return NewItems(items[self.config.item_id], item_tokens.encoded(self._fields(items, borders), about), meta)

    def _check_numbers(self, table: pl.DataFrame, out: ArtifactWriter) -> None:
        """Text where a number should be is a missing feature, and says so; an empty cell is just missing."""
        for name in self.config.numeric:
            text = table[name].cast(pl.String)
            given = (text.fill_null("").str.strip_chars() != "").to_numpy()
            bad = given & ~np.isfinite(table[name].cast(pl.Float64, strict=False).to_numpy())
            account = out.account("numeric_values")
            account.keep(int(given.sum() - bad.sum()))
            if bad.any():
                account.fail(f"{name} is no number", int(bad.sum()))
            for row in np.flatnonzero(bad)[:_QUARANTINED_ROWS].tolist():
                item, reason = table["item"][row], f"{name} is no number"
                detail = f"value {text[row]}; treated as missing"
                out.quarantine.append(Quarantined("value", item, self.config.items, "failed", reason, detail))


def build(config: Config) -> Recsys:
    return Recsys(config)


def open_new(config: Config, table: Path, meta: Meta) -> tuple[NewItems, list[Quarantined]]:
    """Items of a new table, to be embedded; those without any feature that training knew are explained.

    Raises:
        DataError: if a column is missing, an id is missing or twice, or the table is empty.
    """
    data = Recsys(config).new_items(table, meta)
    unknown = [data.samples["id"][row] for row in range(len(data.samples)) if not data.read(row).any()]
    detail = "no value of its features occurs in training; its vector is that of an item without features"
    return data, [Quarantined("item", item, table.name, "left_out", "no known feature", detail) for item in unknown]


def _hash(name: str) -> bytes:
    return hashlib.sha256(name.encode()).digest()


def draft(table: Path) -> dict[str, Any]:
    """A recipe for a log, filled in from its columns; the item table is looked for beside it.

    Raises:
        DataError: if user, item or time columns, or the item table, are not found.
    """
    return {
        "description": f"recommendation from {table.name}",
        "domain": "recsys",
        "data": {"source": {"name": "recsys", **drafted(table)}},
        "pretrain": {"backbone": "two_tower", "views": "item_features"},
        "finetune": {"finetuner": "retrieval", "fit": {"epochs": 5, "batch_size": 256}},
        "evaluate": {"evaluators": ["ranking"]},
        "quick": {"data.source.limit_users": 200, "pretrain.fit.epochs": 1, "finetune.fit.epochs": 1},
    }
