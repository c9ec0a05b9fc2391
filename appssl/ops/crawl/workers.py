"""The workers of a crawl: they take addresses from the queue, slow down where told to, and hand on what came."""

import asyncio
from collections.abc import Awaitable, Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace

import polars as pl

from appssl.errors import SettingsError
from appssl.ops.crawl.connection import host_of, session
from appssl.ops.crawl.fetch import LONGEST_PAUSE, Answer, Fetcher, Limits, not_asked
from appssl.ops.crawl.journal import Result
from appssl.ops.crawl.queue import Job, Queue
from appssl.ops.crawl.rules import AGENT, Refused, parsed
from appssl.version import __version__

_NUM_STORING = 2  # images decoded at once: each may need several hundred megabytes


@dataclass(frozen=True)
class Options:
    """How to crawl. `retries`: further attempts of an address in a run. `backoff_seconds`: before the first of them."""

    per_host: int = 2
    parallel: int = 16
    retries: int = 3
    backoff_seconds: float = 1.0
    contact: str = ""
    limits: Limits = field(default_factory=Limits)

    def __post_init__(self) -> None:
        """
        Raises:
            SettingsError: if the contact cannot stand in a header.
        """
        if not (self.contact.isascii() and self.contact.isprintable()):
            raise SettingsError(f"--contact {self.contact!r}: give a page or e-mail address in plain letters.")

    @property
    def agent(self) -> str:
        """The User-Agent that is sent."""
        return f"{AGENT}/{__version__}" + (f" (+{self.contact})" if self.contact else "")


async def fetch_all(
    todo: pl.DataFrame,
    options: Options,
    store: Callable[[str, bytes, Result], Result],
    end: Callable[[str, Result], None],
) -> None:
    """Gives every address an outcome.

    Args:
        todo: `key` and `url`. store: keeps an image or says why not; called in threads. end: is told each outcome.
    """
    asyncio.get_running_loop().set_default_executor(ThreadPoolExecutor(options.parallel))  # looks up names
    queue = Queue(_hosts(todo, end), per_host=options.per_host)
    with ThreadPoolExecutor(_NUM_STORING) as storing:
        async with session(options.agent, allow_private=options.limits.allow_private) as opened:
            worker = _Worker(queue, Fetcher(opened, queue, options.limits), options)

            async def stored(key: str, answer: Answer) -> Result:
                if answer.content is None:
                    return answer.result
                loop = asyncio.get_running_loop()
                return await loop.run_in_executor(storing, store, key, answer.content, answer.result)

            await asyncio.gather(*(worker.work(stored, end) for _ in range(options.parallel)))


def _hosts(todo: pl.DataFrame, end: Callable[[str, Result], None]) -> Iterator[tuple[str, Iterator[Job]]]:
    """Hosts with most addresses first, which need the most time. Addresses that are none end here."""
    names = pl.Series("host", [_host(key, url, end) for key, url in todo.iter_rows()], dtype=pl.String)
    ordered = todo.with_columns(names).drop_nulls("host").with_row_index("row")
    ordered = ordered.sort(pl.len().over("host"), "host", "row", descending=[True, False, False])
    runs = ordered.select(pl.col("host").rle()).unnest("host")
    first = 0
    for count, host in runs.select("len", "value").iter_rows():
        yield host, _jobs(ordered.slice(first, count), host)
        first += count


def _host(key: str, url: str, end: Callable[[str, Result], None]) -> str | None:
    try:
        return host_of(parsed(url))
    except Refused as refused:
        end(key, not_asked(refused))
        return None


def _jobs(rows: pl.DataFrame, host: str) -> Iterator[Job]:
    for key, url in rows.select("key", "url").iter_rows():
        yield Job(host, key, url)


class _Worker:
    """What all workers do."""

    def __init__(self, queue: Queue, fetcher: Fetcher, options: Options) -> None:
        self._queue, self._fetcher, self._options = queue, fetcher, options

    async def work(self, store: Callable[[str, Answer], Awaitable[Result]], end: Callable[[str, Result], None]) -> None:
        while job := await self._queue.take():
            closed = self._queue.pace(job.host).closed
            if closed is not None:
                self._queue.leave(job.host)
                end(job.key, replace(closed, attempts=job.attempts))
                self._queue.done(job)
                continue
            answer = await self._fetcher.fetch(job)
            tried = replace(job, attempts=job.attempts + 1)
            self._slow_down(answer, tried.attempts)
            if answer.content is None and answer.result.passing and job.attempts < self._options.retries:
                self._queue.again(tried, wait=self._backoff(tried.attempts))
                continue
            end(job.key, replace(await store(job.key, answer), attempts=tried.attempts))
            self._queue.done(job)

    def _slow_down(self, answer: Answer, attempts: int) -> None:
        """Pauses a host that is silent or asks for it, and gives it up for this run when that takes too long."""
        pace = self._queue.pace(answer.host)
        pace.failures = pace.failures + 1 if answer.is_silent else 0
        wait = answer.wait
        if wait is None and answer.is_silent:
            wait = self._backoff(pace.failures)
        elif wait is None and answer.result.status == 429:
            wait = self._backoff(attempts)
        if wait is None:
            return
        if wait > LONGEST_PAUSE or pace.failures > self._options.retries:
            why = f"asks to wait {wait:.0f} s" if answer.wait is not None else "gave no answer several times in a row"
            message = f"{answer.host} {why}; asked again in the next run"
            pace.close(Result("failed", answer.result.reason, message, passing=True))
        else:
            self._queue.pause(answer.host, wait)

    def _backoff(self, attempts: int) -> float:
        return min(LONGEST_PAUSE, self._options.backoff_seconds * 2.0 ** (attempts - 1))
