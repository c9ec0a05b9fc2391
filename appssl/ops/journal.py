"""The journal of a stage, `metrics.jsonl`: written first, and the truth that an uploader sends to MLflow later."""

import contextlib
import json
import os
import time
import uuid
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Literal

from appssl.addresses import masked
from appssl.errors import NOT_JSON
from appssl.version import __version__

JOURNAL = "metrics.jsonl"
CURSOR = ".upload.json"
_MANIFEST = "manifest.json"
_MODE = 0o644


class Journal:
    """A stage's append-only journal; every line is complete or dropped. A resumed stage continues the same run."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.path = folder / JOURNAL
        self.last_step = 0
        self._first: dict[str, Any] | None = None
        self._finished = False
        for event in read_events(self.path):
            self._note(event)
        _drop_torn_line(self.path)

    def _note(self, event: dict[str, Any]) -> None:
        """Remembers what decides how the journal goes on; not the values, a long run has millions."""
        self._first = self._first or event
        if event["event"] == "metrics":
            self.last_step = max(self.last_step, event["step"])
        elif event["event"] == "finish" and event["status"] == "FINISHED":
            self._finished = True

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
            "version": __version__,
        }
        if self._continues(about):
            self._put("resume")
            return
        self._set_aside()
        self._first, self._finished, self.last_step = None, False, 0
        self._put("start", key=uuid.uuid4().hex, **about)

    @property
    def is_open(self) -> bool:
        """A run was started here and did not finish."""
        return self._first is not None and not self._finished

    def _continues(self, about: dict[str, Any]) -> bool:
        first = self._first
        if first is None or first["event"] != "start" or self._finished:
            return False
        return all(first.get(key) == about[key] for key in ("settings_digest", "datasets"))

    def _set_aside(self) -> None:
        """Makes room for a new run. What was not sent of the one before is kept until it is."""
        if self._first is not None and is_pending(self.path, read_cursor(self.path)):
            os.replace(self.path, self.folder / f"metrics.{self._first.get('key', '')[:8]}.jsonl")
        else:
            self.path.unlink(missing_ok=True)

    def metrics(self, step: int, values: Mapping[str, float]) -> None:
        """Values at a step; a step that is in the journal already is dropped, so a resume doubles nothing."""
        if step <= self.last_step:
            return
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
            self._put("finish", status=status, artifact_digest=artifact_digest, error=masked(error or "") or None)

    def _put(self, event: str, **values: Any) -> None:
        line = {"event": event, "time_ms": int(time.time() * 1000), **values}
        _append(self.path, (json.dumps(line) + "\n").encode())
        self._note(line)


def _append(path: Path, line: bytes) -> None:
    """Appends a whole line or, on a full disk, nothing: half a line would spoil the next one too."""
    handle = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, _MODE)
    try:
        size = os.fstat(handle).st_size
        try:
            rest = line
            while rest:
                rest = rest[os.write(handle, rest) :]
        except OSError:
            os.ftruncate(handle, size)
            raise
    finally:
        os.close(handle)


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
            except NOT_JSON:
                continue  # a line that two processes or a crash have garbled; the next one is whole again
            if isinstance(event, dict) and isinstance(event.get("event"), str):
                yield {**event, "end": offset}


def _drop_torn_line(path: Path) -> None:
    if not path.exists():
        return
    content = path.read_bytes()
    if content and not content.endswith(b"\n"):
        with path.open("r+b") as file:
            file.truncate(content.rfind(b"\n") + 1)


def cursor_path(journal: Path) -> Path:
    """Where the uploader notes how far it sent a journal; one that was set aside has its own."""
    aside = journal.name.removeprefix("metrics").removesuffix(".jsonl")
    return journal.with_name(CURSOR if not aside else f".upload{aside}.json")


def read_cursor(where: Path) -> dict[str, Any]:
    """How far a journal, given itself or by its stage's folder, was sent: key, run_id, offset, store; {} if not."""
    path = cursor_path(where) if where.suffix == ".jsonl" else where / CURSOR
    try:
        cursor = json.loads(path.read_text())
    except (OSError, *NOT_JSON):
        return {}
    return cursor if isinstance(cursor, dict) and isinstance(cursor.get("offset", 0), int) else {}


def is_pending(journal: Path, cursor: Mapping[str, Any], store: str | None = None) -> bool:
    """Whether a journal has lines that were not sent (to this store)."""
    first = next(read_events(journal), None)
    if first is None or first["event"] != "start":
        return False
    if store is not None and cursor.get("store", store) != store:
        return True
    return cursor.get("key") != first.get("key") or cursor.get("offset", 0) < journal.stat().st_size


def journals(results: Path) -> list[Path]:
    """All journals of runs below a folder, oldest first.

    Does not look inside finished stages or `state/`: they can hold very many files.
    """
    found = []
    for folder, inner, files in os.walk(results):
        here = [Path(folder) / name for name in files if name.startswith("metrics") and name.endswith(".jsonl")]
        if here or _MANIFEST in files:
            inner.clear()
        inner[:] = sorted(name for name in inner if not name.startswith(".") and name != "state")
        for path in here:
            first = next(read_events(path), None)
            if first is not None and first["event"] == "start":
                found.append((_when(first), path))
    return [path for _, path in sorted(found)]


def _when(event: Mapping[str, Any]) -> int:
    """Milliseconds since 1970; 0 in a line that was damaged."""
    found = event.get("time_ms")
    return found if isinstance(found, int) else 0


def ended_without_a_word(journal: Path) -> dict[str, Any] | None:
    """Last event of a run that neither finished nor failed since it last began; None if it did."""
    last = None
    for event in read_events(journal):
        last = event
    return last if last is not None and last["event"] != "finish" else None
