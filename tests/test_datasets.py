"""Downloads against a local server that misbehaves."""

import hashlib
import http.server
import threading
import time

import pytest

from appssl.datasets import PUBLIC, PublicData, find, get
from appssl.errors import AppsslError, DataError, SettingsError

CONTENT = bytes(range(256)) * 4000


class Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        server = self.server
        server.requests.append(self.headers.get("Range"))
        kind = self.path.split("/")[1]
        if kind == "redirect":
            self.send_response(302)
            self.send_header("Location", server.elsewhere)
            self.end_headers()
            return
        if kind == "gone":
            self.send_error(404)
            return
        start = 0
        if self.headers.get("Range") and kind != "norange":
            start = int(self.headers["Range"].removeprefix("bytes=").rstrip("-"))
        body = CONTENT[start:]
        if kind == "wrong":
            body = body[:-1] + b"!"
        if kind == "long":
            body += b"more"
        self.send_response(206 if start else 200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if kind == "breaks" and len(server.requests) < 3:
            self.wfile.write(body[: len(body) // 3])
            self.close_connection = True
            return
        if kind == "slow":
            self.wfile.write(body[:10])
            self.wfile.flush()
            time.sleep(server.delay)
        if kind == "drips":
            for byte in body[:40]:
                self.wfile.write(bytes([byte]))
                self.wfile.flush()
                time.sleep(0.05)
            return
        self.wfile.write(body)

    def log_message(self, *arguments):
        pass


class Server(http.server.ThreadingHTTPServer):
    def handle_error(self, request, client_address):
        """Clients that hang up are part of the tests."""


@pytest.fixture
def server():
    with Server(("127.0.0.1", 0), Handler) as found:
        found.requests, found.elsewhere, found.delay = [], "http://example.invalid/x.bin", 30
        found.daemon_threads = True
        threading.Thread(target=found.serve_forever, daemon=True).start()
        yield found
        found.shutdown()


def entry(server, kind, **changes):
    url = f"http://127.0.0.1:{server.server_port}/{kind}/x.bin"
    values = {"size": len(CONTENT), "sha256": hashlib.sha256(CONTENT).hexdigest(), **changes}
    return PublicData(name="x", domain="wsi", about="", licence="CC0", url=url, **values)


def test_a_file_arrives_whole_and_is_not_fetched_again(server, tmp_path):
    path = get(entry(server, "plain"), tmp_path)
    assert path.read_bytes() == CONTENT
    get(entry(server, "plain"), tmp_path)
    assert len(server.requests) == 1


def test_a_connection_that_breaks_off_is_resumed_where_it_broke(server, tmp_path):
    assert get(entry(server, "breaks"), tmp_path).read_bytes() == CONTENT
    third = len(CONTENT) // 3
    assert server.requests[:2] == [None, f"bytes={third}-"]
    assert len(server.requests) == 3


def test_a_server_without_ranges_starts_again(server, tmp_path):
    (tmp_path / ".x.bin.part").write_bytes(b"half")
    assert get(entry(server, "norange"), tmp_path).read_bytes() == CONTENT


def test_wrong_bytes_are_refused_and_not_kept(server, tmp_path):
    with pytest.raises(DataError, match="differ from the known SHA-256"):
        get(entry(server, "wrong"), tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_more_bytes_than_known_are_refused(server, tmp_path):
    with pytest.raises(DataError, match="sends more than the known"):
        get(entry(server, "long"), tmp_path)


def test_a_redirect_to_another_host_is_refused(server, tmp_path):
    with pytest.raises(DataError, match=r"redirects to example\.invalid"):
        get(entry(server, "redirect"), tmp_path)


def test_a_redirect_to_a_file_is_refused(server, tmp_path):
    server.elsewhere = "file:///etc/passwd"
    with pytest.raises(DataError, match="'file:///etc/passwd' is not allowed"):
        get(entry(server, "redirect"), tmp_path)


def test_a_redirect_to_a_listed_mirror_is_followed(server, tmp_path):
    server.elsewhere = f"http://localhost:{server.server_port}/plain/x.bin"
    mirrored = entry(server, "redirect", hosts=(f"localhost:{server.server_port}",))
    assert get(mirrored, tmp_path).read_bytes() == CONTENT


def test_a_server_that_hangs_ends_in_a_clear_error_and_keeps_what_came(server, tmp_path):
    with pytest.raises(DataError, match=r"4 attempts.*the same command goes on"):
        get(entry(server, "slow"), tmp_path, timeout_seconds=0.3)


def test_a_server_that_drips_is_given_up_although_it_never_falls_silent(server, tmp_path):
    begun = time.monotonic()
    with pytest.raises(DataError, match=r"only \d+ bytes in 0.3 seconds"):
        get(entry(server, "drips"), tmp_path, timeout_seconds=0.3)
    assert time.monotonic() - begun < 20


def test_a_file_that_is_not_there_is_not_asked_for_again(server, tmp_path):
    with pytest.raises(DataError, match="answers 404"):
        get(entry(server, "gone"), tmp_path)
    assert len(server.requests) == 1


def test_a_damaged_earlier_file_is_replaced(server, tmp_path):
    (tmp_path / "x.bin").write_bytes(b"damaged")
    assert get(entry(server, "plain"), tmp_path).read_bytes() == CONTENT
    assert [p.name for p in tmp_path.iterdir()] == ["x.bin"]


def test_a_place_that_cannot_be_written_says_so(server, tmp_path):
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(AppsslError, match=r"cannot be written.*Choose another --out"):
        get(entry(server, "plain"), tmp_path / "file" / "folder")


def test_progress_reaches_the_whole(server, tmp_path):
    seen = []
    get(entry(server, "plain"), tmp_path, progress=lambda done, size: seen.append((done, size)))
    assert seen[-1] == (len(CONTENT), len(CONTENT))
    assert seen == sorted(seen)


def test_an_unknown_name_gets_the_nearest_one():
    with pytest.raises(SettingsError, match="Did you mean cmu-1-small-region"):
        find("cmu-1-small-regio")


def test_every_listed_set_has_licence_size_and_checksum():
    for item in PUBLIC:
        assert item.licence
        assert item.size > 0
        assert len(bytes.fromhex(item.sha256)) == 32
        assert item.url.startswith("https://")
        assert item.file
    assert len({item.name for item in PUBLIC}) == len(PUBLIC)
