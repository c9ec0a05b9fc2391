"""Which of the listed images are used: class names, parts, samples, irrelevant images mixed in, copies left out.

Everything is decided by hashes of ids, so the order of rows never matters and a smaller sample is part of a larger.
"""

import hashlib
from collections.abc import Iterable, Sequence

import polars as pl
from pydantic import Field, model_validator

from appssl.errors import DataError
from appssl.ops.images.decisions import review_rank
from appssl.ops.images.index import OOD, Columns, Listing
from appssl.ops.split import GroupSplit, group_split
from appssl.settings import Settings, nearest

PRIORITY = {"test": 0, "val": 1, "train": 2}  # which of two equal images is kept


class Mix(Settings):
    """Images of another table that are mixed into the training part as irrelevant finds, each with a random label."""

    table: str = Field(description="CSV or Parquet table, relative to data.root; its labels are not read")
    columns: Columns = Field(Columns(id=None, label=None), description="its columns")
    share: float = Field(ge=0, lt=1, description="mixed-in images / all training images, before any is rejected")
    shares: dict[str, float] = Field(
        {}, description="class: mixed-in images / all training images of that label; `share` is then of the others"
    )
    seed: int = Field(0, ge=0, description="chooses images and labels; not the seed of the run")

    @model_validator(mode="after")
    def _some(self) -> "Mix":
        if any(not 0 <= share < 1 for share in self.shares.values()):
            raise ValueError("shares lie in 0..1, below 1")
        return self


def hash_order(text: str) -> bytes:
    """SHA-256 of a text: an order that depends on nothing else."""
    return hashlib.sha256(text.encode()).digest()


def named_labels(listings: Iterable[Listing], class_names: Sequence[str]) -> tuple[str, ...]:
    """Puts class names in place of positions, notes labels in no class list as problems, and returns the classes.

    Without `class_names` the classes are the sorted web labels of the first input that has any, else the true labels.
    """
    listings = list(listings)
    classes = tuple(class_names) or _found_classes(listings)
    for listing in listings:
        for column, extra in (("label", ()), ("true_label", (OOD,))):
            values = listing.frame[column].unique().drop_nulls().sort().to_list()
            known = {value: _class_of(value, classes, bool(class_names), extra) for value in values}
            unknown = [value for value, name in known.items() if name is None]
            wrong = listing.frame.filter(pl.col(column).is_in(unknown)).select("where", column)
            listing.problems += [
                f"{where}: {column} {value!r} is in no class list.{nearest(value, classes)}"
                for where, value in wrong.iter_rows()
            ]
            new = pl.col(column).replace_strict(known, default=None, return_dtype=pl.String)
            listing.frame = listing.frame.with_columns(new if known else pl.col(column))
    return classes


def _found_classes(listings: list[Listing]) -> tuple[str, ...]:
    for column in ("label", "true_label"):
        for listing in listings:
            if found := set(listing.frame[column].drop_nulls().to_list()) - {OOD}:
                return tuple(sorted(found))
    return ()


def _class_of(value: str, classes: Sequence[str], positions: bool, extra: Sequence[str]) -> str | None:
    if value in classes or value in extra:
        return value
    if positions and value.isdecimal() and int(value) < len(classes):
        return classes[int(value)]
    return None


def select(frame: pl.DataFrame, limit: int | None) -> pl.DataFrame:
    """At most `limit` rows, every (split, label) in proportion, by hash of the id: the same rows for any row order.

    A smaller limit gives a subset of a larger one.
    """
    if limit is None or len(frame) <= limit:
        return frame
    strata: dict[tuple[str | None, str | None], list[str]] = {}
    for name, split, label in frame.select("id", "split", "label").iter_rows():
        strata.setdefault((split, label), []).append(name)
    ranked = []
    for names in strata.values():
        names.sort(key=lambda name: hash_order(f"limit/{name}"))
        ranked += [((rank + 0.5) / len(names), hash_order(name), name) for rank, name in enumerate(names)]
    chosen = [name for _, _, name in sorted(ranked)[:limit]]
    return frame.filter(pl.col("id").is_in(chosen))


def duplicate_ids(frame: pl.DataFrame) -> list[str]:
    repeated = frame.filter(pl.col("id").is_not_null() & pl.col("id").is_duplicated())
    groups: dict[str, list[str]] = {}
    for name, where in repeated.select("id", "where").iter_rows():
        groups.setdefault(name, []).append(where)
    return [
        f"id {name!r} is used {len(found)} times: {', '.join(found[:3])}. Ids must be unique."
        for name, found in groups.items()
    ]


def divided(frame: pl.DataFrame, config: GroupSplit | None) -> pl.DataFrame:
    """With every `split` filled: train where a column gives none, or by groups when no row has one.

    Without `config` everything undivided is for training.
    """
    if config is None or frame["split"].null_count() < len(frame):
        return frame.with_columns(pl.col("split").fill_null("train"))
    parts = group_split(frame["group"].to_list(), config)
    return frame.with_columns(split=pl.col("group").replace_strict(parts, return_dtype=pl.String))


def mixed_in(frame: pl.DataFrame, mix: Mix, train: pl.Series, classes: Sequence[str]) -> pl.DataFrame:
    """Rows of `frame` as irrelevant training images, with labels drawn evenly from the classes or by `mix.shares`.

    Args:
        train: labels of the other training images.
    Raises:
        DataError: if there are too few, no classes, or one that is named is none of them.
    """
    if unknown := sorted(set(mix.shares) - set(classes)):
        raise DataError(f"mix.shares names {unknown[0]!r}, which is no class.{nearest(unknown[0], classes)}")
    counts = {
        name: _beside(int((train == name).sum()), mix.shares.get(name, mix.share)) for name in classes if mix.shares
    }
    wanted = sum(counts.values()) if mix.shares else _beside(len(train), mix.share)
    if wanted > len(frame) or not classes:
        raise DataError(
            f"mix.share {mix.share:g} beside {len(train)} training images of {len(classes)} classes needs {wanted} "
            f"images with labels; mix.table has {len(frame)}. Lower mix.share or limit."
        )
    names = sorted(frame["id"].to_list(), key=lambda name: hash_order(f"{mix.seed}/{name}"))[:wanted]
    counted = [name for name, count in counts.items() for _ in range(count)]
    draws = [int.from_bytes(hash_order(f"{mix.seed}/label/{name}")[:8]) for name in names]
    labels = counted or [classes[draw % len(classes)] for draw in draws]
    chosen = frame.filter(pl.col("id").is_in(names))
    label = pl.col("id").replace_strict(dict(zip(names, labels, strict=True)), default=None, return_dtype=pl.String)
    return chosen.with_columns(label=label, split=pl.lit("train"), true_label=pl.lit(OOD), group=pl.col("id"))


def _beside(count: int, share: float) -> int:
    """How many make up `share` of all beside `count` others."""
    return round(share / (1 - share) * count)


def true_kind() -> pl.Expr:
    """clean, id_noise or ood_noise where label and truth are known, for evaluation only."""
    kind = pl.when(pl.col("true_label") == OOD).then(pl.lit("ood_noise"))
    agrees = kind.when(pl.col("true_label") == pl.col("label")).then(pl.lit("clean"))
    return agrees.when(pl.col("label").is_not_null() & pl.col("true_label").is_not_null()).then(pl.lit("id_noise"))


def leave_out_duplicates(units: pl.DataFrame) -> pl.DataFrame:
    """Marks all but one of the kept images with equal pixels; `copy_of` is then the id of the one that stays.

    Of one part it is one that was reviewed, so that a decision is not lost when an equal image is found.
    """
    ranked = units.with_columns(priority=pl.col("split").replace_strict(PRIORITY), rank=review_rank())
    order = ranked.filter(pl.col("outcome") == "kept").sort("priority", "rank", "id")
    first = order.unique("pixels", keep="first", maintain_order=True)
    keepers = first.select("pixels", keeper="id", keeper_split="split", keeper_label="label", keeper_bytes="sha256")
    joined = units.join(keepers, on="pixels", how="left", maintain_order="left")
    copy = (pl.col("outcome") == "kept") & (pl.col("id") != pl.col("keeper"))
    reason = pl.when(pl.col("split") == pl.col("keeper_split")).then(pl.lit("duplicate"))
    equal = (
        pl.when(pl.col("sha256") == pl.col("keeper_bytes")).then(pl.lit("same bytes")).otherwise(pl.lit("same pixels"))
    )
    detail = pl.format(
        "duplicate of {} ({}; {} and {}, labels {} and {})",
        "keeper", equal, "split", "keeper_split",
        pl.col("label").fill_null("none"), pl.col("keeper_label").fill_null("none"),
    )  # fmt: skip
    return joined.with_columns(
        outcome=pl.when(copy).then(pl.lit("left_out")).otherwise("outcome"),
        reason=pl.when(copy).then(reason.otherwise(pl.lit("duplicate_across_splits"))).otherwise("reason"),
        detail=pl.when(copy).then(detail).otherwise("detail"),
        copy_of=pl.when(copy).then("keeper").otherwise("copy_of"),
    ).drop("keeper", "keeper_split", "keeper_label", "keeper_bytes")
