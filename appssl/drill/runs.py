"""Faults of runs: every stage killed, two at once, a store that is away, settings that training cannot take."""

import json
import os
import shutil
import signal
import socket
import sqlite3
import subprocess
import sys
import threading
import time
import urllib.request
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path

from appssl.drill.expecting import Case, Wanted, expect, expect_done, expect_equal, expect_failure, expect_healed, until
from appssl.drill.kills import EQUAL, Reference, Shot, trial
from appssl.drill.project import SECONDS, STAGES, Project

_SECONDS_HUNG = 25.0  # longer than a request may take, shorter than a run waits for its last upload


def _every_stage_killed(project: Project, wanted: Wanted) -> None:
    for folder in ("data", project.domain):
        shutil.rmtree(project.results / folder)
    shots = [Shot("stage", "SIGKILL", 0.0, stage) for stage in STAGES]
    rows = trial(project, Reference(0.0, wanted, {}), shots)
    killed = [row.stage for row in rows]
    expect(killed == list(STAGES), f"killed were only: {', '.join(killed)}")
    expect(rows[-1].outcome == EQUAL, f"{rows[-1].outcome}: {rows[-1].detail}")
    expect(rows[-1].attempts == len(STAGES) + 1, f"{rows[-1].attempts} attempts for {len(STAGES)} kills")


def _two_runs(project: Project, wanted: Wanted) -> None:
    project.forget("report")
    lock = project.folder / "results/.run"
    lock.write_text("")
    first = subprocess.Popen(  # not `project.start`: both would write what they say into the same files
        project.command(),
        cwd=project.folder,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )
    try:
        until(lambda: lock.read_text().strip() == str(first.pid), first, "taking the folder")
        first.send_signal(signal.SIGSTOP)  # it holds the folder for as long as the second needs to find out
        second = project.run()
        first.send_signal(signal.SIGCONT)
        expect_failure(second, 1, f"another 'appssl run' (process {first.pid}) works here")
        first.wait(timeout=SECONDS)
    finally:
        if first.poll() is None:
            os.killpg(first.pid, signal.SIGKILL)
            first.wait()
    expect_equal(project, wanted)


@contextmanager
def _store(folder: Path, port: int) -> Iterator[tuple[Path, "subprocess.Popen[bytes]"]]:
    """A real MLflow server on the loopback, first of its process group; gives its database too."""
    folder.mkdir()
    database = folder / "server.db"
    command = [sys.executable, "-m", "mlflow", "server", "--backend-store-uri", f"sqlite:///{database}"]
    command += ["--artifacts-destination", str(folder / "artifacts"), "--host", "127.0.0.1", "--port", str(port)]
    quiet = {**os.environ, "MLFLOW_DISABLE_TELEMETRY": "true", "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false"}
    with (folder / "server.log").open("ab") as log:
        server = subprocess.Popen(
            [*command, "--workers", "1"], cwd=folder, env=quiet, stdout=log, stderr=log, start_new_session=True
        )
    try:
        deadline = time.monotonic() + 180
        while not _answers(f"http://127.0.0.1:{port}/health"):
            expect(server.poll() is None and time.monotonic() < deadline, "the MLflow server did not start")
            time.sleep(0.3)
        yield database, server
    finally:
        os.killpg(server.pid, signal.SIGKILL)
        server.wait()


def _answers(address: str) -> bool:
    try:
        urllib.request.urlopen(address, timeout=1).close()
    except OSError:
        return False
    return True


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
    return port


def _store_restarted(project: Project, wanted: Wanted) -> None:
    port = _free_port()
    project.forget("report")
    down = project.run(MLFLOW_TRACKING_URI=f"http://user:secret@127.0.0.1:{port}")
    expect_done(down)
    expect(down.err.count("cannot be reached") == 1, f"not warned once: {down.err[-600:]}")
    expect("secret" not in down.err, "the password of the store was printed")
    expect_equal(project, wanted)
    with _store(project.folder / "store", port) as (database, _):
        up = project.run(MLFLOW_TRACKING_URI=f"http://127.0.0.1:{port}")
        expect_done(up)
        expect("cannot be reached" not in up.err, up.err[-600:])
    _expect_all_sent(database)
    expect_equal(project, wanted)


def _store_hung(project: Project, wanted: Wanted) -> None:
    port = _free_port()
    project.forget("evaluate", "report")
    with _store(project.folder / "store", port) as (database, server):
        os.killpg(server.pid, signal.SIGSTOP)  # connections are taken, nothing is answered
        goes_on = threading.Timer(_SECONDS_HUNG, os.killpg, (server.pid, signal.SIGCONT))
        goes_on.start()
        try:
            done = project.run(MLFLOW_TRACKING_URI=f"http://127.0.0.1:{port}")
        finally:
            goes_on.join()
    expect_done(done)
    _expect_all_sent(database)
    expect_equal(project, wanted)


def _expect_all_sent(database: Path) -> None:
    with closing(sqlite3.connect(database)) as opened:
        (count,) = opened.execute("SELECT COUNT(*) FROM runs WHERE status = 'FINISHED'").fetchone()
    expect(count >= len(STAGES), f"only {count} runs came into the store after it was back")


def _refused_setting(project: Project, wanted: Wanted) -> None:
    done = project.run("--set", "finetune.fit.batch_size=100000")
    expect_failure(done, 3, "finetune: fit.batch_size is 100000, but there are only")
    failed = json.loads((project.stage("finetune") / "failed.json").read_text(encoding="utf-8"))
    expect(failed["exit_code"] == 3, f"failed.json says {failed}")
    status = project.appssl("status", project.plan["results"])
    expect("failed   wearable/demo/s0/finetune" in status.out, f"'appssl status' says: {status.out}")
    expect_healed(project, wanted)


def _diverged(project: Project, wanted: Wanted) -> None:
    done = project.run("--set", "pretrain.fit.lr=1e20", "--set", "pretrain.fit.schedule=constant")
    expect_failure(done, 4, "the loss is not finite at step")
    saved = list((project.stage("pretrain") / "state/diverged").glob("batch-*.safetensors"))
    expect(saved, "the batch was not saved")


CASES = [
    Case(
        "each stage killed once",
        "the same command goes on after each kill, one attempt more than kills, and ends with equal digests",
        _every_stage_killed,
    ),
    Case(
        "two runs in one results folder",
        "the second stops with exit code 1 and the process of the first; that ends with equal digests",
        _two_runs,
    ),
    Case(
        "tracking store down, then started",
        "one warning without the password, equal digests; the next run sends everything",
        _store_restarted,
    ),
    Case(
        "tracking store that hangs for 25 seconds",
        "stages do not wait for it, the end of the run does, and everything is sent; equal digests",
        _store_hung,
    ),
    Case(
        "setting that a stage refuses",
        "exit code 3 with stage and field, 'failed.json', 'appssl status'; with the right one equal digests",
        _refused_setting,
    ),
    Case("training that diverges", "exit code 4 with the step; the batch is saved", _diverged),
]
