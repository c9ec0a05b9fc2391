"""Web images with noisy labels: folders, tables or tar shards become small RGB images with labels, truth and parts.

Every image is checked before it is used: limits from its header, a full decode, its size, whether it shows anything,
and whether it is there twice. What is not kept lies in the quarantine with its reason. Conversions to RGB are stated in
`ops/images/decoding.py`; images are resized so that the shorter side fits (Lanczos) and cropped to the central square.

Images with equal pixels are kept once: the copy in test before val before train, then one that was reviewed, then the
smallest id. A copy within one part is left out as `duplicate`, one in another part, which would be a leak, as
`duplicate_across_splits`. So is an image whose perceptual hash is near that of one in another part
(`near_duplicate_across_splits`). Decisions of reviewers (`ops/images/decisions.py`) are taken as truth.
"""

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path, PurePosixPath
from typing import Any, BinaryIO, Literal

import numpy as np
import polars as pl
from pydantic import Field, model_validator

from appssl.artifact import Artifact, ArtifactWriter, sha256_file
from appssl.contracts import Meta, Quarantined
from appssl.errors import DataError
from appssl.ops.images import near_duplicates
from appssl.ops.images.decisions import decided, leave_out_decided, read_decisions
from appssl.ops.images.decoding import (
    LARGEST_LIMIT,
    VERSION,
    BadImage,
    central_square,
    decode,
    largest_std,
    pixel_digest,
)
from appssl.ops.images.encoded import contents
from appssl.ops.images.index import Columns, Listing, Skipped, guessed_columns, list_folder, list_table
from appssl.ops.images.perceptual_hash import perceptual_hash
from appssl.ops.images.selection import (
    Mix,
    divided,
    duplicate_ids,
    leave_out_duplicates,
    mixed_in,
    named_labels,
    select,
    true_kind,
)
from appssl.ops.images.shards import list_shards
from appssl.ops.images.sheets import figures
from appssl.ops.label_noise import LabelNoise, with_wrong_labels
from appssl.ops.paths import inside
from appssl.ops.split import GroupSplit, refuse_leak
from appssl.ops.table_limits import refuse
from appssl.settings import Settings

_BLOCK = 4096  # images copied at once when shards are joined
# What is known of every unit after `prepare`, beside the columns of the index.
_CHECKED: dict[str, Any] = {
    "row_of_shard": pl.Int64, "position": pl.Int64, "width": pl.Int64, "height": pl.Int64, "mode": pl.String,
    "sha256": pl.String, "pixels": pl.String, "hash": pl.UInt64,
    "outcome": pl.String, "reason": pl.String, "detail": pl.String,
}  # fmt: skip


class Config(Settings):
    name: Literal["webnoisy"] = "webnoisy"
    folder: str | None = Field(None, description="input as one folder per label: <folder>/<label>/<image>")
    table: str | None = Field(None, description="input as CSV or Parquet table, one row per image")
    shards: tuple[str, ...] = Field(
        (), description="input as tar files (paths or globs): key.jpg beside key.cls or key.json"
    )
    columns: Columns = Field(Columns(), description="columns of `table`, keys of a shard's .json")
    class_names: tuple[str, ...] = Field((), description="class names by number; empty: the labels that occur, sorted")
    test_table: str | None = Field(None, description="separate table of the test part; `table` is then for training")
    test_columns: Columns | None = Field(None, description="columns of `test_table`; null: as `columns`")
    mix: Mix | None = Field(None, description="irrelevant images of another table, for experiments")
    noise: LabelNoise | None = Field(None, description="wrong labels that are planted, for experiments")
    decisions: str | None = Field(
        None, description="table (id, decision, label) of a review, relative to data.root; taken as truth"
    )
    split: GroupSplit = Field(GroupSplit(test=0.2), description="division when there is neither column nor test_table")
    size: int = Field(32, ge=8, le=1024, description="side of the prepared images, pixels")
    min_side: int = Field(16, ge=1, description="images with a shorter side below this are left out, pixels")
    min_std: float = Field(2.0, ge=0, description="left out as uniform below this standard deviation, of 255")
    max_pixels: int = Field(100_000_000, ge=1, le=LARGEST_LIMIT, description="largest width x height that is decoded")
    max_bytes: int = Field(100_000_000, ge=1, description="largest file that is read, bytes")
    keep_duplicates: bool = Field(False, description="keep all images with equal pixels, also across parts")
    near_duplicates: Literal["leave_out", "refuse", "keep"] = Field(
        "leave_out", description="what is done with images that show nearly the same as one in another part"
    )
    near_bits: int = Field(4, ge=0, le=16, description="bits of 64 that hashes of near-duplicates may differ in")
    limit: int | None = Field(
        None, ge=1, description="at most this many images of the input, every label in proportion"
    )
    test_limit: int | None = Field(None, ge=1, description="the same for test_table")

    @model_validator(mode="after")
    def _one_input(self) -> "Config":
        if sum([self.folder is not None, self.table is not None, bool(self.shards)]) != 1:
            raise ValueError("give exactly one of folder, table and shards")
        if len(set(self.class_names)) < len(self.class_names):
            raise ValueError("class_names has a name twice")
        return self


@dataclass(frozen=True)
class Index:
    """All images of all inputs, sorted by id, and what is known before decoding."""

    units: pl.DataFrame
    classes: tuple[str, ...]
    skipped: list[Skipped]
    not_chosen: dict[str, int]

    @property
    def digest(self) -> str:
        """SHA-256 of everything: shards of one preparation have the same."""
        about = f"{self.classes}{self.skipped}{self.not_chosen}".encode()
        return hashlib.sha256(self.units.write_csv().encode() + about).hexdigest()


class WebNoisy:
    domain = "webnoisy"
    extra_columns: tuple[str, ...] = ()  # of samples, in sources that build on this one

    def __init__(self, config: Config) -> None:
        self.config = config

    def used(self, units: pl.DataFrame) -> pl.DataFrame:
        """What is used of the checked images; another source may leave out more, and change labels."""
        return units

    def classes(self, named: Sequence[str]) -> tuple[str, ...]:
        return tuple(named)

    def facts(self) -> dict[str, Any]:
        return {}

    def inputs(self, root: Path) -> list[Path]:
        """The tables. Folders and tar files are listed when they are prepared."""
        return [root / path for path in self._tables().values()]

    def _tables(self) -> dict[str, str]:
        mix = self.config.mix.table if self.config.mix else None
        named = {"table": self.config.table, "test_table": self.config.test_table, "mix": mix}
        named["decisions"] = self.config.decisions
        return {name: path for name, path in named.items() if path}

    def prepare(self, root: Path, shard: int, num_shards: int, out: ArtifactWriter) -> None:
        """Decodes and checks every `num_shards`-th image.

        Writes `images.npy` (images of the shard, size, size, 3) uint8, zeros where there is none, in the order in which
        they were read, and `units.parquet` with the `position` of each there.

        Raises:
            DataError: if tables, labels, ids or parts are wrong; all problems in one message.
        """
        index = self.index(root)
        for name, path in self._tables().items():
            out.input(f"table:{name}", sha256_file(inside(root, path)))
        out.input("index", index.digest)
        units = index.units.filter(pl.col("unit") % num_shards == shard)
        checked: list[dict[str, Any]] = []
        with out.open("images.npy") as file:
            _write_header(file, len(units), self.config.size)
            for position, (row, content) in enumerate(self._contents(root, units)):
                pixels = np.zeros((self.config.size, self.config.size, 3), np.uint8)
                checked.append({"row_of_shard": row, "position": position, **self._check(content, pixels)})
                file.write(pixels.tobytes())
        checks = pl.DataFrame(checked, schema=_CHECKED).sort("row_of_shard").drop("row_of_shard")
        out.table("units.parquet", units.with_columns(*checks))
        # Every shard knows all that is not decoded; it is counted once, when they are joined.
        about = {
            "classes": index.classes,
            "skipped": [asdict(s) for s in index.skipped],
            "not_chosen": index.not_chosen,
        }
        out.json("shard.json", {"shard": shard, "num_shards": num_shards, "index": index.digest, **about})

    def index(self, root: Path) -> Index:
        """Lists and selects all images; see `prepare` for errors."""
        listings = self._listings(root)
        classes = named_labels(listings, self.config.class_names)
        frames = [_distinct(listing.frame) for listing in listings]
        problems = [problem for listing in listings for problem in listing.problems]
        refuse(problems + duplicate_ids(pl.concat(frames)))
        units, not_chosen = self._chosen(frames, classes)
        units = self._decided(root, units, pl.concat([frame["id"] for frame in frames]), classes)
        skipped = [skip for listing in listings for skip in listing.skipped]
        return Index(
            units.with_columns(true_kind=true_kind()).with_row_index("unit").cast({"unit": pl.Int64}),
            classes,
            sorted(skipped, key=lambda s: (s.item, s.where, s.reason)),
            not_chosen,
        )

    def _chosen(self, frames: list[pl.DataFrame], classes: tuple[str, ...]) -> tuple[pl.DataFrame, dict[str, int]]:
        """The rows that are used, with their parts, sorted by id; and how many `limit` and `mix` did not take."""
        c = self.config
        parts = [divided(select(frames[0], c.limit), None if c.test_table else c.split)]
        if c.noise is not None:
            parts[0] = with_wrong_labels(parts[0], c.noise, classes)
        counts = {"limit": len(frames[0]) - len(parts[0]), "mix": 0}
        train = parts[0].filter(split="train")["label"]
        for frame in frames[1:]:
            if frame["origin"][0] == "test":
                parts.append(select(frame, c.test_limit).with_columns(split=pl.lit("test")))
                counts["limit"] += len(frame) - len(parts[-1])
            elif c.mix is not None:
                parts.append(mixed_in(frame, c.mix, train, classes))
                counts["mix"] += len(frame) - len(parts[-1])
        units = pl.concat(parts).sort("id")
        _refuse_leaks(units)
        return units, {name: count for name, count in counts.items() if count}

    def _decided(self, root: Path, units: pl.DataFrame, known: pl.Series, classes: tuple[str, ...]) -> pl.DataFrame:
        """Units with `decision`, null where nobody decided, and reviewed labels. known: ids of all that is listed."""
        path = self.config.decisions
        if path is None:
            return units.with_columns(decision=pl.lit(None, pl.String))
        given = dict(units.select("id", "label").iter_rows())
        found = read_decisions(inside(root, path), path, classes=classes, given=given, known=set(known))
        return decided(units, found)

    def _listings(self, root: Path) -> list[Listing]:
        """The input, then the test table and the one to mix in. Problems of all of them are reported together."""
        c = self.config
        readers = []
        if c.folder is not None:
            readers.append(lambda: list_folder(root, str(c.folder)))
        elif c.table is not None:
            readers.append(lambda: list_table(root, str(c.table), c.columns, "input"))
        else:
            readers.append(lambda: list_shards(root, c.shards, c.columns))
        if c.test_table is not None:
            readers.append(lambda: list_table(root, str(c.test_table), c.test_columns or c.columns, "test"))
        if c.mix is not None:
            mix = c.mix
            readers.append(lambda: list_table(root, mix.table, mix.columns.model_copy(update={"label": None}), "mix"))
        listings, problems = [], []
        for read in readers:
            try:
                listings.append(read())
            except DataError as error:
                problems.append(str(error))
        if problems:
            raise DataError("\n".join(problems))
        return listings

    def _contents(self, root: Path, units: pl.DataFrame) -> Iterator[tuple[int, bytes | str]]:
        c = self.config
        columns = {
            "input": c.columns,
            "test": c.test_columns or c.columns,
            "mix": c.mix.columns if c.mix else c.columns,
        }
        for origin, own in columns.items():
            positions = units.with_row_index("own").filter(pl.col("origin") == origin)
            for position, content in contents(root, positions.drop("own"), own.image, c.max_bytes):
                yield positions["own"][position], content

    def _check(self, content: bytes | str, pixels: np.ndarray) -> dict[str, Any]:
        """Decodes one image into `pixels` (size, size, 3); what it is, and why it is not kept."""
        if isinstance(content, str):
            reason, _, detail = content.partition(": ")
            return {"outcome": "failed", "reason": reason, "detail": detail}
        facts: dict[str, Any] = {"sha256": hashlib.sha256(content).hexdigest()}
        try:
            decoded = decode(content, max_pixels=self.config.max_pixels, side=self.config.size)
        except BadImage as bad:
            return {**facts, "outcome": "failed", "reason": bad.reason, "detail": bad.detail}
        width, height = decoded.width, decoded.height
        facts |= {"width": width, "height": height, "mode": decoded.mode, "pixels": pixel_digest(decoded.rgb)}
        facts["hash"] = perceptual_hash(np.asarray(decoded.rgb))
        pixels[:] = central_square(decoded.rgb, self.config.size)
        reason, detail = self._rejected(width, height, decoded.num_frames, largest_std(pixels))
        return {**facts, "outcome": "left_out" if reason else "kept", "reason": reason, "detail": detail}

    def _rejected(self, width: int, height: int, num_frames: int, std: float) -> tuple[str, str]:
        c = self.config
        if num_frames > 1:
            return "animation", f"{num_frames} frames or pages; a photo has one"
        if min(width, height) < c.min_side:
            return "too_small", f"{width} x {height}, min_side {c.min_side}"
        if std < c.min_std:
            return "uniform", f"standard deviation {std:.2f}, min_std {c.min_std:g}"
        return "", ""

    def merge(self, root: Path, shards: Sequence[Artifact], out: ArtifactWriter) -> None:
        """Joins the shards, leaves out duplicates, and writes images, samples, meta and figures.

        Raises:
            DataError: if the shards do not belong together, or no training image is left.
        """
        opened, about = _checked_shards(shards)
        units = pl.concat(opened).sort("unit").with_columns(copy_of=pl.lit(None, pl.String))
        units = units if self.config.keep_duplicates else leave_out_duplicates(units)
        units = self.used(leave_out_decided(units, str(self.config.decisions)))
        units = self._without_leaks(units, out)
        kept = units.filter(pl.col("outcome") == "kept")
        if not (kept["split"] == "train").any():
            reasons = units.filter(pl.col("outcome") != "kept").group_by("reason").len().sort("reason").rows()
            raise DataError(f"no training image is left of {len(units)}: {', '.join(f'{n} {r}' for r, n in reasons)}.")
        _account(units, about, out)
        pool = [np.load(shard.path("images.npy"), mmap_mode="r") for shard in shards]
        mean, std = self._write_images(kept, pool, out)
        reviewed = kept.with_columns(reviewed=pl.col("decision").is_not_null())
        samples = reviewed.with_row_index("index").cast({"index": pl.Int64}).select(
            "index", "id", "group", "split", "label", "true_label", "true_kind", "origin", "where",
            "width", "height", "mode", "sha256", *self.extra_columns, *self._columns_of_review(),
        )  # fmt: skip
        out.table("samples.parquet", samples)
        facts = {
            "size_px": self.config.size,
            "channels": 3,
            "rgb_mean": mean,
            "rgb_std": std,
            "has_truth": bool(samples.filter(split="train")["true_label"].count()),
            **self.facts(),
        }
        group = self.config.columns.group or "image"
        classes = self.classes(about["classes"])
        meta = Meta(self.config.name, self.domain, "classification", classes, group, facts)
        out.json("meta.json", asdict(meta))
        sheets = figures(units, lambda row: pool[row["source"]][row["position"]])
        for item in sheets:
            out.bytes(item.file, item.content)
        out.json("figures.json", [{"file": s.file, "title": s.title, "caption": s.caption} for s in sheets])

    def _without_leaks(self, units: pl.DataFrame, out: ArtifactWriter) -> pl.DataFrame:
        """Without near-duplicates across parts; all of them, in groups, go to `near_duplicates.parquet`."""
        out.table("near_duplicates.parquet", near_duplicates.groups(units, self.config.near_bits))
        if self.config.near_duplicates == "refuse":
            near_duplicates.refuse_leaks(units, self.config.near_bits)
        if self.config.near_duplicates != "leave_out":
            return units
        return near_duplicates.leave_out_leaks(units, self.config.near_bits)

    def _columns_of_review(self) -> list[str]:
        """`reviewed` (bool) where decisions were taken in, `url` where it is known."""
        columns = (self.config.columns, self.config.test_columns)
        has_url = any(c is not None and c.url is not None for c in columns)
        return [*(["reviewed"] if self.config.decisions else []), *(["url"] if has_url else [])]

    def _write_images(
        self, kept: pl.DataFrame, pool: list[np.ndarray], out: ArtifactWriter
    ) -> tuple[list[float], list[float]]:
        """`images.npy`, and mean and standard deviation of the training images per channel, of values in 0..1."""
        is_train = (kept["split"] == "train").to_numpy()
        places = kept.select("source", "position").rows()
        count, total, squares = 0, np.zeros(3, np.int64), np.zeros(3, np.int64)
        with out.open("images.npy") as file:
            _write_header(file, len(kept), self.config.size)
            for start in range(0, len(kept), _BLOCK):
                block = np.stack([pool[source][position] for source, position in places[start : start + _BLOCK]])
                file.write(block.tobytes())
                train = block[is_train[start : start + len(block)]].reshape(-1, 3).astype(np.int64)
                count, total, squares = count + len(train), total + train.sum(axis=0), squares + (train**2).sum(axis=0)
        mean = total / count
        std = np.sqrt(np.maximum(squares / count - mean**2, 0))
        return (mean / 255).tolist(), (std / 255).tolist()

    def open(self, artifact: Artifact) -> "WebNoisyData":
        return WebNoisyData(artifact)


class WebNoisyData:
    """Prepared images; `read` gives (size, size, 3) uint8. Memory-mapped, so any number of processes share it."""

    def __init__(self, artifact: Artifact) -> None:
        values = artifact.json("meta.json")
        self.meta = Meta(**{**values, "classes": tuple(values["classes"])})
        self.samples: pl.DataFrame = artifact.table("samples.parquet")
        self._images = np.load(artifact.path("images.npy"), mmap_mode="r")

    def read(self, row: int) -> np.ndarray:
        return np.asarray(self._images[row])


def build(config: Config) -> WebNoisy:
    return WebNoisy(config)


def for_new_data(config: Config, table: str) -> Config:
    """Settings that prepare everything decodable of a new table, tar or folder as the training data was; no labels.

    Args:
        table: its name, relative to the root it will be prepared with.
    """
    suffix = PurePosixPath(table).suffix.lower()
    places: dict[str, dict[str, Any]] = {
        ".csv": {"table": table},
        ".parquet": {"table": table},
        ".tar": {"shards": (table,)},
    }
    place = places.get(suffix, {"folder": table})
    columns = config.columns.model_copy(update=dict.fromkeys(("label", "true_label", "split", "group", "url")))
    kept = config.model_dump(include={"size", "max_pixels", "max_bytes"})
    everything = {
        "min_side": 1,
        "min_std": 0.0,
        "keep_duplicates": True,
        "near_duplicates": "keep",
        "split": GroupSplit(test=0),
    }
    return Config(**kept, **place, **everything, columns=columns)


def draft(table: Path) -> dict[str, Any]:
    """A recipe for a table, a folder of labels or a tar, filled in from what is there."""
    place: dict[str, Any]
    if table.is_dir():
        has_tars = any(table.glob("*.tar"))
        place = {"shards": [f"{table.name}/*.tar"]} if has_tars else {"folder": table.name}
    elif table.suffix.lower() == ".tar":
        place = {"shards": [table.name]}
    else:
        place = {"table": table.name, "columns": guessed_columns(table)}
    return {
        "description": f"An encoder pretrained on {table.name}, labels judged by small loss, and a classifier.",
        "domain": "webnoisy",
        "data": {"source": {"name": "webnoisy", **place, "size": 64}, "budget": 0.01},
        "pretrain": {
            "backbone": "small_cnn",
            "views": "image_two_crop",
            "learner": "joint_embedding",
            "fit": {"epochs": 50},
        },
        "pseudolabel": {"labeler": "small_loss"},
        "finetune": {"finetuner": "full", "fit": {"epochs": 10}},
        "evaluate": {"evaluators": ["classification", "knn"]},
        "quick": {"data.source.limit": 300, "pretrain.fit.epochs": 1, "finetune.fit.epochs": 2},
    }


def _write_header(file: BinaryIO, count: int, size: int) -> None:
    """Begins a .npy of `count` images. Written as a stream: on a full disk a memory map would kill the process."""
    shape = (count, size, size, 3)
    np.lib.format.write_array_header_1_0(file, {"descr": "|u1", "fortran_order": False, "shape": shape})


def _distinct(frame: pl.DataFrame) -> pl.DataFrame:
    """Ids that differ between inputs: `test/` and `mix/` before those of the test table and of what is mixed in."""
    prefix = {"input": "", "test": "test/", "mix": "mix/"}[frame["origin"][0]]
    own = pl.col("group").is_null() | (pl.col("group") == pl.col("id"))
    return frame.with_columns(
        id=prefix + pl.col("id"), group=pl.when(own).then(prefix + pl.col("id")).otherwise("group")
    )


def _refuse_leaks(units: pl.DataFrame) -> None:
    parts: dict[str, set[str]] = {}
    for group, split in units.select("group", "split").unique().iter_rows():
        parts.setdefault(group, set()).add(split)
    refuse_leak(parts, "group")


def _checked_shards(shards: Sequence[Artifact]) -> tuple[list[pl.DataFrame], dict[str, Any]]:
    """Units of every shard with `source`, its place in `shards`; and what all of them know."""
    about = [shard.json("shard.json") for shard in shards]
    if len({a["index"] for a in about}) != 1:
        raise DataError("the input changed while its shards were prepared. Prepare all shards again.")
    if sorted(a["shard"] for a in about) != list(range(about[0]["num_shards"])):
        raise DataError(f"shards {[a['shard'] for a in about]} given, {about[0]['num_shards']} are needed, each once.")
    opened = [shard.table("units.parquet").with_columns(source=pl.lit(n)) for n, shard in enumerate(shards)]
    return opened, about[0]


def _account(units: pl.DataFrame, about: dict[str, Any], out: ArtifactWriter) -> None:
    """Accounts `listed images` (what `limit` and `mix` did not take: a choice, not in the quarantine) and `images`."""
    account = out.account("images")
    account.keep(int((units["outcome"] == "kept").sum()))
    rejected = [
        Quarantined("image", row["id"], row["where"], row["outcome"], row["reason"], row["detail"], VERSION)
        for row in units.filter(pl.col("outcome") != "kept").iter_rows(named=True)
    ]
    rejected += [
        Quarantined("image", s["item"], s["where"], "failed" if s["failed"] else "left_out", s["reason"], s["detail"])
        for s in about["skipped"]
    ]
    for item in rejected:
        (account.fail if item.outcome == "failed" else account.leave_out)(item.reason)
    out.quarantine += sorted(rejected, key=lambda q: (q.item, q.where, q.reason))
    if about["not_chosen"]:
        listed = out.account("listed images")
        listed.keep(account.total)
        for name, count in about["not_chosen"].items():
            listed.leave_out(f"not chosen by {name}", count)
