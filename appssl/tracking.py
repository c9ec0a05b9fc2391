"""Upload of stages' journals to MLflow. The only file that imports mlflow, and only while uploading.

A stage writes its journal and never talks to MLflow; an uploader beside the workflow sends all journals below a results
folder in batches. So the tracker cannot break or slow training, any number of jobs can run at once, and an outage of
the store is a later upload. A pass can be repeated: each journal has a cursor beside it, a lost cursor is found again
by a tag, and a point sent twice is one point, because it carries the journal's own time (SQL stores have run, metric,
step, time and value as the key of a point).
"""

import fcntl
import hashlib
import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any
from urllib.parse import urlsplit

from appssl.artifact import MANIFEST, write_json
from appssl.ops.journal import (
    JOURNAL,
    Journal,
    cursor_path,
    ended_without_a_word,
    is_pending,
    journals,
    read_cursor,
    read_events,
)
from appssl.settings import flatten
from appssl.version import __version__

__all__ = ["JOURNAL", "Journal", "Uploader", "masked", "reachable", "read_cursor", "read_events", "store_uri", "upload"]

_SECONDS_BETWEEN_PASSES = 3.0
_SECONDS_FOR_THE_LAST_PASS = 90.0
_SECONDS_TO_CONNECT = 3.0
_SECONDS_FOR_ANOTHER_UPLOADER = 30.0
_MOST_PROBLEMS = 3  # in a row; then the store, and not a journal, is what is wrong
_METRICS_PER_BATCH, _PARAMS_PER_BATCH, _LONGEST_PARAM = 1000, 100, 500  # limits of MLflow 3, the last one ours
_LONGEST_DIGEST, _LONGEST_NAME = 36, 250
_QUIET = {
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "1",
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "20",
    "MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR": "false",
    "GIT_PYTHON_REFRESH": "quiet",
}


def allowed_name(name: str) -> str:
    """A metric's or parameter's name as MLflow allows it: `recall@20` becomes `recall_at_20`, `a//../b` `a/__/b`."""
    plain = re.sub(r"[^/\w.\- :]", "_", name.replace("@", "_at_"))
    parts = ["__" if part == ".." else part for part in plain.split("/") if part not in ("", ".")]
    joined = "/".join(parts) or "_"
    if len(joined) <= _LONGEST_NAME:
        return joined
    return f"{joined[: _LONGEST_NAME - 9]}_{hashlib.sha256(name.encode()).hexdigest()[:8]}"


def cut(value: str) -> str:
    """A parameter's value; a long one ends with a note, the whole is in `config.yaml`."""
    note = f"... (cut, {len(value)} characters)"
    return value if len(value) <= _LONGEST_PARAM else value[: _LONGEST_PARAM - len(note)] + note


def store_uri(project: Path) -> str:
    """Where runs go: MLFLOW_TRACKING_URI, or a SQLite file in the project folder."""
    return os.environ.get("MLFLOW_TRACKING_URI") or f"sqlite:///{project.resolve() / 'mlflow.db'}"


def masked(text: str) -> str:
    """A store's address, or a message that holds one, without its password."""
    return re.sub(r"(://[^:/@\s]*):[^\s'\"]*@", r"\1:***@", text)


@dataclass
class UploadReport:
    """What a pass did: metric points and journals sent, the first problem (without secrets), journals that wait."""

    points: int = 0
    runs: int = 0
    problem: str | None = None
    pending: list[str] = field(default_factory=list)


def upload(results: Path, uri: str, project: Path, *, final: bool = False) -> UploadReport:
    """One pass over all journals below `results`. Never raises for a store that is away.

    One journal that the store refuses does not hold up the others. When there is nothing new, MLflow is not imported.

    Args:
        uri: of the store. project: artifacts go to `mlartifacts` in it when the store is a SQLite file.
        final: no stage runs any more; runs without an end are marked as killed.
    """
    report = UploadReport()
    try:
        if not _waiting(results, uri, final=final):
            return report
        with _one_at_a_time(results):
            waiting = _waiting(results, uri, final=final)  # before a SQLite file that was deleted is made again
            _connect(uri)
            store = _Store(uri, project)
            _send_all(store, waiting, report, final=final)
            if final and report.problem is None:
                store.finish_parents(results)
    except Exception as error:
        report.problem = report.problem or _said(error)
    if report.problem is not None:
        report.pending = [str(path) for path in _waiting(results, uri, final=False)]
    return report


def _send_all(store: "_Store", waiting: list[Path], report: UploadReport, *, final: bool) -> None:
    failed_in_a_row = 0
    for path in waiting:
        try:
            report.points += store.send(path)
            if final or path.name != JOURNAL:
                store.mark_killed(path)
            report.runs += 1
            failed_in_a_row = 0
        except Exception as error:
            report.problem = report.problem or _said(error)
            failed_in_a_row += 1
            _connect(store.uri)
            if failed_in_a_row >= _MOST_PROBLEMS:
                raise


def _said(error: Exception) -> str:
    first_line = str(error).splitlines()[0] if str(error) else ""
    return masked(f"{type(error).__name__}: {first_line}")


def _waiting(results: Path, uri: str, *, final: bool) -> list[Path]:
    """Journals with something to send, oldest first. Cheap: looks at sizes, and reads open journals when `final`."""
    return [path for path in journals(results) if _waits(path, uri, final=final)]


def _waits(path: Path, uri: str, *, final: bool) -> bool:
    cursor = {} if _is_gone(uri) else read_cursor(path)
    if path.name != JOURNAL or is_pending(path, cursor, store_id(uri)):
        return True
    return final and "killed" not in cursor and ended_without_a_word(path) is not None


def store_id(uri: str) -> str:
    """Tells stores apart in cursors, without their passwords."""
    return hashlib.sha256(masked(uri).encode()).hexdigest()[:12]


def _is_gone(uri: str) -> bool:
    """A SQLite file that somebody deleted: everything is sent again to the new one."""
    file = uri.removeprefix("sqlite:///").partition("?")[0]
    return uri.startswith("sqlite:///") and not Path(file).exists()


@contextmanager
def _one_at_a_time(results: Path) -> Iterator[None]:
    """Two uploaders of one results folder take turns by pass: both would make a run that neither finds yet."""
    handle = os.open(results / ".upload.lock", os.O_RDWR | os.O_CREAT, 0o644)
    try:
        deadline = time.monotonic() + _SECONDS_FOR_ANOTHER_UPLOADER
        while True:
            try:
                fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                if time.monotonic() > deadline:
                    raise TimeoutError(f"{results}: another uploader is at work") from None
                time.sleep(0.2)
        yield
    finally:
        os.close(handle)


def reachable(uri: str) -> str | None:
    """Why a store cannot be reached; None if it can."""
    try:
        _connect(uri)
    except OSError as error:
        return str(error)
    return None


def _connect(uri: str) -> None:
    """Raises OSError at once when no server listens, instead of after a client's many retries."""
    parts = urlsplit(uri)
    if parts.scheme in ("http", "https"):
        port = parts.port or (443 if parts.scheme == "https" else 80)
        socket.create_connection((parts.hostname or "localhost", port), timeout=_SECONDS_TO_CONNECT).close()


class _Store:
    """An MLflow store, reached through its client."""

    def __init__(self, uri: str, project: Path) -> None:
        for name, value in _QUIET.items():
            os.environ.setdefault(name, value)
        import mlflow

        self.uri = uri
        self._mlflow = mlflow
        mlflow.set_tracking_uri(uri)
        mlflow.set_registry_uri(uri)
        self._client = mlflow.MlflowClient(uri, registry_uri=uri)
        self._artifacts = (project / "mlartifacts").resolve().as_uri() if uri.startswith("sqlite") else None
        self._experiments: dict[str, str] = {}

    def send(self, path: Path) -> int:
        """Sends what is new in a journal; returns the number of metric points."""
        start = next(read_events(path))
        cursor = self._cursor(path, start)
        run_id, end, sent = cursor["run_id"], cursor["offset"], 0
        waiting: list[Any] = []
        for event in read_events(path, cursor["offset"]):
            end = event["end"]
            if event["event"] == "metrics":
                waiting += self._points(event)
                if len(waiting) < _METRICS_PER_BATCH:
                    continue
            sent += self._send_points(run_id, waiting, start)
            waiting = []
            self._apply(event, run_id, path, start)
            write_json(cursor_path(path), {**cursor, "offset": end})
        sent += self._send_points(run_id, waiting, start)
        write_json(cursor_path(path), {**cursor, "offset": end})
        return sent

    def _cursor(self, path: Path, start: dict[str, Any]) -> dict[str, Any]:
        """Where to go on; from the start for a new run, another store, or a store that lost the run."""
        cursor = read_cursor(path)
        mine = {"key": start["key"], "store": store_id(self.uri)}
        if cursor.get("key") == mine["key"] and cursor.get("store", mine["store"]) == mine["store"]:
            stage = self._stage_of(cursor["run_id"])
            if stage == "active":
                return {**mine, "run_id": cursor["run_id"], "offset": cursor["offset"]}
            if stage == "deleted":  # by a user, on purpose: it stays deleted, and nothing waits for it
                return {**mine, "run_id": cursor["run_id"], "offset": path.stat().st_size}
        cursor = {**mine, "run_id": self._run_of(start, path.parent), "offset": 0}
        write_json(cursor_path(path), cursor)
        return cursor

    def _stage_of(self, run_id: str) -> str | None:
        """`active`, `deleted`, or None if the store does not know the run."""
        from mlflow.exceptions import MlflowException

        try:
            return str(self._client.get_run(run_id).info.lifecycle_stage)
        except MlflowException as error:
            if error.error_code == "RESOURCE_DOES_NOT_EXIST":
                return None
            raise

    def _points(self, event: dict[str, Any]) -> list[Any]:
        from mlflow.entities import Metric

        return [Metric(allowed_name(k), float(v), event["time_ms"], event["step"]) for k, v in event["values"].items()]

    def _send_points(self, run_id: str, points: list[Any], start: Mapping[str, Any]) -> int:
        """What was evaluated is sent to the parent too, where runs are compared."""
        parent = self._parent_of(run_id) if points and start["stage"] == "evaluate" else None
        for target in filter(None, (run_id, parent)):
            for first in range(0, len(points), _METRICS_PER_BATCH):
                self._client.log_batch(target, metrics=points[first : first + _METRICS_PER_BATCH])
        return len(points)

    def _apply(self, event: dict[str, Any], run_id: str, path: Path, start: dict[str, Any]) -> None:
        folder = path.parent
        if event["event"] == "resume":
            self._client.update_run(run_id, status="RUNNING")
            self._set_parent(run_id, "RUNNING", None)
        elif event["event"] == "figure" and path.name == JOURNAL and (folder / event["path"]).is_file():
            self._client.log_artifact(run_id, str(folder / event["path"]))
        elif event["event"] == "model":
            self._client.set_tag(run_id, "appssl.model", event["about"])
        elif event["event"] == "finish":
            self._finish(event, run_id, path, start)

    def _finish(self, event: dict[str, Any], run_id: str, path: Path, start: dict[str, Any]) -> None:
        if event["artifact_digest"]:
            self._client.set_tag(run_id, "appssl.artifact_digest", event["artifact_digest"])
        if event["error"]:
            self._client.set_tag(run_id, "appssl.error", cut(event["error"]))
        try:
            if path.name == JOURNAL:  # the files beside a journal that was set aside are another run's
                self._add_files(event, run_id, path.parent, start)
        finally:
            self._client.set_terminated(run_id, event["status"], event["time_ms"])
        if event["status"] == "FAILED" or start["stage"] == "report":
            self._set_parent(run_id, event["status"], event["time_ms"])

    def _add_files(self, event: dict[str, Any], run_id: str, folder: Path, start: dict[str, Any]) -> None:
        for name in ("config.yaml", MANIFEST):
            if (folder / name).is_file():
                self._client.log_artifact(run_id, str(folder / name))
        if event["status"] == "FINISHED" and (folder / "model.json").is_file():
            self._register(run_id, folder, start)

    def _set_parent(self, run_id: str, status: str, time_ms: int | None) -> None:
        parent = self._parent_of(run_id)
        if parent and status == "RUNNING":
            self._client.update_run(parent, status=status)
        elif parent:
            self._client.set_terminated(parent, status, time_ms)

    def _parent_of(self, run_id: str) -> str | None:
        found: str | None = self._client.get_run(run_id).data.tags.get("mlflow.parentRunId")
        return found

    def finish_parents(self, results: Path) -> None:
        """Ends the parents of runs of which only a part was wanted, such as one that another is compared with."""
        runs: dict[Path, list[Path]] = {}
        for path in journals(results):
            if path.name == JOURNAL:
                runs.setdefault(path.parent.parent, []).append(path)
        for folder, own in runs.items():
            ends = [list(read_events(path))[-1] for path in own]
            if (folder / "report").exists() or any(end.get("status") != "FINISHED" for end in ends):
                continue
            parent = self._parent_of(read_cursor(own[0])["run_id"])
            if parent and self._client.get_run(parent).info.status == "RUNNING":
                self._client.set_terminated(parent, "FINISHED", max(end["time_ms"] for end in ends))

    def _register(self, run_id: str, folder: Path, start: dict[str, Any]) -> None:
        """The fine-tuned model as code that loads the stage's files; nothing is pickled."""
        import numpy as np
        from mlflow.models import ModelSignature
        from mlflow.types import Schema, TensorSpec

        if self._client.search_model_versions(f"run_id = '{run_id}'"):  # a replay after a lost cursor
            return
        about = json.loads((folder / "model.json").read_text(encoding="utf-8"))
        if about["meta"]["task"] == "ranking":
            inputs, outputs = TensorSpec(np.dtype("int64"), (-1,)), TensorSpec(np.dtype("float32"), (-1, -1))
        else:
            inputs = TensorSpec(np.dtype("float32"), (-1, *about["input_shape"]))
            outputs = TensorSpec(np.dtype("float32"), (-1, len(about["meta"]["classes"])))
        with tempfile.TemporaryDirectory(prefix="appssl-") as scratch, self._mlflow.start_run(run_id=run_id):
            self._mlflow.pyfunc.log_model(
                name="model",
                python_model=str(Path(__file__).with_name("serving.py")),
                artifacts={"model": str(_linked(folder, Path(scratch) / "model"))},
                signature=ModelSignature(inputs=Schema([inputs]), outputs=Schema([outputs])),
                registered_model_name=allowed_name(f"appssl-{start['domain']}-{start['recipe']}").replace("/", "-"),
                pip_requirements=[f"appssl=={start.get('version', __version__)}"],
            )

    def _run_of(self, start: dict[str, Any], folder: Path) -> str:
        """The MLflow run of a journal: found by its key, or made."""
        experiment = self._experiment(start["domain"])
        run_id = self._found(experiment, start["key"])
        if run_id is None:
            tags = {
                **_tags(start, start["key"]),
                "appssl.stage": start["stage"],
                "appssl.method": start["method"],
                "appssl.settings_digest": start["settings_digest"],
                "appssl.version": start.get("version", ""),
                "appssl.folder": folder.as_posix(),
                "appssl.upstream": ",".join(self._upstream(start)),
                "mlflow.note.content": start["description"],
            }
            name = start["stage"]
            if start["stage"] == "prepare":
                name = f"prepare/{start['recipe']}"
            else:
                tags["mlflow.parentRunId"] = self._parent(experiment, start, folder.parent)
            run_id = self._client.create_run(experiment, start["time_ms"], tags, name).info.run_id
        self._describe(run_id, start)  # also one that was found: it may have been made just before a kill
        return run_id

    def _found(self, experiment: str, key: str) -> str | None:
        found = self._client.search_runs([experiment], f"tags.`appssl.key` = '{key}'", max_results=1)
        return str(found[0].info.run_id) if found else None

    def _upstream(self, start: dict[str, Any]) -> list[str]:
        return [read_cursor(Path(path)).get("run_id", name) for name, path in start["upstream"].items()]

    def _describe(self, run_id: str, start: dict[str, Any]) -> None:
        """Params and data sets; a store takes the same ones again without a word."""
        from mlflow.entities import Dataset, DatasetInput, InputTag, Param

        values = {allowed_name(key): cut(str(value)) for key, value in flatten(start["settings"]).items()}
        params = [Param(key, value) for key, value in values.items()]
        for first in range(0, len(params), _PARAMS_PER_BATCH):
            self._client.log_batch(run_id, params=params[first : first + _PARAMS_PER_BATCH])
        inputs = [
            DatasetInput(
                Dataset(d["name"], d["digest"][:_LONGEST_DIGEST], "local", json.dumps({"uri": d["name"]})),
                [InputTag("mlflow.data.context", d["context"])],
            )
            for d in start["datasets"]
        ]
        if inputs:
            self._client.log_inputs(run_id, inputs)

    def _parent(self, experiment: str, start: dict[str, Any], folder: Path) -> str:
        """The run over the stages in a run's folder; --quick and another results folder have their own."""
        key = hashlib.sha256(folder.resolve().as_posix().encode()).hexdigest()[:32]
        parent = self._found(experiment, key)
        if parent is not None:
            self._client.update_run(parent, status="RUNNING")
            return parent
        tags = {**_tags(start, key), "appssl.role": "parent", "appssl.folder": folder.as_posix()}
        name = f"{start['recipe']}/s{start['seed']}"
        return str(self._client.create_run(experiment, start["time_ms"], tags, name).info.run_id)

    def _experiment(self, domain: str) -> str:
        name = f"appssl/{domain}"
        if name not in self._experiments:
            known = self._client.get_experiment_by_name(name)
            location = f"{self._artifacts}/{domain}" if self._artifacts else None
            self._experiments[name] = known.experiment_id if known else self._client.create_experiment(name, location)
        return self._experiments[name]

    def mark_killed(self, path: Path) -> None:
        """A run whose stage ended without a word gets the status KILLED; a resume makes it RUNNING again.

        A journal that was set aside is deleted: all of it was sent, and a new run is in its place.
        """
        cursor, last = read_cursor(path), ended_without_a_word(path)
        if last is not None and self._stage_of(cursor["run_id"]) == "active":
            self._client.set_terminated(cursor["run_id"], "KILLED", last["time_ms"])
            if path.name == JOURNAL:
                self._set_parent(cursor["run_id"], "KILLED", last["time_ms"])
        if last is not None:
            write_json(cursor_path(path), {**cursor, "killed": True})
        if path.name != JOURNAL:
            path.unlink()
            cursor_path(path).unlink(missing_ok=True)


def _tags(start: Mapping[str, Any], key: str) -> dict[str, str]:
    return {
        "appssl.key": key,
        "appssl.pipeline": start["domain"],
        "appssl.recipe": start["recipe"],
        "appssl.seed": str(start["seed"]),
    }


def _linked(folder: Path, copy: Path) -> Path:
    """The files of an artifact, and nothing else that lies beside them; without copying where the disk allows it."""
    manifest = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))
    for name in (*manifest["files"], MANIFEST):
        (copy / name).parent.mkdir(parents=True, exist_ok=True)
        try:
            os.link(folder / name, copy / name)  # MLflow refuses symbolic links
        except OSError:  # another disk
            shutil.copyfile(folder / name, copy / name)
    return copy


class Uploader:
    """Sends journals from a process of its own while the workflow runs, and a last time, bounded, at its end.

    Never raises: a workflow without its uploader is complete, and is sent later.
    """

    def __init__(self, results: Path, uri: str, project: Path) -> None:
        self._command = [sys.executable, "-m", "appssl.tracking", str(results), str(project)]
        self._log = results / ".upload.log"
        self._environment = {**os.environ, "MLFLOW_TRACKING_URI": uri}
        self._process: subprocess.Popen[bytes] | None = None

    def __enter__(self) -> "Uploader":
        try:
            self._log.parent.mkdir(parents=True, exist_ok=True)
            with self._log.open("wb") as log:  # MLflow is talkative; only warnings, on stdout, are for the user
                self._process = subprocess.Popen(
                    self._command, stdin=subprocess.PIPE, stdout=2, stderr=log, env=self._environment
                )
        except OSError as error:
            print(f"warning: metrics are not sent now ({error}); 'appssl ui' sends them later", file=sys.stderr)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._process is None or self._process.stdin is None:
            return
        self._process.stdin.close()  # also closed by the kernel when this process dies
        try:
            self._process.wait(_SECONDS_FOR_THE_LAST_PASS)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
            print("warning: the MLflow store is slow; 'appssl ui' sends the rest of the metrics later", file=sys.stderr)


def _serve(results: Path, project: Path) -> None:
    """The uploader's process: passes until the parent closes its end of stdin, then a last one."""
    import select

    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C stops the workflow; what it wrote until then is still sent
    uri = store_uri(project)
    warned = False
    open_ = True
    while open_:
        readable, _, _ = select.select([sys.stdin], [], [], _SECONDS_BETWEEN_PASSES)
        open_ = not readable
        problem = upload(results, uri, project, final=not open_).problem
        if problem and not warned:
            warned = True
            print(
                f"warning: the MLflow store {masked(uri)} cannot be reached ({problem}). Nothing is lost: metrics lie "
                "beside the results and are sent by the next 'appssl run' or 'appssl ui'.",
                flush=True,
            )


if __name__ == "__main__":
    _serve(Path(sys.argv[1]), Path(sys.argv[2]))
