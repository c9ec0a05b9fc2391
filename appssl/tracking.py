"""The MLflow store: what a journal becomes there. The only file that imports mlflow.

A stage never talks to MLflow; `appssl/upload.py` sends its journal. A journal can be sent again from any place: its
cursor says how far it was sent, a lost cursor is found again by a tag, and a point sent twice is one point, because it
carries the journal's own time (SQL stores have run, metric, step, time and value as the key of a point).
"""

import fcntl
import hashlib
import json
import os
import re
import shutil
import socket
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from appssl.addresses import credentials, masked
from appssl.artifact import MANIFEST, write_json
from appssl.ops.journal import JOURNAL, cursor_path, ended_without_a_word, journals, read_cursor, read_events
from appssl.settings import flatten
from appssl.version import __version__

_SQLITE = "sqlite:///"
_SECONDS_TO_CONNECT = 3.0
_METRICS_PER_BATCH, _PARAMS_PER_BATCH, _LONGEST_PARAM = 1000, 100, 500  # limits of MLflow 3, the last one ours
_LONGEST_DIGEST, _LONGEST_NAME = 36, 250
_QUIET = {
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "1",
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "20",
    "MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR": "false",
    "MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT": "true",
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


def store_id(uri: str) -> str:
    """Tells stores apart in cursors, without their passwords."""
    return hashlib.sha256(masked(uri).encode()).hexdigest()[:12]


def reachable(uri: str) -> str | None:
    """Why a store cannot be reached; None if it can."""
    try:
        connect(uri)
    except OSError as error:
        return str(error)
    return None


def connect(uri: str) -> None:
    """Raises OSError at once when no server listens, instead of after a client's many retries."""
    parts = urlsplit(uri)
    if parts.scheme in ("http", "https"):
        port = parts.port or (443 if parts.scheme == "https" else 80)
        socket.create_connection((parts.hostname or "localhost", port), timeout=_SECONDS_TO_CONNECT).close()


@contextmanager
def _alone(uri: str) -> Iterator[None]:
    """Two processes that create the tables of one SQLite file at once can leave it broken for good."""
    path = Path(uri.removeprefix(_SQLITE))
    if not uri.startswith(_SQLITE) or not path.parent.is_dir():
        yield
        return
    with path.with_name(f"{path.name}.lock").open("w") as handle:
        fcntl.flock(handle, fcntl.LOCK_EX)  # let go when the file is closed, or the process dies
        yield


class Store:
    """An MLflow store, reached through its client.

    User name and password of a server are given to MLflow in its own variables: it shows and logs addresses. The user
    name becomes the tag `mlflow.user`, a token in its place stays in the address.
    """

    def __init__(self, uri: str, project: Path) -> None:
        for name, value in _QUIET.items():
            os.environ.setdefault(name, value)
        import mlflow

        self.uri = uri
        self._mlflow = mlflow
        uri, user, password = credentials(uri)
        if user is not None and password is not None:
            os.environ.update(MLFLOW_TRACKING_USERNAME=user, MLFLOW_TRACKING_PASSWORD=password)
        mlflow.set_tracking_uri(uri)
        mlflow.set_registry_uri(uri)
        with _alone(uri):
            self._client = mlflow.MlflowClient(uri, registry_uri=uri)
            if uri.startswith(_SQLITE):
                self._client.search_experiments(max_results=1)  # creates the tables, or brings them up to date
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
            self._experiments[name] = known.experiment_id if known else self._new_experiment(name, location)
        return self._experiments[name]

    def _new_experiment(self, name: str, location: str | None) -> str:
        from mlflow.exceptions import MlflowException

        try:
            return str(self._client.create_experiment(name, location))
        except MlflowException as error:
            made = self._client.get_experiment_by_name(name)
            if error.error_code != "RESOURCE_ALREADY_EXISTS" or made is None:
                raise
            return str(made.experiment_id)  # by another uploader, just now

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
