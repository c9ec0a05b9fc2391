"""Secrets in addresses, `scheme://user:password@host` or `...?token=...`: they are used, and never written down."""

import re
from collections.abc import Iterator, Mapping
from typing import Any
from urllib.parse import unquote, urlsplit

_SCHEME = r"[a-z][a-z0-9+.-]{0,30}:"
_NO_PORT = r":(?!\d{1,5}(?:[/\\?#,;\s]|$))"
# The whole text is an address; it may lack a scheme, and hold spaces where it is wrong.
_WHOLE = re.compile(
    rf"^(\s*(?:{_SCHEME})?[/\\]{{2,}})(?:[^/\\?#\s]*@|[^:/\\?#@\s]*{_NO_PORT}[^/\\?#]*@)", re.IGNORECASE
)
# A text that holds addresses; what users take for a password may have characters that an address may not.
_INSIDE = re.compile(rf"({_SCHEME}[/\\]{{2,}})(?:[^/\\?#\s\"'<>]*@|[^:/\\?#@\s]*{_NO_PORT}[^\s\"'<>]*@)", re.IGNORECASE)
_QUERY = re.compile(
    r"([?&;][a-z_-]{0,40}?(?:password|passwd|pwd|token|secret|signature|sig|credential|api_?key|access_?key(?:_?id)?)=)"
    r"[^&;#\s\"'<>]+",
    re.IGNORECASE,
)


def masked(text: str) -> str:
    """An address, or a message that holds some, with `***` for user names, passwords and tokens."""
    if "@" in text:
        text = _INSIDE.sub(r"\1***@", _WHOLE.sub(r"\1***@", text))
    return _QUERY.sub(r"\1***", text) if "=" in text else text


def with_secrets(values: Any, prefix: str = "") -> Iterator[tuple[str, str]]:
    """(dotted place, masked text) of every text in plain values, keys included, that holds a secret in an address."""
    if isinstance(values, str):
        if (shown := masked(values)) != values:
            yield prefix, shown
    elif isinstance(values, Mapping):
        for key, value in values.items():
            name = masked(str(key))
            if name != str(key):
                yield f"{prefix}.{name}" if prefix else name, name
            yield from with_secrets(value, f"{prefix}.{name}" if prefix else name)
    elif isinstance(values, list | tuple):
        for number, value in enumerate(values):
            yield from with_secrets(value, f"{prefix}.{number}" if prefix else str(number))


def credentials(address: str) -> tuple[str, str | None, str | None]:
    """An http or https address without user name and password, and these; one that lacks either is not changed."""
    try:
        parts = urlsplit(address)
        user, password = parts.username, parts.password
    except ValueError:
        return address, None, None
    if parts.scheme not in ("http", "https") or user is None or password is None:
        return address, None, None
    bare = parts._replace(netloc=parts.netloc.rpartition("@")[2]).geturl()
    return bare, unquote(user), unquote(password)
