"""A list of image addresses becomes a folder of images, a table of them, and an account of every address.

What became of an address is appended to `journal.jsonl` when it is known, after its file has its final name. Running
again asks only for what failed in passing, what a changed option now allows, and files that are gone or changed.
"""

import asyncio
import hashlib
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import polars as pl

from appssl.artifact import sha256_file, write_bytes, write_table, written_aside
from appssl.contracts import Account
from appssl.errors import AppsslError
from appssl.ops.crawl.fetch import Limits
from appssl.ops.crawl.journal import CrawlJournal, Result
from appssl.ops.crawl.table import images, joined, outcomes, read_addresses
from appssl.ops.crawl.workers import Options, fetch_all
from appssl.ops.images.decoding import BadImage, decode
from appssl.stages.frame import locked

JOURNAL = "journal.jsonl"
_MAX_PIXELS = 100_000_000  # larger ones are kept unread: whether they are used is a setting of the source
_SUFFIXES = {b"\xff\xd8\xff": "jpg", b"\x89PNG": "png", b"RIFF": "webp", b"GIF8": "gif", b"BM": "bmp"}  # else TIFF
Report = Callable[[int, int, int], None]


@dataclass(frozen=True)
class Crawled:
    """`num_asked`: addresses that were asked for in this run."""

    images: Path
    outcomes: Path
    account: Account
    num_asked: int


def crawl(table: Path, out: Path, options: Options, report: Report = lambda done, total, kept: None) -> Crawled:
    """Fetches what is to be fetched, and writes `images.csv`, `outcomes.parquet` and `outcomes.csv`.

    Args:
        report: is told addresses done, addresses to be done, and images kept, in this run.
    Raises:
        DataError: if the table is wrong. AppsslError: if the disk is full.
    """
    rows = read_addresses(table)
    with locked(out):
        for part in out.glob("images/*/.*.part"):
            part.unlink()  # of a run that was killed
        with CrawlJournal(out / JOURNAL) as journal:
            todo = _todo(rows, journal.latest(), out, options.limits)
            asyncio.run(fetch_all(todo, options, partial(_stored, out), _noting(journal, len(todo), report)))
            found = joined(rows, journal.latest())
        account, ended = _account(found), outcomes(found)
        for name, frame in {"outcomes.csv": ended, "outcomes.parquet": ended, "images.csv": images(found)}.items():
            with written_aside(out / name) as file:
                write_table(file, frame, Path(name).suffix)
    return Crawled(out / "images.csv", out / "outcomes.parquet", account, len(todo))


def _todo(rows: pl.DataFrame, latest: pl.DataFrame, out: Path, limits: Limits) -> pl.DataFrame:
    """`key` and `url` of every address without a final outcome."""
    wanted = rows.filter(pl.col("same_as").is_null()).unique("key", keep="first", maintain_order=True)
    known = latest.join(wanted.select("key"), on="key", how="semi")
    reopened = pl.col("passing") | (pl.col("max_bytes") < limits.max_bytes)
    if limits.allow_private:
        reopened |= pl.col("reason") == "private_address"
    if limits.ignore_robots:
        reopened |= pl.col("reason").is_in(["robots_disallowed", "crawl_delay"])
    kept = known.filter(pl.col("outcome") == "kept")
    lost = [
        key
        for key, path, digest in kept.select("key", "path", "sha256").iter_rows()
        if not _is_whole(out / path, digest)
    ]
    final = known.filter(~reopened.fill_null(False) & ~pl.col("key").is_in(lost))
    return wanted.select("key", "url").join(final, on="key", how="anti", maintain_order="left")


def _is_whole(path: Path, digest: str) -> bool:
    """Whether a kept file is as it was written; one that is not is removed."""
    if not path.is_file():
        return False
    is_whole = sha256_file(path) == digest
    if not is_whole:
        path.unlink()
    return is_whole


def _noting(journal: CrawlJournal, total: int, report: Report) -> Callable[[str, Result], None]:
    """Writes an outcome down, and reports."""
    num_done, num_kept = 0, 0

    def end(key: str, result: Result) -> None:
        nonlocal num_done, num_kept
        journal.add(key, result)
        num_done, num_kept = num_done + 1, num_kept + (result.outcome == "kept")
        report(num_done, total, num_kept)

    return end


def _stored(out: Path, key: str, content: bytes, known: Result) -> Result:
    """Writes an image under the name of its address, if it is one to its last byte."""
    try:
        decode(content, max_pixels=_MAX_PIXELS)
    except BadImage as bad:
        if bad.reason != "too_many_pixels":
            reason = "not_an_image" if bad.reason == "html" else bad.reason
            return replace(known, outcome="failed", reason=reason, message=str(bad))
    suffix = next((name for begin, name in _SUFFIXES.items() if content.startswith(begin)), "tif")
    path = f"images/{key[:2]}/{key}.{suffix}"
    write_bytes(out / path, content)
    return replace(known, outcome="kept", path=path, sha256=hashlib.sha256(content).hexdigest())


def _account(found: pl.DataFrame) -> Account:
    account = Account()
    for outcome, reason, count in found.group_by("outcome", "reason").len().iter_rows():
        if outcome == "kept":
            account.keep(count)
        elif outcome == "left_out":
            account.leave_out(reason, count)
        elif outcome == "failed":
            account.fail(reason, count)
        else:
            raise AppsslError(f"{count} address(es) have no outcome. Report this.")
    account.check("addresses")
    return account
