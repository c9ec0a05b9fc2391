"""What a crawler may ask for: addresses, the machines behind them, and what servers say about the use of their images.

Opt-out is honoured from the headers of the answer that holds the image: `X-Robots-Tag` with noai, noimageai, noindex or
none, for all agents or for this one, and `TDM-Reservation: 1`. A directive for another agent does not count.
"""

import ipaddress
import re
import time
from collections.abc import Iterable
from email.utils import parsedate_to_datetime

from yarl import URL

AGENT = "appssl"  # the name that robots.txt and X-Robots-Tag address
_OPT_OUT = ("noai", "noimageai", "noindex", "none")  # none stands for noindex, nofollow
_WITH_VALUE = ("unavailable_after", "max-snippet", "max-image-preview", "max-video-preview")  # no agents, though "x: y"
_NAT64 = ipaddress.IPv6Network("64:ff9b::/96")  # RFC 6052: the last 32 bits are an IPv4 address
_COMPATIBLE = ipaddress.IPv6Network("::/96")  # RFC 4291, deprecated: the same
_HOST = re.compile(r"[a-z0-9._:%-]+", re.IGNORECASE)
_PLAIN = re.compile(r"[A-Za-z0-9._~:/?#\[\]@!$&'()*+,;=%-]+")
_LONGEST = 8000  # characters of an address; servers refuse longer ones

IPAddress = ipaddress.IPv4Address | ipaddress.IPv6Address


class Refused(Exception):
    """An address that is not asked for. `reason` is a short code; `detail` never repeats the address."""

    def __init__(self, reason: str, detail: str) -> None:
        self.reason, self.detail = reason, detail
        super().__init__(f"{reason}: {detail}")


def parsed(text: str) -> URL:
    """An http or https address without fragment; one that is written with the characters of RFC 3986 is not changed.

    Raises:
        Refused: bad_address, not_http, credentials_in_address.
    """
    text = text.strip()
    try:
        url = URL(text, encoded=_PLAIN.fullmatch(text) is not None)
        port, host = url.port, url.raw_host or ""
    except ValueError:
        raise Refused("bad_address", "is no address of the form https://host/path") from None
    if url.scheme and url.scheme not in ("http", "https"):
        raise Refused("not_http", f"scheme {url.scheme[:20]!r}; http and https are fetched")
    if url.raw_user is not None or url.raw_password is not None:
        raise Refused("credentials_in_address", "holds a user name or password; they are not sent, nor written down")
    if not url.scheme or not port or _HOST.fullmatch(host) is None:
        raise Refused("bad_address", "is no address of the form https://host/path")
    if len(text) > _LONGEST or not text.isprintable():
        raise Refused("bad_address", f"more than {_LONGEST} characters, or line breaks among them")
    return url.with_fragment(None)


def is_public(address: str) -> bool:
    """Whether an IP address is that of a machine on the public internet.

    Not public: loopback, private, link-local, multicast, reserved, shared and documentation ranges, and every IPv6
    address that carries such an IPv4 address (mapped, compatible, 6to4, Teredo, NAT64).
    """
    try:
        ip = ipaddress.ip_address(address.partition("%")[0])
    except ValueError:
        return False
    return all(_is_global(found) for found in (ip, *_carried(ip)))


def _is_global(ip: IPAddress) -> bool:
    if isinstance(ip, ipaddress.IPv6Address) and (ip.ipv4_mapped is not None or ip in _NAT64 or ip in _COMPATIBLE):
        return int(ip) > 1  # what it carries decides; :: and ::1 are this machine
    is_local = ip.is_loopback or ip.is_link_local or getattr(ip, "is_site_local", False)
    return ip.is_global and not (is_local or ip.is_multicast or ip.is_reserved or ip.is_unspecified)


def _carried(ip: IPAddress) -> list[IPAddress]:
    """IPv4 addresses inside an IPv6 address, to which a gateway may lead."""
    if isinstance(ip, ipaddress.IPv4Address):
        return []
    found = [ip.ipv4_mapped, ip.sixtofour, *(ip.teredo or ())]
    if ip in _NAT64 or ip in _COMPATIBLE:
        found.append(ipaddress.IPv4Address(int(ip) & 0xFFFFFFFF))
    return [inner for inner in found if inner is not None]


def opted_out(headers: Iterable[tuple[str, str]]) -> str:
    """The header line by which a server reserves an image, "" if none does."""
    for name, value in headers:
        if name.lower() == "tdm-reservation" and value.strip() == "1":
            return "TDM-Reservation: 1"
        if name.lower() == "x-robots-tag" and (directive := _reserving(value)):
            return f"X-Robots-Tag: {directive}"
    return ""


def _reserving(value: str) -> str:
    """The first directive of a line that opts out; an agent counts until the next one is named."""
    is_meant = True
    for part in value.split(","):
        before, colon, after = part.partition(":")
        directive = part.strip().lower()
        if colon and before.strip().lower() not in _WITH_VALUE:
            is_meant = before.strip().lower() in (AGENT, "*")
            directive = after.strip().lower()
        if is_meant and directive in _OPT_OUT:
            return directive
    return ""


def retry_after(value: str | None) -> float | None:
    """Seconds that a `Retry-After` header asks to wait, >= 0; None without a usable one."""
    if value is None:
        return None
    if value.strip().isdecimal():
        return float(value.strip())
    try:
        return max(0.0, parsedate_to_datetime(value).timestamp() - time.time())
    except (ValueError, OverflowError):
        return None
