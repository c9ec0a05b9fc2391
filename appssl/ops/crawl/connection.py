"""Connections to servers that nobody vouches for: only to public machines, within a time, and no more than is wanted.

The address of the machine is checked where the connection is opened, for every connection: a name that resolves
otherwise a moment later, an address written as a number, and a redirect all come by there. Proxies, cookies and
passwords of the environment are not used, and content codings are not asked for.
"""

import asyncio
import socket
import ssl
import zlib
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import replace
from typing import Any, TypeVar
from urllib.parse import urljoin

import aiohttp
from yarl import URL

from appssl.ops.crawl.journal import Result
from appssl.ops.crawl.rules import Refused, is_public, parsed

_CONNECT_SECONDS = 10.0
_BLOCK = 1 << 16
_REDIRECTS = (301, 302, 303, 307, 308)
T = TypeVar("T")


class _NotPublic(OSError):
    """An OSError, so that other addresses of the same name are still tried."""


class Ended(Exception):
    """An attempt is over without an image."""

    def __init__(self, result: Result, *, is_silent: bool = False, wait: float | None = None) -> None:
        self.result, self.is_silent, self.wait = result, is_silent, wait
        super().__init__(result.reason)


@asynccontextmanager
async def session(agent: str, *, allow_private: bool) -> AsyncIterator[aiohttp.ClientSession]:
    """Connections to public machines only, unless others are allowed. agent: the User-Agent that is sent."""

    def checked(info: Any) -> socket.socket:
        family, kind, protocol, _, place = info
        if not allow_private and not is_public(str(place[0])):
            raise _NotPublic("the machine is not on the public internet")
        return socket.socket(family, kind, protocol)

    connector = aiohttp.TCPConnector(limit=0, socket_factory=checked, keepalive_timeout=5)
    headers = {"User-Agent": agent, "Accept": "image/*, */*;q=0.1", "Accept-Encoding": "identity"}
    async with aiohttp.ClientSession(
        connector=connector,
        headers=headers,
        cookie_jar=aiohttp.DummyCookieJar(),
        auto_decompress=False,
        trust_env=False,
        timeout=aiohttp.ClientTimeout(total=None, sock_connect=_CONNECT_SECONDS),
    ) as opened:
        yield opened


async def ask(
    opened: aiohttp.ClientSession, url: URL, seconds: float, read: Callable[[aiohttp.ClientResponse], Awaitable[T]]
) -> T:
    """What `read` makes of the answer, both within the time; troubles of the network end the attempt."""
    has_answered = False
    try:
        async with asyncio.timeout(max(seconds, 0)), opened.get(url, allow_redirects=False) as answer:
            has_answered = True
            return await read(answer)
    except (TimeoutError, OSError, aiohttp.ClientError, ValueError) as error:
        raise Ended(_trouble(error, seconds), is_silent=not has_answered) from None


def redirect(answer: aiohttp.ClientResponse) -> URL | None:
    """Where an answer leads. Raises Refused if no request may go there."""
    location = answer.headers.get("Location")
    if answer.status not in _REDIRECTS or location is None:
        return None
    try:
        target = urljoin(str(answer.url), location)
    except ValueError:
        raise Refused("bad_address", "redirect to what is no address") from None
    try:
        return parsed(target)
    except Refused as refused:
        raise Refused(refused.reason, f"redirect: {refused.detail}") from None


async def read_content(answer: aiohttp.ClientResponse, most: int) -> bytes:
    """The first bytes of the content, decompressed where a server compresses unasked."""
    content = bytearray()
    async for block in answer.content.iter_chunked(_BLOCK):
        content += block
        if len(content) >= most:
            break
    coding = answer.headers.get("Content-Encoding", "identity").strip().lower()
    if coding in ("identity", ""):
        return bytes(content[:most])
    if coding not in ("gzip", "x-gzip"):
        result = Result("failed", "content_encoding", f"sent as {shown(coding)}, which was not asked for")
        raise Ended(replace(result, status=answer.status))
    try:
        return zlib.decompressobj(wbits=31).decompress(bytes(content), most)
    except zlib.error as error:
        raise Ended(Result("failed", "content_encoding", f"gzip: {error}", status=answer.status)) from None


def _trouble(error: Exception, seconds: float) -> Result:
    """The outcome that an error of the network stands for.

    Raises:
        Refused: private_address, bad_address.
    """
    if isinstance(getattr(error, "os_error", None), _NotPublic):
        raise Refused("private_address", "the machine is not on the public internet; --allow-private fetches it")
    if isinstance(error, TimeoutError):
        return Result("failed", "timeout", f"not done within {seconds:.3g} s", passing=True)
    if isinstance(error, ValueError) and not isinstance(error, OSError):  # such as a label of the name over 63 bytes
        raise Refused("bad_address", "the name of the host cannot be looked up")
    message = shown(f"{type(error).__name__}: {error}") or ""
    if isinstance(error, aiohttp.ClientPayloadError):
        return Result("failed", "incomplete", message, passing=True)
    if isinstance(error, aiohttp.ClientConnectorDNSError):
        return Result("failed", "host_not_found", message, passing=True)
    if isinstance(error, aiohttp.ClientSSLError | ssl.SSLError | ssl.CertificateError):
        return Result("failed", "tls", message, passing=True)
    return Result("failed", "connection", message, passing=True)


def host_of(url: URL) -> str:
    """The name by which requests at once are counted: any port, any case, with and without the dot at the end."""
    return (url.raw_host or "").lower().rstrip(".")


def shown(text: str | None) -> str | None:
    """Words of a server, printable and short."""
    return None if text is None else "".join(c if c.isprintable() else " " for c in text)[:200]
