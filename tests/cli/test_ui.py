"""`appssl ui`: sends what waits, starts the real UI, keeps passwords to itself."""

import json
import os
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from pathlib import Path

import pytest

from appssl.cli.ui import free_port
from appssl.errors import AppsslError
from appssl.ops.journal import read_cursor
from tests.commands import appssl, environment
from tests.test_tracking import journal, stage


def test_a_taken_port_gives_the_next_free_one():
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        assert free_port("127.0.0.1", port) > port


def test_an_address_of_another_machine_is_refused():
    with pytest.raises(AppsslError, match="Choose another --port or --host"):
        free_port("192.0.2.1", 5000)


def test_a_server_that_is_away_is_a_warning_and_its_address_is_shown_masked(tmp_path):
    journal(stage(tmp_path / "results")).metrics(1, {"a": 1.0})
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    done = appssl("ui", "--json", cwd=tmp_path, MLFLOW_TRACKING_URI=f"http://me:hunter2@127.0.0.1:{port}")
    assert done.code == 0
    assert json.loads(done.out)["address"] == f"http://127.0.0.1:{port}"
    assert json.loads(done.out)["store"] == f"http://***@127.0.0.1:{port}"
    assert done.err.count("warning") == 1
    assert "hunter2" not in done.out + done.err


@pytest.mark.slow
def test_it_sends_what_waits_and_serves_the_runs(tmp_path):
    folder = stage(tmp_path / "results")
    journal(folder).metrics(1, {"train/loss": 0.5})
    log = (tmp_path / "ui.log").open("wb")
    process = subprocess.Popen(
        [sys.executable, "-m", "appssl", "ui", "--json", "--port", "5520"],
        cwd=tmp_path, env=environment(), stdout=subprocess.PIPE, stderr=log, text=True, start_new_session=True,
    )  # fmt: skip
    try:
        address = json.loads(process.stdout.readline())["address"]
        assert address.startswith("http://127.0.0.1:")
        deadline = time.monotonic() + 120
        while True:
            try:
                urllib.request.urlopen(f"{address}/health", timeout=1).close()
                break
            except OSError:
                assert time.monotonic() < deadline, (tmp_path / "ui.log").read_text()
                time.sleep(0.3)
        run_id = read_cursor(folder)["run_id"]
        with urllib.request.urlopen(f"{address}/api/2.0/mlflow/runs/get?run_id={run_id}", timeout=30) as answer:
            run = json.load(answer)["run"]
        assert {m["key"]: m["value"] for m in run["data"]["metrics"]} == {"train/loss": 0.5}
        # The store is not among the arguments, which other users of the machine can read.
        assert b"mlflow.db" not in Path(f"/proc/{process.pid}/cmdline").read_bytes()
    finally:
        os.killpg(process.pid, signal.SIGTERM)
        process.wait(timeout=30)
