"""Planted secrets are used where they must be, and are in no byte that a run leaves or says."""

import base64
import subprocess
import sys
import time
import urllib.error
import urllib.request
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread

import pytest

from tests.commands import appssl, environment
from tests.processes import free_port
from tests.test_tracking import journal, stage
from tests.workflows.conftest import CHAIN

USER, PASSWORD = "somebody", "planted-pass/wo:rd@83"
IN_ADDRESS = "somebody:planted-pass%2Fwo%3Ard%4083"
PLANTED = {
    "MLFLOW_TRACKING_TOKEN": "planted-token-11",
    "MLFLOW_TRACKING_PASSWORD": "planted-password-12",
    "AWS_ACCESS_KEY_ID": "planted-access-13",
    "AWS_SECRET_ACCESS_KEY": "planted-key-14",
    "AWS_SESSION_TOKEN": "planted-session-15",
    "HF_TOKEN": "planted-hub-16",
    "HTTP_PROXY": "http://planted-proxy-17:planted-proxy-18@127.0.0.1:9",
    "NO_PROXY": "127.0.0.1,localhost",
    "KAGGLE_KEY": "planted-kaggle-19",
}


class Gate(BaseHTTPRequestHandler):
    """Lets through to a server behind it what has the user name and password, as a proxy of a store does."""

    behind = ""
    passed = refused = 0
    expected = "Basic " + base64.b64encode(f"{USER}:{PASSWORD}".encode()).decode()

    def do_GET(self) -> None:
        if self.headers["Authorization"] != self.expected:
            type(self).refused += 1
            self._answer(401, b"", "text/plain")
            return
        type(self).passed += 1
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        headers = {"Content-Type": self.headers.get("Content-Type", "application/json")}
        request = urllib.request.Request(self.behind + self.path, body or None, headers, method=self.command)
        try:
            with urllib.request.urlopen(request, timeout=60) as answer:
                self._answer(answer.status, answer.read(), answer.headers["Content-Type"])
        except urllib.error.HTTPError as error:
            self._answer(error.code, error.read(), error.headers["Content-Type"])

    do_POST = do_PUT = do_PATCH = do_DELETE = do_GET

    def _answer(self, status: int, body: bytes, kind: str) -> None:
        self.send_response(status)
        self.send_header("Content-Type", kind or "text/plain")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *args: object) -> None:
        pass


@contextmanager
def store_behind_a_gate(folder: Path):
    """A real MLflow server in `folder`, and before it a server that asks for user name and password; its port."""
    folder.mkdir()
    inner = free_port()
    command = [sys.executable, "-m", "mlflow", "server", "--port", str(inner), "--workers", "1"]
    command += [
        "--backend-store-uri",
        f"sqlite:///{folder}/mlflow.db",
        "--artifacts-destination",
        str(folder / "files"),
    ]
    clean = environment(MLFLOW_DISABLE_TELEMETRY="true", MLFLOW_SERVER_ENABLE_JOB_EXECUTION="false")
    with (folder / "server.log").open("wb") as log:
        server = subprocess.Popen(command, env=clean, cwd=folder, stdout=log, stderr=log, start_new_session=True)
    gate = ThreadingHTTPServer(("127.0.0.1", 0), Gate)
    Gate.behind = f"http://127.0.0.1:{inner}"
    try:
        _wait_for(f"{Gate.behind}/health", server)
        Thread(target=gate.serve_forever, daemon=True).start()
        yield gate.server_address[1]
    finally:
        gate.shutdown()
        gate.server_close()
        server.terminate()
        server.wait(timeout=60)


def _wait_for(address: str, server: "subprocess.Popen[bytes]") -> None:
    deadline = time.monotonic() + 120
    while True:
        try:
            urllib.request.urlopen(address, timeout=2).close()
            return
        except OSError:
            assert server.poll() is None
            assert time.monotonic() < deadline
            time.sleep(0.3)


def words() -> list[bytes]:
    """What must not be found: how all secrets begin, and the password as it is sent."""
    return [b"planted-", base64.b64encode(f"{USER}:{PASSWORD}".encode())]


def leaks(folder: Path, *said: str) -> list[str]:
    """Files below a folder, names included, and texts in which a planted secret stands."""
    found = [f"said: {text}" for text in said if any(word in text.encode() for word in words())]
    for path in folder.rglob("*"):
        content = path.read_bytes() if path.is_file() and not path.is_symlink() else b""
        found += [f"{path}: {word.decode()}" for word in words() if word in content or word in str(path).encode()]
    return found


def test_a_planted_secret_is_found(tmp_path):
    (tmp_path / "deep").mkdir()
    (tmp_path / "deep" / "log").write_bytes(b"\0\1" + PASSWORD.encode() + b"\2")
    assert len(leaks(tmp_path)) == 1
    assert leaks(tmp_path / "none", Gate.expected)
    for said in (IN_ADDRESS, *PLANTED.values()):
        assert leaks(tmp_path / "none", said) or said == PLANTED["NO_PROXY"]


@pytest.mark.slow
def test_a_run_leaves_no_secret(tmp_path):
    """Every stage with a real store over HTTP that asks for the password, then everything that a run leaves is read."""
    project, jobs = tmp_path / "project", tmp_path / "project" / "jobs"
    project.mkdir()
    (project / "chain.yaml").write_text(CHAIN)
    secrets = {
        key: value for key, value in PLANTED.items() if key != "MLFLOW_TRACKING_TOKEN"
    }  # it would be sent instead
    with store_behind_a_gate(tmp_path / "store") as port:
        secrets["MLFLOW_TRACKING_URI"] = f"http://{IN_ADDRESS}@127.0.0.1:{port}"
        run = appssl("--debug", "run", "chain.yaml", "--summary", "summary", cwd=project, **secrets)
        assert run.code in (0, 5), run.err
        again = appssl("ui", cwd=project, **secrets)
        script = appssl(
            "run", "chain.yaml", "--profile", "slurm", "--script", jobs, "--out", "r2", cwd=project, **secrets
        )
        assert script.code == 0, script.err
        status = appssl("status", "--json", cwd=project, **secrets)
        doctor = appssl("doctor", cwd=project, **secrets)
        assert again.code == status.code == 0, again.err + status.err
        cursors = list((project / "results").rglob(".upload.json"))
        sent = Path(tmp_path / "store" / "mlflow.db").stat().st_size
    assert "warning" not in run.err + again.err
    assert Gate.passed > 50  # the password was used: what follows is not true for want of a secret
    assert cursors
    assert sent > 100_000
    said = [text for done in (run, again, script, status, doctor) for text in (done.out, done.err)]
    assert leaks(tmp_path, *said) == []


@pytest.mark.slow
def test_a_store_that_refuses_or_is_away_and_a_stage_that_fails_say_no_secret(tmp_path):
    project = tmp_path / "project"
    project.mkdir()
    (project / "chain.yaml").write_text(CHAIN.replace("labels: labels.csv", "labels: none.csv"))
    waiting = journal(stage(project / "results"))
    waiting.metrics(1, {"train/loss": 0.5})
    waiting.finish("FAILED", artifact_digest=None, error="no answer from https://me:planted-mirror@host/model")
    with store_behind_a_gate(tmp_path / "store") as port:
        wrong = f"http://planted-other:planted-wrong@127.0.0.1:{port}"
        refused = appssl("run", "chain.yaml", cwd=project, **PLANTED, MLFLOW_TRACKING_URI=wrong)
    away = appssl("run", "chain.yaml", cwd=project, **PLANTED, MLFLOW_TRACKING_URI=wrong)
    broken = appssl("ui", cwd=project, **PLANTED, MLFLOW_TRACKING_URI=wrong)
    assert Gate.refused > 0
    assert "cannot be reached" in refused.err
    assert "cannot be reached" in away.err
    assert "not everything was sent" in broken.err
    said = [text for done in (refused, away, broken) for text in (done.out, done.err)]
    assert leaks(tmp_path, *said) == []


@pytest.mark.parametrize("debug", [(), ("--debug",)])
@pytest.mark.parametrize(
    ("line", "options"),
    [
        ("  root: s3://planted-key:planted-secret@bucket/data", ()),
        ("", ("--set", "data.root=https://planted-key:planted-secret@host/data")),
        ("", ("--set", "https://planted-key:planted-secret@host/data")),
        ("  source: https://host/x?token=planted-token-11", ()),
    ],
)
def test_a_recipe_or_option_with_a_secret_is_refused_without_saying_it(tmp_path, line, options, debug):
    (tmp_path / "r.yaml").write_text(CHAIN.replace("  make: {size: tiny}", line or "  make: {size: tiny}"))
    done = appssl(*debug, "run", "r.yaml", *options, cwd=tmp_path)
    assert done.code == 2
    assert leaks(tmp_path / "none", done.out, done.err) == []
    assert not any(path.name != "r.yaml" for path in tmp_path.rglob("*") if path.is_file())
