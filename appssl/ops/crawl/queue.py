"""Which address is asked for next: hosts take turns, each with its own bound, pauses and further attempts.

Some hosts are open at a time, and memory holds no object per address. Until a host has answered a request for an image
it gets one at a time, so that a dead one keeps one worker waiting and not several.
"""

import asyncio
import time
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass, field

from appssl.ops.crawl.journal import Result

NUM_OPEN = 256  # hosts among which to choose
_MOST_AGAIN = 64  # addresses of a host that wait for another attempt before the others go on
_MOST_PACES = 4096  # hosts that are remembered; redirects lead to hosts that are not open


@dataclass(frozen=True)
class Job:
    """One address to fetch, and the attempts before."""

    host: str
    key: str
    url: str
    attempts: int = 0


@dataclass
class Pace:
    """How fast a host may be asked.

    Attributes:
        active: requests under way. not_before: monotonic time. delay: seconds between requests, by its robots.txt.
        failures: attempts in a row without any answer. closed: what becomes of its other addresses in this run.
    """

    active: int = 0
    not_before: float = 0.0
    delay: float = 0.0
    failures: int = 0
    has_answered: bool = False
    closed: Result | None = None

    def close(self, result: Result) -> None:
        self.closed, self.not_before, self.delay = result, 0.0, 0.0


@dataclass
class _Open:
    """A host with addresses left: those not begun, those to be tried again from a time on, and those under way."""

    name: str
    rest: Iterator[Job]
    again: list[tuple[float, Job]] = field(default_factory=list)
    num_under_way: int = 0

    def __post_init__(self) -> None:
        self._following: Job | None = next(self.rest, None)

    @property
    def has_ended(self) -> bool:
        return self._following is None and not self.again and self.num_under_way == 0

    def take(self, now: float) -> Job | None:
        """Takes an address out; None if there is none, or none yet.

        Further attempts come last, so that a few addresses that hang do not make a host look dead.
        """
        if self._following is not None and len(self.again) < _MOST_AGAIN:
            found, self._following = self._following, next(self.rest, None)
            return found
        for position, (since, job) in enumerate(self.again):
            if since <= now:
                del self.again[position]
                return job
        return None


class Queue:
    """Hands out addresses to any number of workers of one event loop."""

    def __init__(self, hosts: Iterator[tuple[str, Iterator[Job]]], *, per_host: int, num_open: int = NUM_OPEN) -> None:
        """
        Args:
            hosts: name and addresses of each, read as they are needed. per_host: requests under way at once to a host.
        """
        self._hosts = hosts
        self._per_host, self._num_open = per_host, num_open
        self._turns: deque[_Open] = deque()
        self._open: dict[str, _Open] = {}
        self._paces: dict[str, Pace] = {}
        self._changed = asyncio.Event()

    async def take(self) -> Job | None:
        """The next address, with a place at its host, which `leave` gives back; None when all are `done`."""
        while True:
            self._open_more()
            if not self._turns:
                return None
            now = time.monotonic()
            if job := self._next(now):
                self._enter(job.host, now)
                self._open[job.host].num_under_way += 1
                return job
            await self._wait(now)

    def _next(self, now: float) -> Job | None:
        for _ in range(len(self._turns)):
            host = self._turns[0]
            self._turns.rotate(-1)
            if self._is_free(host.name, now) and (job := host.take(now)):
                return job
        return None

    def done(self, job: Job) -> None:
        """The address has an outcome."""
        host = self._open[job.host]
        host.num_under_way -= 1
        if host.has_ended:
            self._turns.remove(host)
            del self._open[job.host]
        self._changed.set()

    def again(self, job: Job, *, wait: float) -> None:
        """The address gets another attempt after some seconds."""
        host = self._open[job.host]
        host.again.append((time.monotonic() + wait, job))
        host.num_under_way -= 1
        self._changed.set()

    async def enter(self, name: str) -> None:
        """Waits for a place at a host to which a redirect leads."""
        while not self._is_free(name, now := time.monotonic()):
            await self._wait(now)
        self._enter(name, now)

    def leave(self, name: str) -> None:
        """Gives a place back."""
        self.pace(name).active -= 1
        self._changed.set()

    def pause(self, name: str, seconds: float) -> None:
        """No request to a host for some seconds."""
        pace = self.pace(name)
        pace.not_before = max(pace.not_before, time.monotonic() + seconds)

    def pace(self, name: str) -> Pace:
        if name not in self._paces and len(self._paces) >= _MOST_PACES:
            kept = {other: pace for other, pace in self._paces.items() if pace.active or other in self._open}
            self._paces = kept
        return self._paces.setdefault(name, Pace())

    def _is_free(self, name: str, now: float) -> bool:
        pace = self.pace(name)
        most = self._per_host if pace.has_answered and not pace.delay else 1
        return pace.active < most and pace.not_before <= now

    def _enter(self, name: str, now: float) -> None:
        pace = self.pace(name)
        pace.active += 1
        pace.not_before = max(pace.not_before, now + pace.delay)

    def _open_more(self) -> None:
        while len(self._turns) < self._num_open and (following := next(self._hosts, None)):
            host = _Open(*following)
            self._open[host.name] = host
            self._turns.append(host)

    async def _wait(self, now: float) -> None:
        """Until something changed, or the earliest pause ends."""
        times = [pace.not_before for pace in self._paces.values()]
        times += [since for host in self._turns for since, _ in host.again]
        ends = min((at - now for at in times if at > now), default=None)
        self._changed.clear()
        try:
            await asyncio.wait_for(self._changed.wait(), ends)
        except TimeoutError:
            return
