"""Upload of the journals below a results folder, by a process beside the workflow, or later.

The tracker cannot break or slow training: stages write journals, any number of them at once, and one uploader sends
them in batches. A pass can be repeated; an outage of the store is a later upload.
"""

import fcntl
import os
import select
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType

from appssl.addresses import masked
from appssl.ops.journal import JOURNAL, ended_without_a_word, is_pending, journals, read_cursor
from appssl.tracking import Store, connect, store_id, store_uri

_SECONDS_BETWEEN_PASSES = 3.0
_SECONDS_FOR_THE_LAST_PASS = 90.0
_SECONDS_FOR_ANOTHER_UPLOADER = 30.0
_MOST_PROBLEMS = 3  # in a row; then the store, and not a journal, is what is wrong


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
            connect(uri)
            store = Store(uri, project)
            _send_all(store, waiting, report, final=final)
            if final and report.problem is None:
                store.finish_parents(results)
    except Exception as error:
        report.problem = report.problem or _said(error)
    if report.problem is not None:
        report.pending = [str(path) for path in _waiting(results, uri, final=False)]
    return report


def _send_all(store: Store, waiting: list[Path], report: UploadReport, *, final: bool) -> None:
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
            connect(store.uri)
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


class Uploader:
    """Sends journals from a process of its own while the workflow runs, and a last time, bounded, at its end.

    Never raises: a workflow without its uploader is complete, and is sent later.
    """

    def __init__(self, results: Path, uri: str, project: Path) -> None:
        self._command = [sys.executable, "-m", "appssl.upload", str(results), str(project)]
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
