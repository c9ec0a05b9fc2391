"""A real S3-compatible server, and before it a gate that can lose, change or cut off what it sends."""

import http.client
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import boto3
from moto.server import ThreadedMotoServer

KEYS = {
    "AWS_ACCESS_KEY_ID": "planted-access-key",
    "AWS_SECRET_ACCESS_KEY": "planted-secret-key",
    "AWS_DEFAULT_REGION": "us-east-1",
    "AWS_EC2_METADATA_DISABLED": "true",  # else a machine without keys asks its cloud for some
}


class ObjectStore:
    """Buckets of a server; requests pass a gate.

    Attributes:
        gets: object paths that were asked for, with the range.
        fail: so many of the next reads are answered with 503.
        cut_after: reads after which the gate closes the connection of every request; None: never.
        on_get: called with the path before an object is read, as another user who writes meanwhile.
    """

    def __init__(self, behind: tuple[str, int]) -> None:
        self.behind = behind
        self.gets: list[tuple[str, str | None]] = []
        self.fail = 0
        self.cut_after: int | None = None
        self.on_get: Any = lambda path: None
        self.client = boto3.client(
            "s3",
            endpoint_url=f"http://{behind[0]}:{behind[1]}",
            aws_access_key_id="writer",
            aws_secret_access_key="writer",
            region_name="us-east-1",
        )

    def put(self, bucket: str, **files: bytes) -> None:
        self.client.create_bucket(Bucket=bucket)
        for key, content in files.items():
            self.client.put_object(Bucket=bucket, Key=key, Body=content)


class _Gate(BaseHTTPRequestHandler):
    store: ObjectStore
    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        store = self.store
        is_read = self.command == "GET" and "list-type" not in self.path
        if store.cut_after is not None and len(store.gets) >= store.cut_after:
            self.close_connection = True
            return
        if is_read:
            store.on_get(self.path)
            store.gets.append((self.path.partition("?")[0], self.headers["Range"]))
            if store.fail > 0:
                store.fail -= 1
                self._answer(503, {"Content-Length": "0"}, b"")
                return
        connection = http.client.HTTPConnection(*store.behind, timeout=30)
        connection.request(self.command, self.path, headers=dict(self.headers))
        answer = connection.getresponse()
        body = answer.read()
        self._answer(answer.status, dict(answer.getheaders()), body)
        connection.close()

    do_HEAD = do_GET

    def _answer(self, status: int, headers: dict[str, str], body: bytes) -> None:
        self.send_response_only(status)
        for name, value in headers.items():
            if name.lower() not in ("connection", "transfer-encoding"):
                self.send_header(name, value)
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *args: object) -> None:
        pass


@contextmanager
def object_store() -> Iterator[tuple[ObjectStore, str]]:
    """A store and the address of its endpoint, on free ports."""
    server = ThreadedMotoServer("127.0.0.1", 0, verbose=False)
    server.start()
    store = ObjectStore(server.get_host_and_port())
    gate = ThreadingHTTPServer(("127.0.0.1", 0), type("Gate", (_Gate,), {"store": store}))
    gate.daemon_threads = True
    threading.Thread(target=gate.serve_forever, daemon=True).start()
    try:
        yield store, f"http://127.0.0.1:{gate.server_port}"
    finally:
        gate.shutdown()
        gate.server_close()
        server.stop()
