"""What tracking costs a training step, and how fast journals reach MLflow, beside MLflow's own calls.

python benchmarks/tracking.py [points]

Everything in one process and one run, on one SQLite store, so that the ratios can be compared between machines. The
journal is what a training process pays; MLflow's own call is what it would pay if it talked to the store itself. The
limit of the upload is the bare `log_batch` of the same points in the largest batches that MLflow takes.
"""

import os
import sys
import tempfile
import time
from pathlib import Path

os.environ["MLFLOW_DISABLE_TELEMETRY"] = "true"

INTERVAL = 10  # steps between two lines of the journal
NAMES = (
    "train/loss", "train/loss_a", "train/grad_norm",
    "time/step_seconds", "time/samples_per_second", "time/data_wait_share",
)  # fmt: skip
GOAL_MS = 0.2
BATCH = 1000
DIRECT = 50  # calls; MLflow's own are slow


def journal_ms(folder: Path, lines: int) -> float:
    """Milliseconds per line of a journal with `lines` lines, with the sums of the steps between them."""
    import torch

    from appssl.engine.meter import Clock, Meter
    from appssl.ops.journal import Journal

    folder.mkdir(parents=True)
    journal = Journal(folder)
    meter, clock = Meter(torch.device("cpu")), Clock("bench", 0, lines * INTERVAL, 128, shown=False)
    loss, others = torch.tensor(1.0), {"loss_a": torch.tensor(0.5), "grad_norm": torch.tensor(2.0)}
    journal.start(
        domain="bench", recipe="bench", seed=0, stage="pretrain", method="none", settings={}, settings_digest="",
        upstream={}, datasets=[], description="benchmark",
    )  # fmt: skip
    begun = time.perf_counter()
    for step in range(1, lines * INTERVAL + 1):
        meter.add(step, loss, others)
        if step % INTERVAL == 0:
            means, _ = meter.read()
            journal.metrics(
                step, {**{f"train/{key}": value for key, value in means.items()}, **clock.interval(INTERVAL)}
            )
    milliseconds = (time.perf_counter() - begun) / lines * 1000
    journal.finish("FINISHED", artifact_digest="0")
    return milliseconds


def direct_ms(uri: str) -> float:
    """Milliseconds per call when a training process logs the same values itself."""
    from mlflow import MlflowClient
    from mlflow.entities import Metric

    client = MlflowClient(uri)
    run_id = client.create_run("0").info.run_id
    begun = time.perf_counter()
    for step in range(DIRECT):
        client.log_batch(run_id, [Metric(name, float(step), int(time.time() * 1000), step) for name in NAMES])
    return (time.perf_counter() - begun) / DIRECT * 1000


def bare_rate(uri: str, points: int) -> float:
    """Points per second of MLflow's own largest batches."""
    from mlflow import MlflowClient
    from mlflow.entities import Metric

    client = MlflowClient(uri)
    run_id = client.create_run("0").info.run_id
    logged = [Metric(NAMES[i % len(NAMES)], float(i), 1, i // len(NAMES)) for i in range(points)]
    begun = time.perf_counter()
    for first in range(0, points, BATCH):
        client.log_batch(run_id, logged[first : first + BATCH])
    return points / (time.perf_counter() - begun)


def main() -> None:
    from mlflow import MlflowClient

    from appssl.upload import upload

    points = int(sys.argv[1]) if len(sys.argv) > 1 else 50_000
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        uri = f"sqlite:///{folder / 'mlflow.db'}"
        MlflowClient(uri).search_experiments()  # makes the tables, which is not measured
        lines = points // len(NAMES)
        line = journal_ms(folder / "results" / "bench" / "bench" / "s0" / "pretrain", lines)
        direct = direct_ms(uri)
        bare = bare_rate(uri, lines * len(NAMES))
        begun = time.perf_counter()
        report = upload(folder / "results", uri, folder)
        rate = report.points / (time.perf_counter() - begun)
        begun = time.perf_counter()
        upload(folder / "results", uri, folder)
        nothing = (time.perf_counter() - begun) * 1000
    if report.problem or report.points != lines * len(NAMES):
        sys.exit(f"the upload went wrong: {report}")
    print(f"journal           {line / INTERVAL:.4f} ms per step ({line:.3f} per line, a line every {INTERVAL} steps)")
    print(f"MLflow itself     {direct / INTERVAL:.4f} ms per step ({direct:.3f} per call): {direct / line:.0f} times")
    print(f"goal              {GOAL_MS} ms per step: {'reached' if line / INTERVAL < GOAL_MS else 'MISSED'}")
    print(f"upload            {rate:,.0f} points/s, {rate / bare:.2f} of bare log_batch ({bare:,.0f} points/s)")
    print(f"nothing to send   {nothing:.2f} ms per pass")


if __name__ == "__main__":
    main()
