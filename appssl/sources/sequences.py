"""Sequences without times, as public benchmarks have them: a line per user, and the attributes of items.

`interactions` is a text file, `user item item ...` in every line, items in order of time. `items` is a JSON object, the
attributes of each item as a list; as the text `a|b|c` they are the column `attributes` of an item table with the column
`item_id`, of which features are made as of any other (`multi`, `patterns`). What an event, a user and an item must be
to stay is as in sources/recsys. The place in the sequence stands for the time, so only `split: {kind: last}` makes
sense: the last event of each user is the test. Models are then trained on what others did later. Both files are read as
a whole.
"""

import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Literal

import polars as pl
from pydantic import Field, model_validator

from appssl.artifact import Artifact, ArtifactWriter, sha256_file
from appssl.errors import NOT_JSON, DataError
from appssl.ops.interactions.store import Split
from appssl.ops.paths import inside
from appssl.sources import recsys

_BEGIN = 10**9  # seconds; far enough from 1970 that no place in a sequence looks like another unit of time
_LOG, _ITEMS = "sequences.csv", "attributes.csv"


class Config(recsys.Config):
    name: Literal["sequences"] = "sequences"  # type: ignore[assignment]
    interactions: str = Field("sequences.txt", description="a line per user: the user, then items in order of time")
    items: str = Field("attributes.json", description="JSON object: item -> list of its attributes")
    split: Split = Field(Split(kind="last"), description="last: the last event of each user is the test")

    @model_validator(mode="after")
    def _no_times(self) -> "Config":
        if self.split.kind != "last":
            raise ValueError("sequences have no times to divide them by; split.kind must be last")
        return self


class Sequences:
    def __init__(self, config: Config) -> None:
        self.config = config

    def inputs(self, root: Path) -> list[Path]:
        return [root / self.config.interactions, root / self.config.items]

    def prepare(self, root: Path, shard: int, num_shards: int, out: ArtifactWriter) -> None:
        with self._tables(root) as folder:
            self._inner().prepare(folder, shard, num_shards, out)
        for what, name in (("sequences", self.config.interactions), ("attributes", self.config.items)):
            out.input(f"table:{what}", sha256_file(inside(root, name)))

    def merge(self, root: Path, shards: Sequence[Artifact], out: ArtifactWriter) -> None:
        with self._tables(root) as folder:
            self._inner().merge(folder, shards, out)

    def open(self, artifact: Artifact) -> recsys.RecsysData:
        return recsys.RecsysData(artifact)

    def _inner(self) -> recsys.Recsys:
        own = {"name": "recsys", "interactions": _LOG, "items": _ITEMS, "item_id": "item_id"}
        return recsys.Recsys(recsys.Config.model_validate({**self.config.plain(), **own}))

    @contextmanager
    def _tables(self, root: Path) -> Iterator[Path]:
        """Folder with log and items as tables."""
        with TemporaryDirectory() as folder:
            events = read_sequences(inside(root, self.config.interactions))
            events.write_csv(Path(folder) / _LOG)
            read_attributes(inside(root, self.config.items)).write_csv(Path(folder) / _ITEMS)
            yield Path(folder)


def read_sequences(path: Path) -> pl.DataFrame:
    """Columns user_id, item_id (text) and timestamp (seconds: the place in the sequence), a row for each event.

    A user without items gets a row without item, which is a fault of the log.
    Raises:
        DataError: if the file is missing, is no text, or holds no line.
    """
    try:
        lines = [line.split() for line in path.read_text(encoding="utf-8").splitlines() if line.strip()]
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"{path}: cannot be read as text: {error}. Is data.root right?") from None
    if not lines:
        raise DataError(f"{path}: holds no sequences. A line is a user and then the items, apart by spaces.")
    items = pl.Series([line[1:] or [""] for line in lines], dtype=pl.List(pl.String))
    table = pl.DataFrame({"user_id": [line[0] for line in lines], "item_id": items})
    places = table.with_columns(timestamp=pl.int_ranges(_BEGIN, _BEGIN + pl.col("item_id").list.len()))
    return places.explode("item_id", "timestamp")


def read_attributes(path: Path) -> pl.DataFrame:
    """Columns item_id and attributes (text, apart by `|`), a row for each item.

    Raises:
        DataError: if the file is missing or not of this form.
    """
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, *NOT_JSON) as error:
        raise DataError(f"{path}: cannot be read as JSON: {error}. Is data.root right?") from None
    if not isinstance(found, dict) or not found:
        raise DataError(f"{path}: must be a JSON object, item -> list of attributes.")
    wrong = [item for item, values in found.items() if not isinstance(values, list)]
    if wrong:
        raise DataError(f"{path}: attributes of {len(wrong)} item(s) are no list, such as {wrong[0]!r}.")
    return pl.DataFrame(
        {"item_id": list(found), "attributes": ["|".join(map(str, values)) for values in found.values()]}
    )


def build(config: Config) -> Sequences:
    return Sequences(config)
