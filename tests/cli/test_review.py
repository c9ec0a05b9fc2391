"""`appssl review`: files and a page; the server takes decisions until it ends, and loses none when it is killed."""

import json
import subprocess
import sys
import urllib.request

import polars as pl
import pytest

from tests.bad_input.conftest import cli
from tests.commands import environment
from tests.judged import AWKWARD, RUN, write_results

__all__ = ["cli"]


@pytest.fixture(scope="module")
def results(tmp_path_factory):
    return write_results(tmp_path_factory.mktemp("built"))


@pytest.fixture
def serve(results, tmp_path):
    """Starts `appssl review` in a process of its own; gives the process and what it said."""
    started = []

    def start(*words):
        command = [sys.executable, "-m", "appssl", "review", str(results / RUN), "--json", *words]
        process = subprocess.Popen(
            command, cwd=tmp_path, env=environment(), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        )
        started.append(process)
        return process, json.loads(process.stdout.readline())

    yield start
    for process in started:
        process.kill()
        process.wait()
        process.stdout.close()
        process.stderr.close()


def decide(address, name, decision, label=None):
    body = json.dumps({"id": name, "decision": decision, "label": label}).encode()
    headers = {"Origin": "/".join(address.split("/")[:3]), "Content-Type": "application/json"}
    with urllib.request.urlopen(urllib.request.Request(f"{address}decisions", body, headers), timeout=10) as answer:
        return json.load(answer)


def test_without_server_it_writes_and_says_what_and_where(cli, results, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    said = cli("review", results / RUN, "--no-serve")
    assert said.code == 0, said.err
    assert "review/triage.csv   (6 judged images; 6 of them on the page)" in said.out
    assert "data.source.decisions, once it lies below data.root" in said.out
    names = {path.name for path in (tmp_path / "review").iterdir()}
    assert names == {"triage.parquet", "triage.csv", "review.html", ".lock"}
    told = json.loads(cli("review", results / RUN, "--no-serve", "--json", "--limit", "2").out)
    assert (told["rows"], told["shown"], told["address"]) == (6, 2, None)


def test_below_the_data_root_the_setting_is_complete(cli, results):
    said = cli("review", results / RUN, "--no-serve", "--out", results.parent / "crawl" / "my review")
    assert "data.source.decisions=my review/decisions.csv" in said.out


@pytest.mark.parametrize(
    ("words", "code", "message"),
    [
        (("nowhere",), 3, "no judged labels here"),
        (("x", "--limit", "0"), 2, "limit"),
        (("x", "--port", "0"), 2, "port"),
    ],
)
def test_what_is_wrong_is_told(cli, tmp_path, monkeypatch, words, code, message):
    monkeypatch.chdir(tmp_path)
    said = cli("review", *words, "--no-serve")
    assert (said.code, message in said.err) == (code, True)


def test_decisions_survive_a_kill_and_the_next_session_goes_on(serve, tmp_path):
    process, told = serve()
    assert told["address"].startswith("http://127.0.0.1:")
    assert decide(told["address"], "i1", "relabel", "blue") == {"decided": 1}
    assert decide(told["address"], AWKWARD, "irrelevant") == {"decided": 2}
    process.kill()
    process.wait()
    rows = [(AWKWARD, "irrelevant", None), ("i1", "relabel", "blue")]
    assert pl.read_csv(tmp_path / "review/decisions.csv").rows() == rows
    _, again = serve()
    assert again["address"] != told["address"]
    with urllib.request.urlopen(f"{again['address']}decisions", timeout=10) as answer:
        assert json.load(answer)["decisions"] == [list(row) for row in rows]


def test_ctrl_c_is_the_usual_end(serve, tmp_path):
    import signal

    process, told = serve()
    decide(told["address"], "i0", "keep")
    process.send_signal(signal.SIGINT)
    assert process.wait(timeout=20) == 0
    assert process.stderr.read() == "1 decision(s) in review/decisions.csv\n"
