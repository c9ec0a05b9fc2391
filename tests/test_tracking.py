"""Journals and their upload, against real MLflow stores."""

import contextlib
import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
import urllib.request
from pathlib import Path

import pytest

from appssl.ops.journal import JOURNAL, Journal, read_cursor
from appssl.tracking import allowed_name, store_uri
from appssl.upload import Uploader, upload
from appssl.version import __version__
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


@pytest.fixture(scope="module")
def empty_store(tmp_path_factory):
    """A SQLite store with its tables: making them takes MLflow some seconds."""
    path = tmp_path_factory.mktemp("store") / "mlflow.db"
    client(f"sqlite:///{path}").search_experiments()
    return path


@pytest.fixture
def store(tmp_path, empty_store):
    shutil.copyfile(empty_store, tmp_path / "mlflow.db")
    return f"sqlite:///{tmp_path / 'mlflow.db'}"


def client(uri):
    from mlflow import MlflowClient

    return MlflowClient(uri)


def history(uri, folder, key="train/loss"):
    points = client(uri).get_metric_history(read_cursor(folder)["run_id"], key)
    return sorted((p.step, p.value) for p in points)


def test_importing_it_does_not_import_mlflow():
    script = "import sys, appssl.tracking; sys.exit('mlflow' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", script], env=environment(), check=False).returncode == 0


def test_a_pass_with_nothing_new_does_not_import_mlflow(tmp_path, store):
    journal(stage(tmp_path / "results")).metrics(1, {"a": 1.0})
    upload(tmp_path / "results", store, tmp_path, final=True)
    script = (
        "import sys; from pathlib import Path; from appssl.upload import upload\n"
        f"folder = Path({str(tmp_path)!r})\n"
        f"upload(folder / 'results', {store!r}, folder, final=True)\n"
        "sys.exit('mlflow' in sys.modules)\n"
    )
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
    assert run.data.params["note"].endswith("(cut, 900 characters)")
    assert run.data.tags["appssl.version"] == __version__
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


def test_a_run_of_which_only_a_part_was_wanted_ends_with_the_workflow(tmp_path, store):
    results = tmp_path / "results"
    for name in ("finetune", "evaluate"):
        found = journal(stage(results, name), stage=name)
        found.metrics(1, {"eval/macro_f1": 0.5})
        found.finish("FINISHED", artifact_digest="d")
    upload(results, store, tmp_path)  # as while the workflow runs: another stage may follow
    parent = client(store).get_run(read_cursor(stage(results, "finetune"))["run_id"]).data.tags["mlflow.parentRunId"]
    assert client(store).get_run(parent).info.status == "RUNNING"
    journal(results / "wearable/other/s0/report", stage="report", recipe="other").finish(
        "FINISHED", artifact_digest="e"
    )
    upload(results, store, tmp_path, final=True)
    assert client(store).get_run(parent).info.status == "FINISHED"


def test_what_was_evaluated_is_on_the_parent_too(tmp_path, store):
    found = journal(stage(tmp_path / "results", "evaluate"), stage="evaluate")
    found.metrics(1, {"eval/macro_f1": 0.25})
    found.finish("FINISHED", artifact_digest="d")
    upload(tmp_path / "results", store, tmp_path)
    own = read_cursor(stage(tmp_path / "results", "evaluate"))["run_id"]
    parent = client(store).get_run(own).data.tags["mlflow.parentRunId"]
    assert client(store).get_run(parent).data.metrics == {"eval/macro_f1": 0.25}


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


def second(results):
    """Another stage of the same run, so that there is something that must not be held up."""
    written = journal(stage(results, "finetune"), stage="finetune", settings_digest="other")
    written.metrics(1, {"train/loss": 1.0})
    return written


def test_settings_with_any_names_become_params(tmp_path, store):
    folder = stage(tmp_path / "results")
    journal(folder, settings={"columns": {"temp (°C)": "t", "a//../b": 1}, "none": None, "many": list(range(400))})
    assert upload(tmp_path / "results", store, tmp_path).problem is None
    params = client(store).get_run(read_cursor(folder)["run_id"]).data.params
    assert params["columns.temp (_C)".replace("(", "_").replace(")", "_")] == "t"
    assert params["none"] == "None"
    assert len(params["many"]) == 500


def test_more_params_than_a_batch_holds_arrive(tmp_path, store):
    folder = stage(tmp_path / "results")
    journal(folder, settings={f"p{i}": i for i in range(450)})
    assert upload(tmp_path / "results", store, tmp_path).problem is None
    assert len(client(store).get_run(read_cursor(folder)["run_id"]).data.params) == 450


@pytest.mark.parametrize("name", ["eval/knn/recall@20", "a//b", "../../x", "/lead", "é f", "", "x" * 400, "a/./b"])
def test_names_are_made_what_mlflow_takes(name):
    from mlflow.utils.validation import _validate_metric, _validate_param

    _validate_metric(allowed_name(name), 1.0, 1, 1)
    _validate_param(allowed_name(name), "1")


def test_a_journal_that_the_store_refuses_does_not_hold_up_the_others(tmp_path, store):
    bad = stage(tmp_path / "results")
    journal(bad).metrics(1, {"a": 1.0})
    upload(tmp_path / "results", store, tmp_path)
    text = (bad / JOURNAL).read_text()  # edited by hand, and params cannot be changed
    (bad / JOURNAL).write_text(text.replace('"lr": 0.1', '"lr": 0.2'))
    (bad / ".upload.json").unlink()
    second(tmp_path / "results")
    report = upload(tmp_path / "results", store, tmp_path)
    assert "Changing param values" in report.problem
    assert report.pending == [str(bad / JOURNAL)]
    assert history(store, stage(tmp_path / "results", "finetune")) == [(1, 1.0)]


def test_a_run_deleted_in_the_ui_stays_deleted_and_holds_up_nothing(tmp_path, store):
    folder = stage(tmp_path / "results")
    written = journal(folder)
    upload(tmp_path / "results", store, tmp_path)
    client(store).delete_run(read_cursor(folder)["run_id"])
    written.metrics(1, {"train/loss": 1.0})
    second(tmp_path / "results")
    assert upload(tmp_path / "results", store, tmp_path, final=True).problem is None
    assert client(store).get_run(read_cursor(folder)["run_id"]).info.lifecycle_stage == "deleted"
    assert history(store, stage(tmp_path / "results", "finetune")) == [(1, 1.0)]


def test_another_store_and_a_deleted_one_get_everything_again(tmp_path, store, empty_store):
    folder = stage(tmp_path / "results")
    journal(folder).metrics(1, {"train/loss": 1.0})
    upload(tmp_path / "results", store, tmp_path)
    other = f"sqlite:///{tmp_path / 'other.db'}"
    shutil.copyfile(empty_store, tmp_path / "other.db")
    assert upload(tmp_path / "results", other, tmp_path).problem is None
    assert history(other, folder) == [(1, 1.0)]
    assert upload(tmp_path / "results", other, tmp_path).points == 0
    (tmp_path / "other.db").unlink()
    script = (  # another process, as after a deletion by hand: this one still has the file open
        "from pathlib import Path; from appssl.upload import upload\n"
        f"folder = Path({str(tmp_path)!r})\n"
        f"assert upload(folder / 'results', {other!r}, folder).points == 1\n"
    )
    subprocess.run([sys.executable, "-c", script], env=environment(), check=True, capture_output=True)


def test_what_was_not_sent_before_a_stage_ran_again_is_sent_later(tmp_path, store):
    folder = stage(tmp_path / "results")
    first = journal(folder)
    first.metrics(1, {"train/loss": 7.0})
    first.finish("FAILED", artifact_digest=None, error="it broke")
    again = journal(folder, settings_digest="repaired")
    again.metrics(1, {"train/loss": 1.0})
    again.finish("FINISHED", artifact_digest="d")
    assert upload(tmp_path / "results", store, tmp_path).problem is None
    assert history(store, folder) == [(1, 1.0)]
    experiment = client(store).get_experiment_by_name("appssl/wearable").experiment_id
    runs = client(store).search_runs([experiment], "tags.`appssl.stage` = 'pretrain'")
    assert sorted(run.info.status for run in runs) == ["FAILED", "FINISHED"]
    assert sorted(run.data.metrics["train/loss"] for run in runs) == [1.0, 7.0]
    assert [p.name for p in folder.glob("metrics*")] == [JOURNAL]


def test_a_quick_run_has_a_parent_of_its_own(tmp_path, store):
    results = tmp_path / "results"
    journal(stage(results))
    journal(stage(results / "quick"), settings_digest="quick")
    upload(results, store, tmp_path)
    runs = [client(store).get_run(read_cursor(stage(root))["run_id"]) for root in (results, results / "quick")]
    assert len({run.data.tags["mlflow.parentRunId"] for run in runs}) == 2


def test_a_parent_is_killed_and_goes_on_with_its_stage(tmp_path, store):
    folder = stage(tmp_path / "results")
    journal(folder).metrics(1, {"a": 1.0})
    upload(tmp_path / "results", store, tmp_path, final=True)
    run = client(store).get_run(read_cursor(folder)["run_id"])
    parent = run.data.tags["mlflow.parentRunId"]
    assert client(store).get_run(parent).info.status == "KILLED"
    last = max(e["time_ms"] for e in map(json.loads, (folder / JOURNAL).read_text().splitlines()))
    assert run.info.end_time == last
    journal(folder)
    upload(tmp_path / "results", store, tmp_path)
    assert client(store).get_run(parent).info.status == "RUNNING"


MODEL = {"meta": {"task": "classification", "classes": ["a", "b"]}, "input_shape": [3, 8]}


@pytest.mark.slow
def test_a_model_is_registered_once_with_its_signature_and_only_its_own_files(tmp_path, store):
    folder = stage(tmp_path / "results", "finetune")
    written = journal(folder, stage="finetune", recipe="chain")
    (folder / "model.json").write_text(json.dumps(MODEL))
    (folder / "manifest.json").write_text(json.dumps({"files": {"model.json": {}}}))
    (folder / "other.bin").write_bytes(b"not of the artifact")
    written.finish("FINISHED", artifact_digest="d")
    for _ in range(2):
        assert upload(tmp_path / "results", store, tmp_path).problem is None
        (folder / ".upload.json").unlink()
    assert upload(tmp_path / "results", store, tmp_path).problem is None
    (version,) = client(store).search_model_versions("name = 'appssl-wearable-chain'")
    from mlflow.models import get_model_info

    info = get_model_info(f"models:/appssl-wearable-chain/{version.version}")
    assert info.signature.inputs.input_types()[0].name == "float32"
    assert list(info.signature.inputs.inputs[0].shape) == [-1, 3, 8]
    stored = {p.name for p in (tmp_path / "mlartifacts").rglob("*") if p.is_file()}
    assert {"model.json", "serving.py", "requirements.txt"} <= stored
    assert not {"other.bin", JOURNAL} & stored
    assert not [name for name in stored if name.endswith(".pkl")]
    assert client(store).get_run(read_cursor(folder)["run_id"]).info.status == "FINISHED"


@pytest.mark.slow
def test_two_processes_that_create_one_store_together_both_arrive(tmp_path):
    store = f"sqlite:///{tmp_path / 'mlflow.db'}"
    scripts = []
    for number in range(2):
        journal(stage(tmp_path / f"results{number}")).metrics(1, {"train/loss": float(number)})
        scripts.append(
            "from pathlib import Path; from appssl.upload import upload\n"
            f"folder = Path({str(tmp_path)!r})\n"
            f"print(upload(folder / 'results{number}', {store!r}, folder).problem)\n"
        )
    running = [
        subprocess.Popen(
            [sys.executable, "-c", script], env=environment(), stdout=subprocess.PIPE, stderr=subprocess.DEVNULL
        )
        for script in scripts
    ]
    for process in running:
        process.communicate(timeout=120)
    for number in range(2):  # what a race may have left waiting is sent by the next pass
        assert upload(tmp_path / f"results{number}", store, tmp_path).problem is None
        assert history(store, stage(tmp_path / f"results{number}")) == [(1, float(number))]


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


def test_a_writer_that_goes_on_while_its_journal_is_sent_loses_and_doubles_nothing(tmp_path, store):
    folder = stage(tmp_path / "results")
    written = journal(folder)
    enough = threading.Event()

    def train():
        while not enough.is_set():
            written.metrics(written.last_step + 1, {"train/loss": float(written.last_step + 1)})
            time.sleep(0.001)
        written.finish("FINISHED", artifact_digest="d")

    training = threading.Thread(target=train)
    training.start()
    try:
        reports = [upload(tmp_path / "results", store, tmp_path) for _ in range(5)]
    finally:
        enough.set()
        training.join()
    assert [report.problem for report in reports] == [None] * 5
    assert sum(report.points > 0 for report in reports) > 1
    upload(tmp_path / "results", store, tmp_path)
    assert history(store, folder) == [(step, float(step)) for step in range(1, written.last_step + 1)]


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


WRITER = """
import sys, time
from pathlib import Path
from appssl.ops.journal import Journal
folder, number = Path(sys.argv[1]), int(sys.argv[2])
folder.mkdir(parents=True)
journal = Journal(folder)
journal.start(
    domain="wearable", recipe="sweep", seed=number, stage="pretrain", method="none", settings={"seed": number},
    settings_digest=str(number), upstream={}, datasets=[], description="one job of many",
)
for step in range(1, 101):
    journal.metrics(step, {"train/loss": number + step / 1024})
    time.sleep(0.1)
journal.finish("FINISHED", artifact_digest=str(number))
"""


@pytest.mark.slow
def test_twenty_jobs_write_while_four_uploads_begin_at_once_and_every_point_arrives_once(tmp_path, capfd):
    results = [tmp_path / f"results{number}" for number in range(4)]
    folders = [results[number % 4] / "wearable" / "sweep" / f"s{number}" / "pretrain" for number in range(20)]
    server = Server(tmp_path)
    server.start()
    try:
        with contextlib.ExitStack() as beside:
            for place in results:
                beside.enter_context(Uploader(place, server.uri, tmp_path))
            jobs = [
                subprocess.Popen([sys.executable, "-c", WRITER, str(folder), str(number)], env=environment())
                for number, folder in enumerate(folders)
            ]
            assert [job.wait(timeout=120) for job in jobs] == [0] * 20
        for place in results:  # a slow machine may leave something to the next pass
            assert upload(place, server.uri, tmp_path, final=True).problem is None
        assert "warning" not in capfd.readouterr().err
        for number, folder in enumerate(folders):
            assert history(server.uri, folder) == [(step, number + step / 1024) for step in range(1, 101)]
        experiment = client(server.uri).get_experiment_by_name("appssl/wearable").experiment_id
        assert len(client(server.uri).search_runs([experiment], "tags.`appssl.stage` = 'pretrain'")) == 20
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
        "import sys, time; from pathlib import Path; from appssl.upload import Uploader\n"
        f"folder = Path({str(tmp_path)!r})\n"
        f"with Uploader(folder / 'results', 'http://127.0.0.1:{free_port()}', folder):\n"
        "    time.sleep(8)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", script], env=environment(), capture_output=True, text=True, timeout=60, check=False
    )
    assert done.returncode == 0
    assert done.stderr.count("cannot be reached") == 1


def test_ctrl_c_stops_the_workflow_and_not_its_uploader(tmp_path, store):
    folder = stage(tmp_path / "results")
    written = journal(folder)
    with Uploader(tmp_path / "results", store, tmp_path) as uploader:
        status = Path(f"/proc/{uploader._process.pid}/status")
        deadline = time.monotonic() + 60
        while not int(re.search(r"SigIgn:\s*(\w+)", status.read_text())[1], 16) & 1 << (signal.SIGINT - 1):
            assert time.monotonic() < deadline
            time.sleep(0.05)
        os.kill(uploader._process.pid, signal.SIGINT)
        written.metrics(1, {"train/loss": 0.5})
    assert history(store, folder) == [(1, 0.5)]


def test_a_password_is_in_no_report_journal_or_cursor(tmp_path):
    folder = stage(tmp_path / "results")
    journal(folder).metrics(1, {"a": 1.0})
    report = upload(tmp_path / "results", "postgresql://me:hunter2@:badport/db", tmp_path)
    assert report.problem is not None
    written = [p.read_text() for p in tmp_path.rglob("*") if p.is_file()]
    assert "hunter2" not in "".join([*written, report.problem])


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
