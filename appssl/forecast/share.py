"""A share of the inputs as if it were all of them: for a trial.

A source gives every n-th unit (slide, person, image, file) to shard 0 of n. How many units there are it need not say:
a shard with a number beyond the last unit is empty.
"""

import shutil
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from appssl import registry
from appssl.artifact import Artifact, ArtifactWriter
from appssl.plan import read_config

BEYOND = 2**30  # more than there are units
_STEPS_DOWN = (2**20, 2**16, 2**12, 2**8, 2**4, 1)


@dataclass(frozen=True)
class Units:
    """How many units there are (above 16: within an eighth), and seconds that one takes beyond an empty shard."""

    number: int
    seconds: float

    def share(self, number: float) -> float:
        """Share of the inputs that shard 0 has where it is to have about `number` units."""
        return -(-self.number // self.shards(number)) / self.number

    def shards(self, number: float) -> int:
        return max(1, round(self.number / max(number, 1)))


class _WholeWriter(ArtifactWriter):
    """Writes a shard that says of itself that there is no other, so that it can be merged alone."""

    def json(self, name: str, value: Any) -> None:
        only = {"shard": 0, "num_shards": 1} if name == "shard.json" and "num_shards" in value else {}
        super().json(name, {**value, **only} if only else value)


def prepare_share(source: Any, root: Path, shard: int, num_shards: int, out: Path) -> Artifact:
    writer = _WholeWriter(out, "shard", settings_digest="", inputs={})
    source.prepare(root, shard, num_shards, writer)
    return writer.finish()


def count_units(source: Any, root: Path, folder: Path) -> Units:
    """Counts the units of a source by looking which shards of very many are empty. Writes into `folder`."""
    took: dict[bool, list[float]] = {True: [], False: []}

    def content(shard: int) -> dict[str, Any]:
        begun = time.perf_counter()
        made = prepare_share(source, root, shard, BEYOND, folder).manifest["files"]
        files = {name: about["sha256"] for name, about in made.items() if name != "shard.json"}
        shutil.rmtree(folder)
        if empty:
            took[files != empty].append(time.perf_counter() - begun)
        return files

    empty: dict[str, Any] = {}
    empty = content(BEYOND - 1)
    last, high = 0, BEYOND  # unit `last` is there, unit `high` is not
    for shard in _STEPS_DOWN:
        if content(shard) != empty:
            last = shard
            break
        high = shard
    while high - last > max(1, last // 8):
        middle = max(last + 1, round((max(last, 1) * high) ** 0.5))
        if content(middle) != empty:
            last = middle
        else:
            high = middle
    if not took[True]:
        content(0)
    each = sum(took[True]) / len(took[True]) - (sum(took[False]) / len(took[False]) if took[False] else 0.0)
    return Units(high, max(each, 1e-6))


def main() -> None:
    """`CONFIG SHARD NUM_SHARDS OUT`: prepares a share as a process of its own."""
    config, shard, num_shards, out = sys.argv[-4:]
    settings = read_config(Path(config), "prepare").settings
    source = registry.build("sources", settings.source)
    prepare_share(source, Path(settings.root), int(shard), int(num_shards), Path(out))
