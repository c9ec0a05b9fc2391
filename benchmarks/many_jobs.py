"""Many jobs at once: each writes its own journal, while uploads send all of them to one MLflow store.

python benchmarks/many_jobs.py [jobs] [points]

Every job is a process that writes through the journal of a stage and notes the longest time it had to wait. Uploads run
beside them as in `appssl run`: first one into a SQLite file, then eight at once, of a results folder each, to a real
`mlflow server` with its usual number of workers. At the end MLflow's own client counts: every point of every job has to
be there, once, with its value.
"""

import json
import multiprocessing
import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

os.environ["MLFLOW_DISABLE_TELEMETRY"] = "true"

from appssl.ops.journal import Journal, read_cursor
from appssl.upload import Uploader, upload

NAME = "train/loss"
SECONDS_OF_WRITING = 20.0  # long enough that all jobs live at the same time and passes meet open journals
UPLOADS_TO_SERVER = 8
PASSES = 20  # after the workflow's own last one, as by `appssl ui`


def write(folder: Path, number: int, points: int, together: Any) -> None:
    """One job, a process of its own."""
    folder.mkdir(parents=True)
    journal = Journal(folder)
    together.wait()
    journal.start(
        domain="bench", recipe="many", seed=number, stage="pretrain", method="none", settings={"seed": number},
        settings_digest=str(number), upstream={}, datasets=[], description="benchmark",
    )  # fmt: skip
    waits = []
    begun = time.perf_counter()
    for step in range(1, points + 1):
        asked = time.perf_counter()
        journal.metrics(step, {NAME: value(number, step)})
        waits.append(time.perf_counter() - asked)
        time.sleep(max(0.0, begun + SECONDS_OF_WRITING * step / points - time.perf_counter()))
    journal.finish("FINISHED", artifact_digest=str(number))
    (folder / "waits.json").write_text(json.dumps({"longest": max(waits), "mean": sum(waits) / points}))


def value(number: int, step: int) -> float:
    return number + step / 1024


def measure(folder: Path, uri: str, jobs: int, points: int, uploads: int) -> dict[str, float]:
    """Runs all jobs with their uploads; `seconds` ends when the store has everything."""
    results = [folder / f"results{number}" for number in range(uploads)]
    places = [results[n % uploads] / "bench" / "many" / f"s{n}" / "pretrain" for n in range(jobs)]
    started = multiprocessing.get_context("fork")  # nothing heavy is imported here yet: see `apart`
    together = started.Barrier(jobs)
    running = [started.Process(target=write, args=(p, n, points, together)) for n, p in enumerate(places)]
    begun = time.perf_counter()
    with ExitStack() as beside:
        for place in results:
            place.mkdir(parents=True)
            beside.enter_context(Uploader(place, uri, folder))
        for process in running:
            process.start()
        for process in running:
            process.join()
        written = time.perf_counter() - begun
    if any(process.exitcode for process in running):
        sys.exit("a writer failed")
    passes = 0
    while any(report.problem or report.pending for report in [upload(p, uri, folder, final=True) for p in results]):
        passes += 1
        if passes == PASSES:
            sys.exit(f"after {PASSES} more passes something still waits")
    seconds = time.perf_counter() - begun
    waits = [json.loads((place / "waits.json").read_text()) for place in places]
    return {
        "written": written,
        "seconds": seconds,
        "passes": passes,
        "longest": max(wait["longest"] for wait in waits),
        "mean": sum(wait["mean"] for wait in waits) / jobs,
        "wrong": wrong(uri, places, points),
    }


def wrong(uri: str, places: list[Path], points: int) -> int:
    """Points missing, doubled or of another value, and runs too many, as MLflow's client counts them."""
    from mlflow import MlflowClient

    client = MlflowClient(uri)
    experiment = client.get_experiment_by_name("appssl/bench")
    found = client.search_runs([experiment.experiment_id], "tags.`appssl.stage` = 'pretrain'", max_results=10_000)
    count = abs(len(found) - len(places))
    for number, place in enumerate(places):
        history = client.get_metric_history(read_cursor(place)["run_id"], NAME)
        arrived = sorted((point.step, point.value) for point in history)
        expected = [(step, value(number, step)) for step in range(1, points + 1)]
        count += 0 if arrived == expected else max(1, abs(len(arrived) - points))
    return count


@contextmanager
def server(folder: Path) -> Iterator[str]:
    """The address of an MLflow server with a SQLite file of its own."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    command = [sys.executable, "-m", "mlflow", "server", "--backend-store-uri", f"sqlite:///{folder}/server.db"]
    command += ["--artifacts-destination", str(folder / "artifacts"), "--host", "127.0.0.1", "--port", str(port)]
    with (folder / "server.log").open("wb") as log:
        process = subprocess.Popen(command, stdout=log, stderr=log, start_new_session=True)
    try:
        deadline = time.monotonic() + 180
        while True:
            try:
                urllib.request.urlopen(f"http://127.0.0.1:{port}/health", timeout=5).close()
                break
            except OSError:
                if time.monotonic() > deadline or process.poll() is not None:
                    sys.exit((folder / "server.log").read_text())
                time.sleep(0.5)
        yield f"http://127.0.0.1:{port}"
    finally:
        os.killpg(process.pid, signal.SIGTERM)
        process.wait()


def say(where: str, found: dict[str, float], jobs: int, points: int) -> None:
    total = jobs * points
    print(f"{where}: {jobs} jobs x {points} points")
    behind = found["seconds"] - found["written"]
    print(f"  all in the store after {found['seconds']:.0f} s, {behind:.0f} s after the last writer's end")
    print(f"  {total / found['seconds']:,.0f} points/s; passes after the workflow's own: {found['passes']:.0f}")
    print(f"  a writer waited {found['mean'] * 1000:.2f} ms a point, at most {found['longest'] * 1000:.0f} ms")
    print(f"  missing, doubled or wrong: {found['wrong']:.0f}", flush=True)


def main() -> None:
    jobs = int(sys.argv[1]) if len(sys.argv) > 1 else 200
    points = int(sys.argv[2]) if len(sys.argv) > 2 else 500
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        into_file = apart(measure, folder / "file", f"sqlite:///{folder / 'mlflow.db'}", jobs, points, 1)
        say("one upload into a SQLite file", into_file, jobs, points)
        with server(folder) as uri:
            over_http = apart(measure, folder / "http", uri, jobs, points, UPLOADS_TO_SERVER)
        say(f"{UPLOADS_TO_SERVER} uploads at once to a server", over_http, jobs, points)
    if into_file["wrong"] or over_http["wrong"]:
        sys.exit(1)


def apart(function: Callable[..., dict[str, float]], *given: Any) -> dict[str, float]:
    """In a fresh process, whose copies are as small as a writer: MLflow is imported when these have ended."""
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as one:
        return one.submit(function, *given).result()


if __name__ == "__main__":
    main()
