"""What logging costs per training step, amortised over the logging interval.

python benchmarks/journal.py
"""

import tempfile
import time
from pathlib import Path

import torch

from appssl.engine.meter import Clock, Meter
from appssl.tracking import Journal

STEPS, INTERVAL = 20_000, 10
GOAL_MS = 0.2


def main() -> None:
    with tempfile.TemporaryDirectory() as folder:
        journal = Journal(Path(folder))
        meter, clock = Meter(torch.device("cpu")), Clock("bench", 0, STEPS, 128, shown=False)
        loss, terms = torch.tensor(1.0), {"loss_a": torch.tensor(0.5), "grad_norm": torch.tensor(2.0)}
        begun = time.perf_counter()
        for step in range(1, STEPS + 1):
            meter.add(step, loss, terms)
            if step % INTERVAL == 0:
                means, _ = meter.read()
                journal.metrics(step, {**{f"train/{k}": v for k, v in means.items()}, **clock.interval(INTERVAL)})
        milliseconds = (time.perf_counter() - begun) / STEPS * 1000
    print(f"{milliseconds:.4f} ms per step with {INTERVAL} steps per interval (goal below {GOAL_MS} ms)")


if __name__ == "__main__":
    main()
