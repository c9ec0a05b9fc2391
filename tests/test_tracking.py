"""Journals and their upload, against real MLflow stores."""

import json
import math
import os
import signal
import socket
import subprocess
import sys
import time
import urllib.request

import pytest

from appssl.tracking import JOURNAL, Journal, masked, read_cursor, read_events, store_uri, upload
from tests.commands import environment

ABOUT = {
    "domain": "wearable",
    "recipe": "demo",
    "seed": 3,
    "stage": "pretrain",
    "method": "joint_embedding",
    "settings": {"fit": {"lr": 0.1, "schedule": {"name": "cosine"}}, "note": "x" * 900},
    "settings_digest": "abc",
    "upstream": {"data": "results/data/k"},
    "datasets": [{"name": "k", "digest": "d" * 64, "context": "pretraining"}],
    "description": "pretrain of wearable/demo, seed 3",
}


def journal(folder, **about):
    folder.mkdir(parents=True, exist_ok=True)
    found = Journal(folder)
    found.start(**{**ABOUT, **about})
    return found


def stage(results, name="pretrain"):
    return results / "wearable" / "demo" / "s3" / name


@pytest.fixture
def store(tmp_path):
    return f"sqlite:///{tmp_path / 'mlflow.db'}"


def client(uri):
    from mlflow import MlflowClient

    return MlflowClient(uri)


def history(uri, folder, key="train/loss"):
    points = client(uri).get_metric_history(read_cursor(folder)["run_id"], key)
    return sorted((p.step, p.value) for p in points)


class TestJournal:
    def test_a_torn_last_line_is_dropped_and_the_file_goes_on_whole(self, tmp_path):
        first = journal(tmp_path)
        first.metrics(10, {"train/loss": 1.0})
        with (tmp_path / JOURNAL).open("a") as file:
            file.write('{"event": "metrics", "step": 20, "val')
        again = Journal(tmp_path)
        assert again.last_step == 10
        again.metrics(20, {"train/loss": 0.5})
        assert [e["step"] for e in read_events(tmp_path / JOURNAL) if e["event"] == "metrics"] == [10, 20]

    def test_a_resume_continues_the_run_and_doubles_no_step(self, tmp_path):
        first = journal(tmp_path)
        for step in (10, 20, 30):
            first.metrics(step, {"train/loss": float(step)})
        again = journal(tmp_path)
        for step in (20, 30, 40):
            again.metrics(step, {"train/loss": float(step)})
        events = list(read_events(tmp_path / JOURNAL))
        assert [e["event"] for e in events].count("start") == 1
        assert [e["step"] for e in events if e["event"] == "metrics"] == [10, 20, 30, 40]

    def test_other_settings_and_a_repeated_finished_stage_begin_a_new_run(self, tmp_path):
        first = journal(tmp_path)
        first.metrics(10, {"a": 1.0})
        other = journal(tmp_path, settings_digest="other")
        assert other.last_step == 0
        other.finish("FINISHED", artifact_digest="x")
        journal(tmp_path, settings_digest="other")
        assert [e["event"] for e in read_events(tmp_path / JOURNAL)] == ["start"]

    def test_values_that_are_not_finite_survive(self, tmp_path):
        journal(tmp_path).metrics(1, {"a": math.nan, "b": math.inf, "c": 1.5})
        values = list(read_events(tmp_path / JOURNAL))[-1]["values"]
        assert math.isnan(float(values["a"]))
        assert float(values["b"]) == math.inf
        assert values["c"] == 1.5

    def test_writing_it_does_not_import_mlflow(self):
        script = "import sys, appssl.tracking; sys.exit('mlflow' in sys.modules)"
        assert subprocess.run([sys.executable, "-c", script], env=environment(), check=False).returncode == 0


def test_a_run_arrives_with_params_metrics_tags_data_and_its_parent(tmp_path, store):
    folder = stage(tmp_path / "results")
    written = journal(folder)
    for step in range(1, 6):
        written.metrics(step, {"train/loss": 1 / step, "train/lr": 0.1})
    (folder / "config.yaml").write_text("stage: pretrain\n")
    written.finish("FINISHED", artifact_digest="e" * 64)
    report = upload(tmp_path / "results", store, tmp_path)
    assert (report.problem, report.points, report.runs) == (None, 10, 1)
    run = client(store).get_run(read_cursor(folder)["run_id"])
    assert run.info.status == "FINISHED"
    assert run.info.run_name == "pretrain"
    assert run.data.params["fit.schedule.name"] == "cosine"
    assert len(run.data.params["note"]) == 500
    assert run.data.tags["appssl.artifact_digest"] == "e" * 64
    assert run.inputs.dataset_inputs[0].dataset.name == "k"
    assert run.inputs.dataset_inputs[0].tags[0].value == "pretraining"
    assert history(store, folder) == [(s, 1 / s) for s in range(1, 6)]
    parent = client(store).get_run(run.data.tags["mlflow.parentRunId"])
    assert parent.info.run_name == "demo/s3"
    assert client(store).get_experiment(run.info.experiment_id).name == "appssl/wearable"
    assert {f.path for f in client(store).list_artifacts(run.info.run_id)} == {"config.yaml"}


def test_stages_of_a_run_share_one_parent(tmp_path, store):
    for name in ("pretrain", "finetune"):
        journal(stage(tmp_path / "results", name), stage=name, settings_digest=name)
    upload(tmp_path / "results", store, tmp_path)
    runs = [
        client(store).get_run(read_cursor(stage(tmp_path / "results", n))["run_id"]) for n in ("pretrain", "finetune")
    ]
    assert len({run.data.tags["mlflow.parentRunId"] for run in runs}) == 1


def test_sending_twice_or_with_a_lost_cursor_doubles_nothing(tmp_path, store):
    folder = stage(tmp_path / "results")
    written = journal(folder)
    for step in range(1, 2500):
        written.metrics(step, {"train/loss": float(step)})
    upload(tmp_path / "results", store, tmp_path)
    assert upload(tmp_path / "results", store, tmp_path).points == 0
    run_id = read_cursor(folder)["run_id"]
    (folder / ".upload.json").unlink()
    assert upload(tmp_path / "results", store, tmp_path).points == 2499
    assert read_cursor(folder)["run_id"] == run_id
    found = client(store).get_metric_history(run_id, "train/loss")
    assert sorted(p.step for p in found) == list(range(1, 2500))


def test_a_stage_that_ended_without_a_word_is_marked_and_runs_again_after_a_resume(tmp_path, store):
    folder = stage(tmp_path / "results")
    journal(folder).metrics(1, {"a": 1.0})
    upload(tmp_path / "results", store, tmp_path, final=True)
    run_id = read_cursor(folder)["run_id"]
    assert client(store).get_run(run_id).info.status == "KILLED"
    again = journal(folder)
    upload(tmp_path / "results", store, tmp_path)
    assert client(store).get_run(run_id).info.status == "RUNNING"
    again.finish("FAILED", artifact_digest=None, error="it broke")
    upload(tmp_path / "results", store, tmp_path)
    run = client(store).get_run(run_id)
    assert (run.info.status, run.data.tags["appssl.error"]) == ("FAILED", "it broke")
    assert client(store).get_run(run.data.tags["mlflow.parentRunId"]).info.status == "FAILED"


def free_port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


class Server:
    """A real MLflow server on the loopback, which can be killed and started again on the same store."""

    def __init__(self, folder):
        self.folder, self.port = folder, free_port()
        self.uri = f"http://127.0.0.1:{self.port}"

    def start(self):
        command = [
            sys.executable,
            "-m",
            "mlflow",
            "server",
            "--backend-store-uri",
            f"sqlite:///{self.folder}/server.db",
        ]
        command += ["--artifacts-destination", str(self.folder / "artifacts"), "--host", "127.0.0.1"]
        log = (self.folder / "server.log").open("ab")
        quiet = environment(MLFLOW_DISABLE_TELEMETRY="true", MLFLOW_SERVER_ENABLE_JOB_EXECUTION="false")
        command += ["--port", str(self.port), "--workers", "1"]
        self.process = subprocess.Popen(command, env=quiet, stdout=log, stderr=log, start_new_session=True)
        deadline = time.monotonic() + 120
        while time.monotonic() < deadline:
            try:
                urllib.request.urlopen(f"{self.uri}/health", timeout=1).close()
                return
            except OSError:
                time.sleep(0.3)
        raise AssertionError((self.folder / "server.log").read_text())

    def kill(self):
        os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()


@pytest.mark.slow
def test_a_server_killed_in_mid_training_and_started_again_loses_and_doubles_nothing(tmp_path):
    server = Server(tmp_path)
    server.start()
    try:
        folder = stage(tmp_path / "results")
        written = journal(folder)
        for step in range(1, 200):
            written.metrics(step, {"train/loss": float(step)})
        assert upload(tmp_path / "results", server.uri, tmp_path).problem is None
        for step in range(200, 300):
            written.metrics(step, {"train/loss": float(step)})
        server.kill()
        for step in range(300, 400):
            written.metrics(step, {"train/loss": float(step)})
        begun = time.monotonic()
        report = upload(tmp_path / "results", server.uri, tmp_path)
        assert time.monotonic() - begun < 30
        assert report.problem is not None
        assert report.pending == [str(folder / JOURNAL)]
        server.start()
        written.finish("FINISHED", artifact_digest="f" * 64)
        assert upload(tmp_path / "results", server.uri, tmp_path).problem is None
        assert history(server.uri, folder) == [(step, float(step)) for step in range(1, 400)]
        assert client(server.uri).get_run(read_cursor(folder)["run_id"]).info.status == "FINISHED"
    finally:
        server.kill()


def test_an_unreachable_store_is_a_problem_in_the_report_and_no_exception(tmp_path):
    journal(stage(tmp_path / "results"))
    begun = time.monotonic()
    report = upload(tmp_path / "results", f"http://127.0.0.1:{free_port()}", tmp_path)
    assert "refused" in report.problem
    assert time.monotonic() - begun < 10


def test_the_uploader_beside_a_workflow_warns_once_and_ends(tmp_path):
    journal(stage(tmp_path / "results")).metrics(1, {"a": 1.0})
    script = (
        "import sys, time; from pathlib import Path; from appssl.tracking import Uploader\n"
        f"folder = Path({str(tmp_path)!r})\n"
        f"with Uploader(folder / 'results', 'http://127.0.0.1:{free_port()}', folder):\n"
        "    time.sleep(8)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", script], env=environment(), capture_output=True, text=True, timeout=60, check=False
    )
    assert done.returncode == 0
    assert done.stderr.count("cannot be reached") == 1


def test_passwords_are_masked():
    assert masked("postgresql://me:secret@host/db") == "postgresql://me:***@host/db"
    assert masked("sqlite:////tmp/x.db") == "sqlite:////tmp/x.db"


def test_the_store_is_a_sqlite_file_in_the_project_unless_the_environment_says_otherwise(tmp_path, monkeypatch):
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    assert store_uri(tmp_path) == f"sqlite:///{tmp_path.resolve()}/mlflow.db"
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://host:5000")
    assert store_uri(tmp_path) == "http://host:5000"


def test_a_cursor_is_json_and_survives_being_damaged(tmp_path, store):
    folder = stage(tmp_path / "results")
    journal(folder).metrics(1, {"train/loss": 1.0})
    upload(tmp_path / "results", store, tmp_path)
    assert json.loads((folder / ".upload.json").read_text())["offset"] > 0
    (folder / ".upload.json").write_text("{")
    upload(tmp_path / "results", store, tmp_path)
    assert history(store, folder) == [(1, 1.0)]
