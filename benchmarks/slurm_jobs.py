"""What Snakemake adds to a job on SLURM, beside the same commands as a plain chain of sbatch.

python benchmarks/slurm_jobs.py [--runs 3]     (where sbatch works; `tests/cluster/slurm.sh start` makes a cluster)

A short chain on made data, in turns: submitted by the script that `appssl run --script` writes, from its start until
the queue is empty, and run by `appssl run --profile slurm`, from its start to its end. The first has the scheduler's
own delays and the stages; the second has them too, and planning, Snakemake, and the upload to MLflow.
"""

import argparse
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

GOAL = 2.0  # seconds for a job that others wait for
CHAIN = """\
description: a short chain
domain: wearable
data:
  make: {size: tiny}
  source: {name: wearable, table: recordings.csv, labels: labels.csv, split: {test: 0.4}}
  shards: 3
  budget: 1
pretrain: {backbone: cnn1d, views: signal, fit: {epochs: 1, batch_size: 32, threads: 1}}
finetune: {finetuner: linear_probe, fit: {epochs: 1, batch_size: 16, threads: 1}}
evaluate: {evaluators: [classification]}
"""
IN_LINE = 7  # make, shards, merge, pretrain, finetune, evaluate, report


def appssl(folder: Path, *words: str) -> None:
    command = [sys.executable, "-m", "appssl", "run", "chain.yaml", "--out", "results", *words]
    path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
    done = subprocess.run(command, cwd=folder, env={**os.environ, "PATH": path}, capture_output=True, text=True)
    if done.returncode not in (0, 5):  # 5: done, and the made data has damaged recordings
        sys.exit(done.stderr)


def plain(folder: Path) -> float:
    appssl(folder, "--profile", "slurm", "--script", "jobs")
    begun = time.perf_counter()
    subprocess.run(["bash", folder / "jobs" / "submit.sh"], check=True, capture_output=True)
    while subprocess.run(["squeue", "--noheader"], capture_output=True, text=True, check=True).stdout.strip():
        time.sleep(0.2)
    return time.perf_counter() - begun


def workflow(folder: Path) -> float:
    begun = time.perf_counter()
    appssl(folder, "--profile", "slurm")
    return time.perf_counter() - begun


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--runs", type=int, default=3)
    given = parser.parse_args()
    took: dict[str, list[float]] = {"plain sbatch": [], "Snakemake": []}
    for _ in range(given.runs):
        for name, run in (("plain sbatch", plain), ("Snakemake", workflow)):
            with tempfile.TemporaryDirectory(dir=Path.cwd()) as folder:
                (Path(folder) / "chain.yaml").write_text(CHAIN)
                took[name].append(run(Path(folder)))
                report = Path(folder) / "results/wearable/chain/s0/report/manifest.json"
                assert report.is_file(), f"{name}: did not come to its end"
                print(f"{name:14} {took[name][-1]:6.1f} s", flush=True)
    first, second = (statistics.median(seconds) for seconds in took.values())
    added = (second - first) / IN_LINE
    print(f"medians {first:.1f} and {second:.1f} s: {added:+.1f} s for each of {IN_LINE} jobs in line (goal {GOAL:g})")
    sys.exit(0 if added <= GOAL else 1)


if __name__ == "__main__":
    main()
