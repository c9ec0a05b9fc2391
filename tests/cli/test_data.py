"""`appssl data`: what is listed, fetched and made."""

import http.server
import json
import threading

import pytest

from appssl.cli import data
from appssl.errors import SettingsError
from tests.commands import appssl


def test_the_list_names_licence_size_and_checksum(tmp_path):
    done = appssl("data", "list", "--json", cwd=tmp_path)
    assert done.code == 0
    entries = json.loads(done.out)
    assert {entry["domain"] for entry in entries} >= {"wsi", "webnoisy", "recsys"}
    assert all({"name", "about", "licence", "size", "sha256", "url"} <= entry.keys() for entry in entries)
    shown = appssl("data", "list", cwd=tmp_path).out
    assert all(entry["name"] in shown and entry["licence"] in shown for entry in entries)


def test_an_unknown_name_is_exit_code_2_with_the_nearest(tmp_path):
    done = appssl("data", "get", "ml-latest-smal", cwd=tmp_path)
    assert done.code == 2
    assert "Did you mean ml-latest-small?" in done.err
    assert list(tmp_path.iterdir()) == []


def test_get_prints_the_path_on_stdout_and_the_terms_on_stderr(tmp_path, monkeypatch, capsys):
    import hashlib

    from appssl import datasets

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self):
            self.send_response(200)
            self.send_header("Content-Length", "3")
            self.end_headers()
            self.wfile.write(b"abc")

        def log_message(self, *arguments):
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        entry = datasets.PublicData(
            name="mine", domain="wsi", about="", licence="CC0 1.0", url=f"http://127.0.0.1:{server.server_port}/x.bin",
            size=3, sha256=hashlib.sha256(b"abc").hexdigest(),
        )  # fmt: skip
        monkeypatch.setattr(datasets, "PUBLIC", (entry,))
        data.get("mine", tmp_path / "out")
        server.shutdown()
    shown = capsys.readouterr()
    assert shown.out.strip() == str(tmp_path / "out" / "x.bin")
    assert "CC0 1.0" in shown.err
    assert (tmp_path / "out" / "x.bin").read_bytes() == b"abc"


def test_made_data_is_the_same_for_the_same_seed(tmp_path, capsys):
    data.make("recsys", tmp_path / "a", "tiny", 0)
    data.make("recsys", tmp_path / "c", "tiny", 1)
    assert capsys.readouterr().out.split() == [str(tmp_path / "a"), str(tmp_path / "c")]
    done = appssl("data", "make", "recsys", "--out", "b", "--size", "tiny", "--seed", "0", cwd=tmp_path)
    assert (done.code, done.out.strip()) == (0, "b")
    manifests = [(tmp_path / name / "manifest.json").read_bytes() for name in "abc"]
    assert manifests[0] == manifests[1] != manifests[2]


def test_a_wrong_domain_or_size_is_exit_code_2_and_says_what_there_is(tmp_path):
    done = appssl("data", "make", "wearble", "--out", "x", cwd=tmp_path)
    assert (done.code, "Did you mean wearable?" in done.err) == (2, True)
    with pytest.raises(SettingsError, match="choose tiny, small or large"):
        data.make("wearable", tmp_path / "x", "huge", 0)


def test_a_log_can_be_made_of_a_number_of_events_and_nothing_else_can(tmp_path):
    done = appssl("data", "make", "recsys", "--events", "2000", "--out", "made", cwd=tmp_path)
    assert done.code == 0
    assert (tmp_path / "made" / "interactions" / "00000.parquet").is_file()
    done = appssl("data", "make", "wsi", "--events", "2000", "--out", "slides", cwd=tmp_path)
    assert done.code == 2
    assert "only recsys can be made of so many events" in done.err
