"""Samples a second of a training that one process does, and of the same training divided among more.

    python benchmarks/processes.py [--processes 1 2 4] [--backbone timm] [--side 96] [--batch 128] [--steps 14]

SimCLR on made images with a ResNet-18 (`timm`) or the small residual network (`small_cnn`), which at 32 pixels computes
so little that messages weigh; the same global batch for any number of processes, one thread and one core for each (of
those this process may use, in turn), gradients and embeddings exchanged by gloo. Views are made before, so that
training is all there is to do. The rate is by the median step after the first four; beside it the CPU time of all
processes for a sample, over the same steps. Processes need free cores: the first line says how many there are and what
else runs. Needs nothing; Linux.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from itertools import pairwise
from pathlib import Path

import torch

from appssl import registry
from appssl.contracts import Batch, Context, Meta
from appssl.engine.fit import fit
from appssl.recipe import Fit

GOAL, WARM_UP = 1.8, 4  # times the samples of one process with two; steps that are not counted


class Photos:
    """Two views of noise, made once; every process takes its share of each batch."""

    def __init__(self, count: int, side: int) -> None:
        self.facts: dict[str, object] = {}
        self.views = torch.randn(2, count, 3, side, side, generator=torch.Generator().manual_seed(0))
        self.cpu: list[float] = []  # seconds of this process when each batch was asked for

    def __len__(self) -> int:
        return self.views.shape[1]

    def batch(self, indices: object, *, seed: int, epoch: int) -> Batch:
        self.cpu.append(time.process_time())
        return {"views": [view[indices] for view in self.views]}


class Times:
    """When the first process had done each step."""

    def __init__(self) -> None:
        self.rows: list[float] = []

    def metrics(self, step: int, values: dict[str, float]) -> None:
        self.rows.append(time.perf_counter())


def train(given: argparse.Namespace) -> None:
    """What one of the processes does."""
    processes, batch, side = given.processes[0], given.batch, given.side
    rank = int(os.environ.get("RANK", "0"))
    cores = sorted(os.sched_getaffinity(0))
    os.sched_setaffinity(0, {cores[rank % len(cores)]})
    torch.manual_seed(0)
    shape, meta = (3, side, side), Meta("made", "webnoisy", "classification", facts={"size_px": side})
    backbone = registry.build("backbones", registry.load("backbones", given.backbone).Config(), shape, meta)
    context = Context(meta, backbone, shape, num_samples=4 * batch, num_views=2)
    learner = registry.build("learners", registry.load("learners", "joint_embedding").Config(), context)
    settings = Fit(steps=given.steps, batch_size=batch, log_every=1, threads=1, checkpoint_steps=10**6)
    photos, times = Photos(4 * batch, side), Times()
    fit(
        learner, photos, settings, state_dir=given.train / "state", journal=times, seed=0, accelerator="cpu",
        devices=processes,
    )  # fmt: skip
    found = {"cpu": (photos.cpu[-1] - photos.cpu[WARM_UP]) / (len(photos.cpu) - 1 - WARM_UP)}
    if times.rows:
        found["step"] = statistics.median(b - a for a, b in pairwise(times.rows[WARM_UP:]))
    (given.train / f"{rank}.json").write_text(json.dumps(found))


def measure(processes: int, given: argparse.Namespace) -> dict[str, float]:
    """Samples a second, and CPU seconds of all processes for a sample."""
    with tempfile.TemporaryDirectory() as folder:
        launcher = ["-m", "torch.distributed.run", "--nproc-per-node", str(processes), "--standalone"]
        same = [f"--{name}={getattr(given, name)}" for name in ("backbone", "side", "batch", "steps")]
        given_on = ["--train", folder, "--processes", str(processes), *same]
        command = [sys.executable, *(launcher if processes > 1 else []), __file__, *given_on]
        subprocess.run(command, check=True, env=os.environ | {"OMP_NUM_THREADS": "1"})
        found = [json.loads((Path(folder) / f"{rank}.json").read_text()) for rank in range(processes)]
    return {"rate": given.batch / found[0]["step"], "cpu": sum(each["cpu"] for each in found) / given.batch}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--processes", type=int, nargs="+", default=[1, 2, 4])
    parser.add_argument("--backbone", default="timm", choices=["timm", "small_cnn"])
    parser.add_argument("--side", type=int, default=96)
    parser.add_argument("--batch", type=int, default=128)
    parser.add_argument("--steps", type=int, default=14)
    parser.add_argument("--train", type=Path, help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.train:
        return train(given)
    print(f"{len(os.sched_getaffinity(0))} cores, load {os.getloadavg()[0]:.1f}, torch {torch.__version__}")
    print("processes  samples/s  beside one  CPU ms a sample")
    alone = measure(1, given)
    for count in given.processes:
        found = alone if count == 1 else measure(count, given)
        goal = f"  (goal {GOAL})" if count == 2 else ""
        ratio = found["rate"] / alone["rate"]
        print(f"{count:9d} {found['rate']:10.0f} {ratio:11.2f} {found['cpu'] * 1e3:16.2f}{goal}")
    return None


if __name__ == "__main__":
    main()
