"""Serves one review page on this machine and takes its decisions. Standard library, loopback only.

Who may ask: whoever knows the token, a random part of the address that is printed once, so neither other users of the
machine nor pages from elsewhere. A decision is taken only from the page itself (`Origin` equals `Host`, both of this
machine, JSON), and only up to `LARGEST_REQUEST` bytes. Nothing else of the disk can be reached.
"""

import json
import secrets
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from appssl.errors import NOT_JSON, AppsslError, DataError
from appssl.reports.review_decisions import Decisions

HOST = "127.0.0.1"
LARGEST_REQUEST = 64 * 1024  # bytes of a decision; an id is a path at most
_OWN_NAMES = ("127.0.0.1", "localhost")  # with any port: it may be forwarded from another machine
_HEADERS = {
    "Cache-Control": "no-store",
    "Content-Security-Policy": "frame-ancestors 'none'",  # the rest is in the page, a header only has this
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Referrer-Policy": "same-origin",
    "X-Content-Type-Options": "nosniff",
}


class ReviewServer(ThreadingHTTPServer):
    """`serve_forever` answers until it is shut down. `address` is the only one that works."""

    daemon_threads = True
    request_queue_size = 32

    def __init__(self, page: bytes, decisions: Decisions, *, port: int) -> None:
        """
        Args:
            port: on 127.0.0.1; 0 takes a free one.
        """
        self.page, self.decisions = page, decisions
        self.token = secrets.token_urlsafe(24)
        super().__init__((HOST, port), _Handler)

    @property
    def address(self) -> str:
        return f"http://{HOST}:{self.server_address[1]}/{self.token}/"

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A browser that hangs up is no error."""


class _Refused(Exception):
    def __init__(self, status: HTTPStatus, why: str) -> None:
        self.status, self.why = status, why
        super().__init__(why)


class _Handler(BaseHTTPRequestHandler):
    server: ReviewServer
    server_version, sys_version = "appssl", ""
    timeout = 30  # seconds in which a request must have arrived

    def do_GET(self) -> None:
        try:
            place = self._place()
        except _Refused as refused:
            self._answer(refused.status, {"problem": refused.why})
            return
        if place == "":
            self._send(HTTPStatus.OK, "text/html; charset=utf-8", self.server.page)
        else:
            self._answer(HTTPStatus.OK, {"decisions": self.server.decisions.rows()})

    def do_POST(self) -> None:
        try:
            if self._place() != "decisions":
                raise _Refused(HTTPStatus.METHOD_NOT_ALLOWED, "decisions are sent to 'decisions'")
            self._from_the_page()
            name, decision, label = _decision(self._body())
            self.server.decisions.decide(name, decision, label)
        except _Refused as refused:
            self.close_connection = True  # what was not read is not taken for the next request
            self._answer(refused.status, {"problem": refused.why})
        except DataError as error:
            self._answer(HTTPStatus.BAD_REQUEST, {"problem": str(error)})
        except AppsslError as error:  # a full disk; the decision is not noted, and the page says so
            self._answer(HTTPStatus.INSUFFICIENT_STORAGE, {"problem": str(error)})
        else:
            self._answer(HTTPStatus.OK, {"decided": self.server.decisions.num_here})

    def _place(self) -> str:
        """What is asked for behind the token: "" or "decisions"."""
        if (
            self.headers.get("Host", "").partition(":")[0] not in _OWN_NAMES
        ):  # a name elsewhere that was made to point here
            raise _Refused(HTTPStatus.FORBIDDEN, "this page is for its own machine")
        token, slash, place = self.path.removeprefix("/").partition("/")
        if not secrets.compare_digest(token.encode(), self.server.token.encode()):
            raise _Refused(HTTPStatus.FORBIDDEN, "the address is not the one that was printed")
        if not slash or place not in ("", "decisions"):
            raise _Refused(HTTPStatus.NOT_FOUND, "there is nothing here")
        return place

    def _from_the_page(self) -> None:
        if self.headers.get("Origin") != f"http://{self.headers.get('Host')}":
            raise _Refused(HTTPStatus.FORBIDDEN, "decisions are taken from the review page only")
        if self.headers.get_content_type() != "application/json":
            raise _Refused(HTTPStatus.UNSUPPORTED_MEDIA_TYPE, "a decision is JSON")

    def _body(self) -> bytes:
        length = self.headers.get("Content-Length", "")
        if not length.isdecimal():
            raise _Refused(HTTPStatus.LENGTH_REQUIRED, "the length of the request is missing")
        if len(length) > 9 or int(length) > LARGEST_REQUEST:
            raise _Refused(HTTPStatus.REQUEST_ENTITY_TOO_LARGE, f"a decision has at most {LARGEST_REQUEST} bytes")
        return self.rfile.read(int(length))

    def _answer(self, status: HTTPStatus, values: dict[str, Any]) -> None:
        self._send(status, "application/json", json.dumps(values).encode())

    def _send(self, status: HTTPStatus, kind: str, content: bytes) -> None:
        self.send_response(status)
        for name, value in {**_HEADERS, "Content-Type": kind, "Content-Length": str(len(content))}.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(content)

    def log_message(self, format: str, *arguments: Any) -> None:
        """Nothing: the address holds the token, and progress is on the page."""


def _decision(body: bytes) -> tuple[str, str | None, str | None]:
    """(id, decision, label) of a request."""
    try:
        values = json.loads(body)
    except NOT_JSON:
        values = None
    if not isinstance(values, dict) or set(values) != {"id", "decision", "label"}:
        raise _Refused(HTTPStatus.BAD_REQUEST, "a decision is {id, decision, label}")
    name, decision, label = values["id"], values["decision"], values["label"]
    if not isinstance(name, str) or not all(value is None or isinstance(value, str) for value in (decision, label)):
        raise _Refused(HTTPStatus.BAD_REQUEST, "id, decision and label are text")
    return name, decision, label
