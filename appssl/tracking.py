"""Journals of stages, and their upload to MLflow. The only file that imports mlflow, and only while uploading.

A stage writes its journal `metrics.jsonl` and never talks to MLflow; an uploader beside the workflow sends all journals
below a results folder in batches. So the tracker cannot break or slow training, any number of jobs can run at once, and
an outage of the store is a later upload. A pass can be repeated: each journal has a cursor beside it, a lost cursor is
found again by a tag, and a point sent twice is one point, because it carries the journal's own time.
"""

import contextlib
import json
import os
import re
import socket
import subprocess
import sys
import time
import uuid
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any, Literal
from urllib.parse import urlsplit

from appssl.artifact import write_json
from appssl.settings import flatten

JOURNAL = "metrics.jsonl"
CURSOR = ".upload.json"
_SECONDS_BETWEEN_PASSES = 3.0
_SECONDS_FOR_THE_LAST_PASS = 90.0
_SECONDS_TO_CONNECT = 3.0
_METRICS_PER_BATCH, _PARAMS_PER_BATCH, _LONGEST_PARAM = 1000, 100, 500  # limits of MLflow 3, the last one ours
_LONGEST_DIGEST = 36


class Journal:
    """A stage's append-only journal; every line is complete or dropped. A resumed stage continues the same run."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.path = folder / JOURNAL
        self._events = list(read_events(self.path))
        _drop_torn_line(self.path)
        self.last_step = max((e["step"] for e in self._events if e["event"] == "metrics"), default=0)

    def start(
        self,
        *,
        domain: str,
        recipe: str,
        seed: int,
        stage: str,
        method: str,
        settings: Mapping[str, Any],
        settings_digest: str,
        upstream: Mapping[str, str],
        datasets: list[dict[str, str]],
        description: str,
    ) -> None:
        """Begins a run, or continues the one in the file if it has the same settings and did not finish."""
        about = {
            "domain": domain,
            "recipe": recipe,
            "seed": seed,
            "stage": stage,
            "method": method,
            "settings": dict(settings),
            "settings_digest": settings_digest,
            "upstream": dict(upstream),
            "datasets": datasets,
            "description": description,
        }
        if self._continues(about):
            self._put("resume")
            return
        self.path.unlink(missing_ok=True)
        self._events, self.last_step = [], 0
        self._put("start", key=uuid.uuid4().hex, **about)

    @property
    def is_open(self) -> bool:
        """A run was started here and did not finish."""
        finished = any(e["event"] == "finish" and e["status"] == "FINISHED" for e in self._events)
        return bool(self._events) and not finished

    def _continues(self, about: dict[str, Any]) -> bool:
        if not self._events or self._events[0]["event"] != "start":
            return False
        return self.is_open and all(self._events[0].get(key) == about[key] for key in ("settings_digest", "datasets"))

    def metrics(self, step: int, values: Mapping[str, float]) -> None:
        """Values at a step; a step that is in the journal already is dropped, so a resume doubles nothing."""
        if step <= self.last_step:
            return
        self.last_step = step
        self._put("metrics", step=step, values={name: _number(value) for name, value in values.items()})

    def figure(self, path: Path) -> None:
        """A picture or page inside the stage's folder, to be shown beside the metrics."""
        self._put("figure", path=str(path.relative_to(self.folder)))

    def model(self, about: str) -> None:
        """The stage exports a model; `about` names its description in the stage's folder."""
        self._put("model", about=about)

    def finish(
        self, status: Literal["FINISHED", "FAILED"], *, artifact_digest: str | None, error: str | None = None
    ) -> None:
        with contextlib.suppress(OSError):  # a full disk must not hide why the stage failed
            self._put("finish", status=status, artifact_digest=artifact_digest, error=error)

    def _put(self, event: str, **values: Any) -> None:
        line = {"event": event, "time_ms": int(time.time() * 1000), **values}
        self._events.append(line)
        with self.path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(line) + "\n")


def _number(value: float) -> float | str:
    """JSON has no infinity or NaN; they are written as text and become numbers again on reading."""
    value = float(value)
    return value if value - value == 0 else str(value)


def read_events(path: Path, offset: int = 0) -> Iterator[dict[str, Any]]:
    """Complete events of a journal from a byte offset, each with `end`, the offset behind it."""
    if not path.exists():
        return
    with path.open("rb") as file:
        file.seek(offset)
        for line in file:
            offset += len(line)
            if not line.endswith(b"\n"):
                return
            try:
                event = json.loads(line)
            except ValueError:
                continue  # a line that two processes or a crash have garbled; the next one is whole again
            if isinstance(event, dict) and "event" in event:
                yield {**event, "end": offset}


def _drop_torn_line(path: Path) -> None:
    if not path.exists():
        return
    content = path.read_bytes()
    if content and not content.endswith(b"\n"):
        with path.open("r+b") as file:
            file.truncate(content.rfind(b"\n") + 1)


def metric_name(name: str) -> str:
    """A metric's name as MLflow allows it: `recall@20` becomes `recall_at_20`."""
    return re.sub(r"[^/\w.\- :]", "_", name.replace("@", "_at_"))


def store_uri(project: Path) -> str:
    """Where runs go: MLFLOW_TRACKING_URI, or a SQLite file in the project folder."""
    return os.environ.get("MLFLOW_TRACKING_URI") or f"sqlite:///{project.resolve() / 'mlflow.db'}"


def masked(uri: str) -> str:
    """A store's address without its password."""
    return re.sub(r"(://[^:/@]*):[^@/]*@", r"\1:***@", uri)


@dataclass
class UploadReport:
    """What a pass did."""

    points: int = 0
    runs: int = 0
    problem: str | None = None
    pending: list[str] = field(default_factory=list)


def pending_journals(results: Path) -> list[Path]:
    """Journals with lines that were not sent, oldest first. Cheap: looks at sizes only."""
    found = []
    for path in results.rglob(JOURNAL):
        cursor = read_cursor(path.parent)
        first = next(read_events(path), None)
        if first is None or first["event"] != "start":
            continue
        if cursor.get("key") != first["key"] or cursor.get("offset", 0) < path.stat().st_size:
            found.append((first["time_ms"], path))
    return [path for _, path in sorted(found)]


def read_cursor(folder: Path) -> dict[str, Any]:
    """How far a journal was sent: key, run_id, offset; {} if nothing was."""
    try:
        return json.loads((folder / CURSOR).read_text())
    except (OSError, ValueError):
        return {}


def upload(results: Path, uri: str, project: Path, *, final: bool = False) -> UploadReport:
    """One pass over all journals below `results`. Never raises for a store that is away.

    Args:
        uri: of the store. project: artifacts go to `mlartifacts` in it when the store is a SQLite file.
        final: no stage runs any more; runs without an end are marked as killed.
    """
    report = UploadReport()
    journals = pending_journals(results)
    if not journals and not final:
        return report
    try:
        _connect(uri)
        store = _Store(uri, project)
        for path in journals:
            report.points += store.send(path)
            report.runs += 1
        if final:
            store.mark_killed(results)
    except Exception as error:
        report.problem = f"{type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''}"
        report.pending = [str(path) for path in pending_journals(results)]
    return report


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
        for name, value in {
            "MLFLOW_DISABLE_TELEMETRY": "true",
            "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "1",
            "MLFLOW_HTTP_REQUEST_TIMEOUT": "20",
            "GIT_PYTHON_REFRESH": "quiet",
        }.items():
            os.environ.setdefault(name, value)
        import mlflow

        self._mlflow = mlflow
        mlflow.set_tracking_uri(uri)
        mlflow.set_registry_uri(uri)
        self._client = mlflow.MlflowClient(uri, registry_uri=uri)
        self._artifacts = (project / "mlartifacts").resolve().as_uri() if uri.startswith("sqlite") else None
        self._experiments: dict[str, str] = {}

    def send(self, path: Path) -> int:
        """Sends what is new in a journal; returns the number of metric points."""
        folder = path.parent
        start = next(read_events(path))
        cursor = read_cursor(folder)
        if cursor.get("key") != start["key"]:
            cursor = {"key": start["key"], "run_id": self._run_of(start, folder), "offset": 0}
            write_json(folder / CURSOR, cursor)
        run_id, sent = cursor["run_id"], 0
        waiting: list[Any] = []
        end = cursor["offset"]
        for event in read_events(path, cursor["offset"]):
            end = event["end"]
            if event["event"] == "metrics":
                waiting += self._points(event)
                if len(waiting) < _METRICS_PER_BATCH:
                    continue
            sent += self._send_points(run_id, waiting)
            waiting = []
            self._apply(event, run_id, folder, start)
            write_json(folder / CURSOR, {**cursor, "offset": end})
        sent += self._send_points(run_id, waiting)
        write_json(folder / CURSOR, {**cursor, "offset": end})
        return sent

    def _points(self, event: dict[str, Any]) -> list[Any]:
        from mlflow.entities import Metric

        return [Metric(metric_name(k), float(v), event["time_ms"], event["step"]) for k, v in event["values"].items()]

    def _send_points(self, run_id: str, points: list[Any]) -> int:
        for first in range(0, len(points), _METRICS_PER_BATCH):
            self._client.log_batch(run_id, metrics=points[first : first + _METRICS_PER_BATCH])
        return len(points)

    def _apply(self, event: dict[str, Any], run_id: str, folder: Path, start: dict[str, Any]) -> None:
        if event["event"] == "resume":
            self._client.update_run(run_id, status="RUNNING")
        elif event["event"] == "figure" and (folder / event["path"]).is_file():
            self._client.log_artifact(run_id, str(folder / event["path"]))
        elif event["event"] == "model":
            self._client.set_tag(run_id, "appssl.model", event["about"])
        elif event["event"] == "finish":
            self._finish(event, run_id, folder, start)

    def _finish(self, event: dict[str, Any], run_id: str, folder: Path, start: dict[str, Any]) -> None:
        for name in ("config.yaml", "manifest.json"):
            if (folder / name).is_file():
                self._client.log_artifact(run_id, str(folder / name))
        if event["artifact_digest"]:
            self._client.set_tag(run_id, "appssl.artifact_digest", event["artifact_digest"])
        if event["error"]:
            self._client.set_tag(run_id, "appssl.error", event["error"][:_LONGEST_PARAM])
        if event["status"] == "FINISHED" and (folder / "model.json").is_file():
            self._register(run_id, folder, start)
        self._client.set_terminated(run_id, event["status"], event["time_ms"])
        parent = self._client.get_run(run_id).data.tags.get("mlflow.parentRunId")
        if parent and (event["status"] == "FAILED" or start["stage"] == "report"):
            self._client.set_terminated(parent, event["status"], event["time_ms"])

    def _register(self, run_id: str, folder: Path, start: dict[str, Any]) -> None:
        """The fine-tuned model as code that loads the stage's files; nothing is pickled."""
        import numpy as np
        from mlflow.models import ModelSignature
        from mlflow.types import Schema, TensorSpec

        about = json.loads((folder / "model.json").read_text(encoding="utf-8"))
        if about["meta"]["task"] == "ranking":
            inputs, outputs = TensorSpec(np.dtype("int64"), (-1,)), TensorSpec(np.dtype("float32"), (-1, -1))
        else:
            inputs = TensorSpec(np.dtype("float32"), (-1, *about["input_shape"]))
            outputs = TensorSpec(np.dtype("float32"), (-1, len(about["meta"]["classes"])))
        tags = self._client.get_run(run_id).data.tags
        if "appssl.registered" in tags:  # a replay after a lost cursor
            return
        with self._mlflow.start_run(run_id=run_id):
            self._mlflow.pyfunc.log_model(
                name="model",
                python_model=str(Path(__file__).with_name("serving.py")),
                artifacts={"model": str(folder)},
                signature=ModelSignature(inputs=Schema([inputs]), outputs=Schema([outputs])),
                registered_model_name=f"appssl-{start['domain']}-{start['recipe']}",
                pip_requirements=["appssl"],
            )
        self._client.set_tag(run_id, "appssl.registered", "true")

    def _run_of(self, start: dict[str, Any], folder: Path) -> str:
        """The MLflow run of a journal: found by its key, or made."""
        experiment = self._experiment(start["domain"])
        found = self._client.search_runs([experiment], f"tags.`appssl.key` = '{start['key']}'", max_results=1)
        if found:
            return found[0].info.run_id
        tags = {
            "appssl.key": start["key"],
            "appssl.pipeline": start["domain"],
            "appssl.recipe": start["recipe"],
            "appssl.seed": str(start["seed"]),
            "appssl.stage": start["stage"],
            "appssl.method": start["method"],
            "appssl.settings_digest": start["settings_digest"],
            "appssl.folder": folder.as_posix(),
            "appssl.upstream": ",".join(self._upstream(start)),
            "mlflow.note.content": start["description"],
        }
        name = start["stage"]
        if start["stage"] == "prepare":
            name = f"prepare/{start['recipe']}"
        else:
            tags["mlflow.parentRunId"] = self._parent(experiment, start)
        run_id = self._client.create_run(experiment, start["time_ms"], tags, name).info.run_id
        self._describe(run_id, start)
        return run_id

    def _upstream(self, start: dict[str, Any]) -> list[str]:
        return [read_cursor(Path(path)).get("run_id", name) for name, path in start["upstream"].items()]

    def _describe(self, run_id: str, start: dict[str, Any]) -> None:
        from mlflow.entities import Dataset, DatasetInput, InputTag, Param

        params = [Param(key, str(value)[:_LONGEST_PARAM]) for key, value in flatten(start["settings"]).items()]
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

    def _parent(self, experiment: str, start: dict[str, Any]) -> str:
        name = f"{start['recipe']}/s{start['seed']}"
        query = f"tags.`appssl.role` = 'parent' and tags.`mlflow.runName` = '{name}'"
        found = self._client.search_runs([experiment], query, max_results=1)
        if found:
            parent = found[0].info.run_id
            self._client.update_run(parent, status="RUNNING")
            return parent
        tags = {
            "appssl.role": "parent",
            "appssl.pipeline": start["domain"],
            "appssl.recipe": start["recipe"],
            "appssl.seed": str(start["seed"]),
        }
        return self._client.create_run(experiment, start["time_ms"], tags, name).info.run_id

    def _experiment(self, domain: str) -> str:
        name = f"appssl/{domain}"
        if name not in self._experiments:
            known = self._client.get_experiment_by_name(name)
            location = f"{self._artifacts}/{domain}" if self._artifacts else None
            self._experiments[name] = known.experiment_id if known else self._client.create_experiment(name, location)
        return self._experiments[name]

    def mark_killed(self, results: Path) -> None:
        """Runs whose stage ended without a word get the status KILLED; a resume makes them RUNNING again."""
        for path in results.rglob(JOURNAL):
            cursor = read_cursor(path.parent)
            ends = [event["event"] for event in read_events(path)]
            if cursor and "finish" not in ends[max((i for i, e in enumerate(ends) if e == "resume"), default=0) :]:
                self._client.set_terminated(cursor["run_id"], "KILLED")


class Uploader:
    """Sends journals from a process of its own while the workflow runs, and a last time, bounded, at its end."""

    def __init__(self, results: Path, uri: str, project: Path) -> None:
        self._command = [sys.executable, "-m", "appssl.tracking", str(results), str(project)]
        self._log = results / ".upload.log"
        self._environment = {**os.environ, "MLFLOW_TRACKING_URI": uri}
        self._process: subprocess.Popen[bytes] | None = None

    def __enter__(self) -> "Uploader":
        self._log.parent.mkdir(parents=True, exist_ok=True)
        with self._log.open("wb") as log:  # MLflow is talkative; only warnings, on stdout, are for the user
            self._process = subprocess.Popen(
                self._command, stdin=subprocess.PIPE, stdout=sys.stderr.fileno(), stderr=log, env=self._environment
            )
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        assert self._process is not None
        assert self._process.stdin is not None
        self._process.stdin.close()  # also closed by the kernel when this process dies
        try:
            self._process.wait(_SECONDS_FOR_THE_LAST_PASS)
        except subprocess.TimeoutExpired:
            self._process.kill()
            print("warning: the MLflow store is slow; 'appssl ui' sends the rest of the metrics later", file=sys.stderr)


def _serve(results: Path, project: Path) -> None:
    """The uploader's process: passes until the parent closes its end of stdin, then a last one."""
    import select

    uri = store_uri(project)
    warned = False
    open_ = True
    while open_:
        readable, _, _ = select.select([sys.stdin], [], [], _SECONDS_BETWEEN_PASSES)
        open_ = not readable
        problem = upload(results, uri, project, final=not open_ and _was_used(results)).problem
        if problem and not warned:
            warned = True
            print(
                f"warning: the MLflow store {masked(uri)} cannot be reached ({problem}). Nothing is lost: metrics lie "
                "beside the results and are sent by the next 'appssl run' or 'appssl ui'.",
                flush=True,
            )


def _was_used(results: Path) -> bool:
    """Whether anything ran here that may have ended without a word: a journal without an end."""
    return any("finish" not in {event["event"] for event in read_events(path)} for path in results.rglob(JOURNAL))


if __name__ == "__main__":
    _serve(Path(sys.argv[1]), Path(sys.argv[2]))
