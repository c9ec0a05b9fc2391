"""One image from the web: robots.txt, redirects, opt-out, size and time are looked at before bytes are believed.

robots.txt (RFC 9309, with `*`, `$` and the longest match): asked for once per origin and run. An answer 4xx but 429
means that all is allowed. One that cannot be had (no answer, 5xx, 429) means that nothing is, for now: the addresses
of that host fail, and the next run asks again. `Crawl-delay` is kept up to a minute; a host that wants more is left
out.
"""

import asyncio
from dataclasses import dataclass, replace

import aiohttp
from protego import Protego
from yarl import URL

from appssl.ops.crawl.connection import Ended, ask, host_of, read_content, redirect, shown
from appssl.ops.crawl.journal import Result
from appssl.ops.crawl.queue import Job, Queue
from appssl.ops.crawl.rules import AGENT, Refused, opted_out, parsed, retry_after

LONGEST_PAUSE = 60.0  # seconds that a host may ask to wait within a run
_MOST_REDIRECTS = 5
_MOST_ROBOTS = 512_000  # bytes that are read; RFC 9309 wants at least 500 KiB
_MOST_ORIGINS = 1024  # whose robots.txt is remembered
_AGAIN = (408, 425, 429)  # answers below 500 that another attempt can change
_BUSY = (429, 503)


@dataclass(frozen=True)
class Limits:
    """`timeout_seconds`: of one attempt in all, redirects included. `max_bytes`: of one file."""

    timeout_seconds: float = 30.0
    max_bytes: int = 20_000_000
    allow_private: bool = False
    ignore_robots: bool = False


@dataclass(frozen=True)
class Answer:
    """How an attempt went: the image, or why there is none.

    Attributes:
        result: what is known; its outcome counts where `content` is None. host: the one that answered last.
        is_silent: the host is as good as gone. wait: seconds that it asks to wait.
    """

    result: Result
    host: str
    content: bytes | None = None
    is_silent: bool = False
    wait: float | None = None


class _Place:
    """The place at a host that an attempt holds. It is given back before another one is waited for."""

    def __init__(self, queue: Queue, host: str) -> None:
        self._queue, self.host = queue, host
        self._is_held = True

    async def move(self, host: str) -> None:
        if host != self.host or not self._is_held:
            self.leave()
            self.host = host
            await self._queue.enter(host)
            self._is_held = True

    def leave(self) -> None:
        if self._is_held:
            self._is_held = False
            self._queue.leave(self.host)


class Fetcher:
    """Fetches addresses of a queue."""

    def __init__(self, opened: aiohttp.ClientSession, queue: Queue, limits: Limits) -> None:
        self._session, self._queue, self._limits = opened, queue, limits
        self._robots: dict[URL, asyncio.Task[Protego | None]] = {}

    async def fetch(self, job: Job) -> Answer:
        """One attempt. The place at the host of the job, which the caller took, is given back."""
        place = _Place(self._queue, job.host)
        try:
            result, content = await self._followed(parsed(job.url), place)
            return Answer(result, place.host, content)
        except Refused as refused:
            return Answer(not_asked(refused), place.host)
        except Ended as ended:
            return Answer(ended.result, place.host, is_silent=ended.is_silent, wait=ended.wait)
        finally:
            place.leave()

    async def _followed(self, url: URL, place: _Place) -> tuple[Result, bytes]:
        """The image behind an address and its redirects; each of them has to be allowed."""
        clock, left = asyncio.get_running_loop().time, self._limits.timeout_seconds
        for _ in range(_MOST_REDIRECTS + 1):
            await self._check_robots(url, place)
            if (closed := self._queue.pace(host_of(url)).closed) is not None:
                raise Ended(closed)
            await place.move(host_of(url))
            begun = clock()
            found = await ask(self._session, url, left, self._image)
            left -= clock() - begun
            if not isinstance(found, URL):
                return found
            url = found
        raise Ended(Result("failed", "too_many_redirects", f"more than {_MOST_REDIRECTS}"))

    async def _image(self, answer: aiohttp.ClientResponse) -> tuple[Result, bytes] | URL:
        self._queue.pace(host_of(answer.url)).has_answered = True
        if (target := redirect(answer)) is not None:
            return target
        known = Result("failed", status=answer.status, content_type=shown(answer.headers.get("Content-Type")))
        most = self._limits.max_bytes
        if answer.status != 200:
            passing = answer.status >= 500 or answer.status in _AGAIN
            result = replace(known, reason=f"http_{answer.status}", message=shown(answer.reason) or "", passing=passing)
            raise Ended(result, wait=_asked_wait(answer))
        if said := opted_out(answer.headers.items()):
            raise Ended(replace(known, outcome="left_out", reason="opted_out", message=said))
        large = replace(
            known, outcome="left_out", reason="too_large", message=f"more than {most} bytes", max_bytes=most
        )
        if (answer.content_length or 0) > most:
            raise Ended(replace(large, message=f"{answer.content_length} bytes are announced, limit {most}"))
        content = await read_content(answer, most + 1)
        if len(content) > most:
            raise Ended(large)
        return replace(known, bytes=len(content)), content

    async def _check_robots(self, url: URL, place: _Place) -> None:
        """Raises Refused if robots.txt does not allow the address, Ended if it cannot be had."""
        if self._limits.ignore_robots:
            return
        rules = await self._rules(url.origin(), place)
        if rules is None:
            return
        if not rules.can_fetch(str(url), AGENT):
            raise Refused("robots_disallowed", f"robots.txt of {url.host} does not allow it")
        delay = float(rules.crawl_delay(AGENT) or 0)
        if delay > LONGEST_PAUSE:
            raise Refused("crawl_delay", f"robots.txt asks for {delay:g} s between requests, limit {LONGEST_PAUSE:g} s")
        pace = self._queue.pace(host_of(url))
        if delay > pace.delay:
            pace.delay = delay
            await asyncio.sleep(delay)  # robots.txt was the first request

    async def _rules(self, origin: URL, place: _Place) -> Protego | None:
        """Rules of an origin, None if there are none; those who want the same wait for one request."""
        if origin not in self._robots:
            if len(self._robots) >= _MOST_ORIGINS:
                del self._robots[next(iter(self._robots))]
            self._robots[origin] = asyncio.ensure_future(self._read_rules(origin, place))
        else:
            place.leave()  # who waits for another attempt holds nothing that it may need
        task = self._robots[origin]
        try:
            return await task
        except (Ended, Refused):
            if self._robots.get(origin) is task:
                del self._robots[origin]
            raise

    async def _read_rules(self, origin: URL, place: _Place) -> Protego | None:
        url = origin.with_path("/robots.txt")
        for num_redirects in range(_MOST_REDIRECTS + 1):
            await place.move(host_of(url))
            try:
                found = await ask(self._session, url, self._limits.timeout_seconds, _robots)
            except Refused as refused:
                if num_redirects == 0 and refused.reason in ("private_address", "bad_address"):
                    raise  # this is the host of the image
                raise Ended(_no_rules(refused.detail), is_silent=True) from None
            if not isinstance(found, URL):
                return found
            url = found
        return None  # RFC 9309: as if there were none


async def _robots(answer: aiohttp.ClientResponse) -> Protego | URL | None:
    if (target := redirect(answer)) is not None:
        return target
    if answer.status >= 500 or answer.status == 429:
        raise Ended(_no_rules(f"status {answer.status}"), is_silent=True, wait=_asked_wait(answer))
    if answer.status != 200:
        return None
    return Protego.parse((await read_content(answer, _MOST_ROBOTS)).decode("utf-8-sig", "replace"))


def _no_rules(why: str) -> Result:
    message = f"robots.txt cannot be had ({why}), so nothing is allowed for now"
    return Result("failed", "robots_unreachable", message, passing=True)


def _asked_wait(answer: aiohttp.ClientResponse) -> float | None:
    return retry_after(answer.headers.get("Retry-After")) if answer.status in _BUSY else None


def not_asked(refused: Refused) -> Result:
    """The outcome of an address for which no request is made."""
    return Result("failed" if refused.reason == "bad_address" else "left_out", refused.reason, refused.detail)
