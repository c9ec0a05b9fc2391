"""What checkpoints cost a training, and how long a stage takes until it goes on from one.

python benchmarks/checkpoints.py [--megabytes 100] [--step-seconds 0.05]

A model with so large a checkpoint (weights and two moments of AdamW) whose step takes so long: the clock time of 600
steps with a checkpoint every 200, the default, beside the same training with one at its end only; what the training
waits for a checkpoint, and what writing it takes. Then a new process that reads it: seconds of its start, of reading,
and until the first step is done. Needs nothing.
"""

import argparse
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import torch
from torch import nn

from appssl.contracts import Batch, Step
from appssl.engine import fit as engine
from appssl.engine.checkpoint import Writing, newest_checkpoint
from appssl.recipe import Fit

GOAL, RESUME_GOAL = 0.01, 10.0  # share of the training; seconds beside starting and reading
STEPS, EVERY = 600, 200
WIDTH = 1024


class Examples:
    def __init__(self) -> None:
        self.facts: dict[str, object] = {}

    def __len__(self) -> int:
        return 64

    def batch(self, indices: object, *, seed: int, epoch: int) -> Batch:
        return {"input": torch.zeros(1, WIDTH)}


class Learner(nn.Module):
    """Weights of a third of the checkpoint, all with a gradient, and a step that lasts as long as asked."""

    def __init__(self, megabytes: int, seconds: float) -> None:
        super().__init__()
        count = max(1, round(megabytes * 1e6 / 3 / (4 * WIDTH**2)))
        self.layers = nn.ParameterList(nn.Parameter(torch.zeros(WIDTH, WIDTH)) for _ in range(count))
        self.seconds = seconds

    def forward(self, batch: Batch) -> Step:
        until = time.perf_counter() + self.seconds
        while time.perf_counter() < until:
            time.sleep(0.001)  # as a host waits for its GPU
        return Step(sum(layer.sum() for layer in self.layers) * 1e-9)


class Journal:
    def metrics(self, step: int, values: dict[str, float]) -> None:
        pass


def train(folder: Path, megabytes: int, seconds: float, *, steps: int, every: int) -> float:
    learner = Learner(megabytes, seconds)
    settings = Fit(steps=steps, batch_size=1, checkpoint_steps=every, log_every=50, threads=1)
    begun = time.perf_counter()
    engine.fit(learner, Examples(), settings, state_dir=folder, journal=Journal(), seed=0, accelerator="cpu")
    return time.perf_counter() - begun


def resume(folder: str, megabytes: str) -> None:
    begun = time.perf_counter()
    newest_checkpoint(Path(folder) / "checkpoints")
    read = time.perf_counter() - begun
    all_of_it = train(Path(folder), int(megabytes), 0.0, steps=STEPS + 1, every=10**6)
    print(read, all_of_it)


def main() -> None:
    if sys.argv[1:2] == ["resume"]:
        resume(*sys.argv[2:])
        return
    parser = argparse.ArgumentParser()
    parser.add_argument("--megabytes", type=int, default=100)
    parser.add_argument("--step-seconds", type=float, default=0.05)
    given = parser.parse_args()
    waited: list[float] = []
    start = Writing.start

    def timed(self: Writing, *arguments: object, **named: object) -> None:
        begun = time.perf_counter()
        start(self, *arguments, **named)  # type: ignore[arg-type]
        waited.append(time.perf_counter() - begun)

    Writing.start = timed  # type: ignore[method-assign]
    with tempfile.TemporaryDirectory(dir=Path.cwd()) as name:
        first = Path(name) / "often"
        often = train(first, given.megabytes, given.step_seconds, steps=STEPS, every=EVERY)
        held_up = sum(waited[:-1]) / (len(waited) - 1)  # the last one is waited for to its end
        rarely = train(Path(name) / "once", given.megabytes, given.step_seconds, steps=STEPS, every=10**6)
        size = sum(path.stat().st_size for path in (first / "checkpoints" / f"step-{STEPS:010}").iterdir()) / 1e6
        begun = time.perf_counter()
        done = subprocess.run(
            [sys.executable, __file__, "resume", str(first), str(given.megabytes)], capture_output=True, check=True
        )
        whole = time.perf_counter() - begun
    read, going_on = (float(word) for word in done.stdout.split())
    per_interval = held_up / (EVERY * given.step_seconds)
    print(f"checkpoint of {size:.0f} MB, steps of {1000 * rarely / STEPS:.0f} ms")
    print(f"  waits {1000 * held_up:.0f} ms for one: {per_interval:.2%} of {EVERY} such steps (goal {GOAL:.0%})")
    print(f"  all {STEPS} steps: {often:.2f} s, with one checkpoint {rarely:.2f} s ({often / rarely - 1:+.2%})")
    print(f"  a new process: {whole - read - going_on:.1f} s to start, {read:.2f} s to read the checkpoint,")
    print(f"  {going_on - read:.1f} s more until its first step is saved (goal {RESUME_GOAL:.0f})")
    sys.exit(0 if per_interval <= GOAL and going_on - read <= RESUME_GOAL else 1)


if __name__ == "__main__":
    main()
