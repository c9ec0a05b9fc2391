"""What became of every address, appended as it is known: a crawl that is killed goes on from here.

A line holds no address, only its SHA-256. The last line of an address counts.
"""

import json
import os
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from itertools import islice
from pathlib import Path
from typing import Any, Literal

import polars as pl

from appssl.errors import AppsslError
from appssl.ops.journal import read_events

_CHUNK = 20_000  # lines that are Python objects at once
_SCHEMA: dict[str, Any] = {
    "key": pl.String, "outcome": pl.String, "reason": pl.String, "status": pl.Int64, "bytes": pl.Int64,
    "sha256": pl.String, "attempts": pl.Int64, "content_type": pl.String, "message": pl.String, "path": pl.String,
    "passing": pl.Boolean, "max_bytes": pl.Int64,
}  # fmt: skip


@dataclass(frozen=True)
class Result:
    """How one address ended.

    Attributes:
        passing: another attempt may end otherwise. status: of the last answer. attempts: in the run that decided.
        path: of a kept file, relative to the folder. max_bytes: the limit when it was decided.
    """

    outcome: Literal["kept", "left_out", "failed"]
    reason: str = ""
    message: str = ""
    passing: bool = False
    status: int | None = None
    bytes: int | None = None
    sha256: str | None = None
    content_type: str | None = None
    path: str | None = None
    attempts: int = 0
    max_bytes: int | None = None


class CrawlJournal:
    """An open journal; used by one process at a time."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._handle = os.open(path, os.O_RDWR | os.O_CREAT | os.O_APPEND, 0o644)
        size = os.fstat(self._handle).st_size
        if size and os.pread(self._handle, 1, size - 1) != b"\n":
            os.write(self._handle, b"\n")  # closes the half line of a crash, which reading then skips

    def __enter__(self) -> "CrawlJournal":
        return self

    def __exit__(self, *_: object) -> None:
        os.close(self._handle)

    def add(self, key: str, result: Result) -> None:
        """
        Raises:
            AppsslError: if the disk is full.
        """
        line = json.dumps({"event": "outcome", "key": key, **asdict(result)}).encode() + b"\n"
        try:
            while line:
                line = line[os.write(self._handle, line) :]
        except OSError as error:
            message = f"{self.path}: cannot be written: {error.strerror}. Free space; the same command goes on."
            raise AppsslError(message) from error

    def latest(self) -> pl.DataFrame:
        """One row per address (`key` and the fields of `Result`)."""
        lines = (event for event in read_events(self.path) if event["event"] == "outcome")
        parts = [pl.DataFrame(schema=_SCHEMA), *_frames(lines)]
        return pl.concat(parts).unique("key", keep="last", maintain_order=True)


def _frames(lines: Iterator[dict[str, Any]]) -> Iterator[pl.DataFrame]:
    while chunk := list(islice(lines, _CHUNK)):
        yield pl.DataFrame([{name: line.get(name) for name in _SCHEMA} for line in chunk], schema=_SCHEMA)
