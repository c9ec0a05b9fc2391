"""A local web server that behaves as it is told, and remembers what it was asked."""

import http.server
import io
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager

import numpy as np
from PIL import Image

Route = Callable[["Handler", int], None]  # number: of this request for the path, from 1


def picture(number: int, kind: str = "PNG", side: int = 24) -> bytes:
    coarse = np.random.default_rng(number).integers(0, 256, (6, 6, 3)).astype(np.uint8)
    stream = io.BytesIO()
    Image.fromarray(coarse).resize((side, side), Image.Resampling.BICUBIC).save(stream, kind)
    return stream.getvalue()


class Handler(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def do_GET(self):
        site = self.server
        with site.guard:
            site.asked.append(self.path)
            site.agents.add(self.headers["User-Agent"])
            site.num_active += 1
            site.most_active = max(site.most_active, site.num_active)
            number = site.asked.count(self.path)
        try:
            site.routes.get(self.path, status(404))(self, number)
        finally:
            with site.guard:
                site.num_active -= 1

    def answer(self, content: bytes, code: int = 200, *, length: int | None = -1, **headers: str) -> None:
        """length: -1 the true one, None for an answer that ends with the connection."""
        self.send_response(code)
        if length is None:
            self.close_connection = True
        else:
            self.send_header("Content-Length", str(len(content) if length < 0 else length))
            self.close_connection = length >= 0
        for name, value in headers.items():
            self.send_header(name.replace("_", "-"), value)
        self.end_headers()
        self.wfile.write(content)

    def log_message(self, *arguments):
        pass


class Site(http.server.ThreadingHTTPServer):
    daemon_threads = True

    def __init__(self, routes: Mapping[str, Route], host: str, port: int) -> None:
        super().__init__((host, port), Handler)
        self.routes = dict(routes)
        self.guard = threading.Lock()
        self.asked: list[str] = []
        self.agents: set[str] = set()
        self.num_active = self.most_active = 0

    def url(self, path: str, host: str = "127.0.0.1") -> str:
        return f"http://{host}:{self.server_port}{path}"

    def counts(self) -> Counter:
        """Requests for every path but robots.txt."""
        return Counter(path for path in self.asked if path != "/robots.txt")

    def handle_error(self, request, client_address):
        """Clients that hang up are part of the tests."""


@contextmanager
def serving(routes: Mapping[str, Route], host: str = "127.0.0.1", port: int = 0) -> Iterator[Site]:
    """A server in a thread. host: an address of this machine, 0.0.0.0 for all of 127.0.0.0/8."""
    with Site(routes, host, port) as site:
        threading.Thread(target=site.serve_forever, args=(0.02,), daemon=True).start()
        try:
            yield site
        finally:
            site.shutdown()


def sends(content: bytes, **headers: str) -> Route:
    return lambda handler, number: handler.answer(content, **headers)


def status(code: int, **headers: str) -> Route:
    return lambda handler, number: handler.answer(b"", code, **headers)


def redirects(to: str) -> Route:
    return status(302, Location=to)


def first(*answers: Route) -> Route:
    """The first answers in turn; the last one for good."""
    return lambda handler, number: answers[min(number, len(answers)) - 1](handler, number)


def slowly(seconds: float, then: Route) -> Route:
    def route(handler, number):
        time.sleep(seconds)
        then(handler, number)

    return route


def drips(content: bytes, seconds: float) -> Route:
    """A byte at a time."""

    def route(handler, number):
        handler.answer(b"", length=len(content))
        for byte in content:
            handler.wfile.write(bytes([byte]))
            handler.wfile.flush()
            time.sleep(seconds)

    return route


def endless(handler, number):
    handler.answer(b"", length=None)
    handler.server.endless_bytes = 0
    while True:
        handler.wfile.write(bytes(65536))
        handler.server.endless_bytes += 65536
