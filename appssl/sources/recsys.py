"""Interaction logs and items: events become users x items in time, items become feature tokens.

Events are checked row by row, repeated ones and those of rare users and items are left out with their reason, and the
log is divided at two moments in time, the same for everybody. Users and items that only occur after the first cut are
kept and measured as their own slices. Feature vocabularies and bins come from items that training has seen.

The log may be larger than memory: shards read its files block by block into records of numbers
(`ops/interactions/log`), and merging goes through these in parts that fit (`ops/interactions/select`,
`ops/interactions/store`). Memory grows with users and items.
"""

from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, Literal

import polars as pl
from pydantic import Field, model_validator

from appssl.artifact import Artifact, ArtifactWriter, sha256_file
from appssl.contracts import Meta, Quarantined
from appssl.errors import DataError
from appssl.ops.interactions.data import InteractionData, NewItems
from appssl.ops.interactions.draft import drafted
from appssl.ops.interactions.event_tables import Columns, Judging, written_seconds
from appssl.ops.interactions.figures import figures
from appssl.ops.interactions.files import file_names, log_files
from appssl.ops.interactions.items import (
    Features,
    Multi,
    Pattern,
    Text,
    Tokens,
    feature_tokens,
    new_tokens,
    read_table,
    used_items,
)
from appssl.ops.interactions.leakage import leakage
from appssl.ops.interactions.log import Log, write_shard
from appssl.ops.interactions.notes import LISTED, Notes
from appssl.ops.interactions.partitions import scratch
from appssl.ops.interactions.select import Rules, select
from appssl.ops.interactions.store import PARTS, Dividing, Split, Stored, write_events
from appssl.ops.paths import inside
from appssl.settings import Settings


class Users(Settings):
    """A table of users and their features."""

    table: str = Field(description="CSV or Parquet, one row per user")
    user_id: str = Field("user_id", description="its key column")
    categorical: tuple[str, ...] = Field((), description="columns with one value per user")
    multi: tuple[Multi, ...] = Field((), description="columns with several values per user")
    numeric: tuple[str, ...] = Field((), description="columns with a number, divided into quantile bins")
    bins: int = Field(8, ge=2, le=256, description="bins of numeric columns")

    @model_validator(mode="after")
    def _some(self) -> "Users":
        if not (self.categorical or self.multi or self.numeric):
            raise ValueError("name at least one feature: categorical, multi or numeric")
        return self

    def features(self) -> Features:
        return Features(
            "user", self.table, self.user_id, None, self.categorical, self.multi, self.numeric, (), (), self.bins
        )


class Config(Settings):
    name: Literal["recsys"] = "recsys"
    interactions: str | tuple[str, ...] = Field(
        "interactions.csv", description="log, CSV or Parquet, one event per row: a file, folder, pattern, or several"
    )
    columns: Columns = Field(Columns(), description="names of its columns")
    items: str = Field("items.csv", description="table of items with their features, CSV or Parquet")
    item_id: str = Field("item_id", description="its key column")
    title: str | None = Field(None, description="column shown to people")
    categorical: tuple[str, ...] = Field((), description="columns with one value per item")
    multi: tuple[Multi, ...] = Field((), description="columns with several values per item")
    numeric: tuple[str, ...] = Field((), description="columns with a number, divided into quantile bins")
    patterns: tuple[Pattern, ...] = Field((), description="features cut out of text columns")
    texts: tuple[Text, ...] = Field((), description="text columns whose words are features, hashed")
    bins: int = Field(8, ge=2, le=256, description="bins of numeric columns")
    users: Users | None = Field(None, description="table of users with their features; null: none")
    unknown_items: Literal["leave_out", "keep"] = Field(
        "leave_out", description="events of items not in the item table"
    )
    until: str | None = Field(
        None, description="rows later than this (ISO 8601, UTC without a zone) are faults; null: no end"
    )
    lowest_rating: float | None = Field(0, description="rows with a lower rating are faults; null: no limit")
    events: tuple[str, ...] = Field((), description="kinds of events that are used (columns.event); empty: all")
    min_rating: float | None = Field(None, description="events with a lower rating are left out")
    max_user_events: int | None = Field(
        None, ge=1, description="of a user with more events only the latest are used; null: all"
    )
    min_user: int = Field(5, ge=1, description="fewest events of a user (k-core)")
    min_item: int = Field(1, ge=1, description="fewest events of an item (k-core)")
    session_minutes: float | None = Field(
        None, gt=0, description="a longer pause of a user begins a session; null: none, or those of columns.session"
    )
    split: Split = Field(Split(), description="how train, validation and test are divided")
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
        fields = [*self.categorical, *(m.column for m in self.multi), *self.numeric]
        fields += [*(p.name for p in self.patterns), *(t.column for t in self.texts)]
        if not fields:
            raise ValueError("name at least one feature: categorical, multi, numeric, patterns or texts")
        if twice := sorted({name for name in fields if fields.count(name) > 1}):
            raise ValueError(f"features must have different names; {', '.join(twice)} is there more than once")
        if self.events and self.columns.event is None:
            raise ValueError("events names kinds, but columns.event names no column")
        if self.until is not None and _end(self.until) is None:
            raise ValueError(f"until is {self.until!r}, which is no time; write 2020-12-31 or 2020-12-31T23:59:59Z")
        if self.session_minutes is not None and self.columns.session is not None:
            raise ValueError("give either session_minutes or columns.session")
        return self

    def judging(self) -> Judging:
        return Judging(
            end=None if self.until is None else _end(self.until),
            lowest_rating=self.lowest_rating,
            min_rating=self.min_rating,
            kinds=self.events,
        )

    def features(self) -> Features:
        names = ("title", "categorical", "multi", "numeric", "patterns", "texts", "bins")
        return Features("item", self.items, self.item_id, **{name: getattr(self, name) for name in names})


def _end(until: str) -> int | None:
    """Last second of a day or moment, or None if it is no time."""
    found = written_seconds(pl.Series([until])).item()
    return found + 86_399 if found is not None and len(until.strip()) == len("2020-12-31") and "-" in until else found


class RecsysData(InteractionData):
    """Prepared items and log of an artifact."""

    def __init__(self, artifact: Artifact) -> None:
        values = artifact.json("meta.json")
        super().__init__(artifact, Meta(**{**values, "classes": tuple(values["classes"])}))


class Recsys:
    def __init__(self, config: Config) -> None:
        self.config = config

    def inputs(self, root: Path) -> list[Path]:
        return [*log_files(root, self.config.interactions), *(root / name for name, _ in self._tables().values())]

    def _tables(self) -> dict[str, tuple[str, Features]]:
        """File and features of the tables beside the log."""
        config = self.config
        tables = {"items": (config.items, config.features())}
        return tables | ({"users": (config.users.table, config.users.features())} if config.users else {})

    def prepare(self, root: Path, shard: int, num_shards: int, out: ArtifactWriter) -> None:
        """Reads the files of the log whose number is `shard` modulo `num_shards`, and checks every row."""
        config = self.config
        files = log_files(root, config.interactions)
        if config.min_rating is not None and config.columns.rating is None:
            raise DataError("data.source.min_rating is given, but data.source.columns.rating names no column.")
        for what, (name, features) in self._tables().items():
            read_table(inside(root, name), features)
            out.input(f"table:{what}", sha256_file(inside(root, name)))
        own = list(enumerate(files))[shard::num_shards]
        names = file_names(root, files)
        write_shard(own, config.columns, config.judging(), {"names": names}, out)
        for number, path in own:
            out.input(f"table:interactions/{names[number]}", sha256_file(path))

    def merge(self, root: Path, shards: Sequence[Artifact], out: ArtifactWriter) -> None:
        config = self.config
        catalogue, people = self._catalogue(root, shards)
        log = self._log(root, shards)
        known = catalogue[config.item_id] if config.unknown_items == "leave_out" else None
        rules = Rules(config.min_user, config.min_item, config.limit_users, config.max_user_events, known)
        gap = config.session_minutes * 60 if config.session_minutes is not None else None
        dividing = Dividing(config.split.kind, config.train_share, config.val_share, gap)
        notes = Notes()
        with scratch(out.folder) as folder:
            selected = select(log, rules, f"{self._told(root)}: {config.columns.timestamp}", folder)
            selected.fates.note(log, selected.count, notes)
            stored = write_events(selected, dividing, folder, out)
        users = self._users(log, stored, notes)
        out.table("users.parquet", users)
        ids = log.items.filter(pl.Series(stored.kept_items))
        shares = (config.head_share, config.middle_share)
        samples, tokens = used_items(ids, stored.items[:, 0], catalogue, config.features(), shares, notes)
        out.table("samples.parquet", samples)
        out.array("tokens.npy", tokens.numbers)
        facts = _facts(stored, tokens, notes)
        if people is not None and config.users is not None:
            user_tokens = _user_tokens(users, people, config.users.features(), notes)
            out.array("user_tokens.npy", user_tokens.numbers)
            facts |= {"user_fields": user_tokens.fields, "user_vocab_size": user_tokens.vocab_size}
        meta = Meta(source="recsys", domain="recsys", task="ranking", group="user", facts=facts)
        out.json("meta.json", asdict(meta))
        leaks = leakage(stored)
        out.json("leakage.json", {**leaks, "feature_hashing": tokens.collisions})
        drawn = figures(samples, stored, leaks)
        for entry, content in drawn:
            out.bytes(entry["file"], content)
        out.json("figures.json", [entry for entry, _ in drawn])
        _hand_on(notes, out)

    def _catalogue(self, root: Path, shards: Sequence[Artifact]) -> tuple[pl.DataFrame, pl.DataFrame | None]:
        """The tables of items and of users, those that the shards were prepared with."""
        found = {}
        for what, (name, features) in self._tables().items():
            path = inside(root, name)
            if any(shard.manifest["inputs"][f"table:{what}"] != sha256_file(path) for shard in shards):
                raise DataError(f"{path}: changed since the shards were prepared. Delete their folder and run again.")
            found[what] = read_table(path, features)
        return found["items"], found.get("users")

    def open(self, artifact: Artifact) -> RecsysData:
        return RecsysData(artifact)

    def _given(self) -> str:
        given = self.config.interactions
        return given if isinstance(given, str) else ", ".join(given)

    def _told(self, root: Path) -> str:
        """The log, as messages name it."""
        return str(root / self._given())

    def _log(self, root: Path, shards: Sequence[Artifact]) -> Log:
        names = file_names(root, log_files(root, self.config.interactions))
        if any(shard.json("shard.json")["names"] != names for shard in shards):
            raise DataError(
                f"{self._told(root)}: its files are others than when the shards were prepared. "
                "Delete the folder of the shards and run again."
            )
        log = Log(shards, self.config.columns, names)
        if not log.num_rows:
            raise DataError(f"{self._told(root)}: holds no interactions.")
        return log

    def _users(self, log: Log, stored: Stored, notes: Notes) -> pl.DataFrame:
        """number (int64), id, events per part, slice (warm or cold); users without a kept event are left out."""
        ids, gone = (log.users.filter(pl.Series(of)) for of in (stored.kept_users, ~stored.kept_users))
        notes.count("users", "kept", len(ids))
        notes.count("users", "left_out", len(gone), "no event left")
        detail = "all events were left out or could not be read"
        for user in gone.head(LISTED).to_list():
            notes.row("user", user, self._given(), "left_out", "no event left", detail)
        counts = {f"{part}_events": stored.users[:, number] for number, part in enumerate(PARTS)}
        users = pl.DataFrame({"id": ids, **counts}).with_row_index("number")
        warm = pl.when(pl.col("train_events") > 0).then(pl.lit("warm")).otherwise(pl.lit("cold"))
        return users.with_columns(pl.col("number").cast(pl.Int64), slice=warm)

    def new_items(self, table: Path, meta: Meta) -> NewItems:
        """Items of a new table, with the vocabulary of the training items (`meta`)."""
        items = read_table(table, self.config.features())
        return NewItems(
            items[self.config.item_id], new_tokens(items, self.config.features(), meta.facts["fields"]), meta
        )


def build(config: Config) -> Recsys:
    return Recsys(config)


def _hand_on(notes: Notes, out: ArtifactWriter) -> None:
    """Into accounts and quarantine."""
    for what, outcome, reason, number in notes.counts:
        account = out.account(what)
        if outcome == "kept":
            account.keep(number)
        elif outcome == "left_out":
            account.leave_out(reason, number)
        else:
            account.fail(reason, number)
    out.quarantine += [Quarantined(**row) for row in notes.rows]  # type: ignore[arg-type]


def _user_tokens(users: pl.DataFrame, table: pl.DataFrame, features: Features, notes: Notes) -> Tokens:
    """Tokens of users in the order of their numbers."""
    key = features.key
    rows = users.select(pl.col("id").alias(key)).join(table, on=key, how="left", maintain_order="left")
    return feature_tokens(rows, (users["train_events"] > 0).to_numpy(), features, notes)


def _facts(stored: Stored, tokens: Tokens, notes: Notes) -> dict[str, Any]:
    known_users, known_items = (int(of[of[:, 0] > 0, 2].sum()) for of in (stored.users, stored.items))
    num_test = stored.counts[2]
    notes.count("test_events_of_warm_users", "kept", known_users)
    notes.count("test_events_of_cold_users", "kept", num_test - known_users)
    first, second = stored.cuts or (None, None)
    return {
        "fields": tokens.fields,
        "vocab_size": tokens.vocab_size,
        "events": dict(zip(PARTS, stored.counts, strict=True)),
        "train_until_unix_seconds": first,
        "val_until_unix_seconds": second,
        "num_users": len(stored.users),
        "num_items": len(stored.items),
        "num_sessions": stored.num_sessions,
        "test_events": num_test,
        "test_events_of_known_users": known_users,
        "test_events_of_known_items": known_items,
        "items_without_features": int((tokens.numbers == 0).all(axis=1).sum()),
    }


def open_new(config: Config, table: Path, meta: Meta) -> tuple[NewItems, list[Quarantined]]:
    """Items of a new table, to be embedded; those without any feature that training knew are explained.

    Raises:
        DataError: if a column is missing, an id is missing or twice, or the table is empty.
    """
    data = Recsys(config).new_items(table, meta)
    unknown = [data.samples["id"][row] for row in range(len(data.samples)) if not data.read(row).any()]
    detail = "no value of its features occurs in training; its vector is that of an item without features"
    return data, [Quarantined("item", item, table.name, "left_out", "no known feature", detail) for item in unknown]


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
