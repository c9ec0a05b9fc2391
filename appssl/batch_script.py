"""A plan as plain batch jobs of SLURM: for login nodes where no workflow manager may run.

`submit.sh` asks `sbatch` for the same commands that the workflow runs, with what each needs and after which others; the
shards of a data set are one array. What is done already ends at once.
"""

import shlex
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from appssl.artifact import write_bytes
from appssl.batch_jobs import Job, Writing, batch_jobs, write_configs

_HEAD = """\
#!/usr/bin/env bash
# Made by `appssl run --script`: submits every job of a plan with its dependencies, then ends. `squeue --me` shows them,
# `appssl status {results}` where every stage stands; `appssl ui --out {results}` sends what they measured to MLflow.
# More options for every job: SBATCH_ACCOUNT, SBATCH_PARTITION and the other variables of sbatch.
set -euo pipefail
cd {place}
submit() { sbatch --parsable --requeue --open-mode=append --kill-on-invalid-dep=yes "$@"; }
"""


def write_script(plan: Mapping[str, Any], folder: Path) -> Path:
    """Writes `submit.sh` into a folder, and every stage's `config.yaml` into its place in the results.

    Args:
        plan: complete, as of `plan.complete`.
    """
    write_configs(plan)
    program = str(Path(sys.executable).parent / "appssl")  # this installation's
    jobs = batch_jobs(plan, Writing(program, "$SLURM_ARRAY_TASK_ID", "%a"))
    head = _HEAD.replace("{results}", plan["results"]).replace("{place}", shlex.quote(str(Path.cwd())))
    numbers = {job.name: number for number, job in enumerate(jobs)}
    lines = [_submitted(job, numbers) for job in jobs]
    file = folder / "submit.sh"
    write_bytes(file, "\n".join([head, *lines, f'echo "{len(jobs)} jobs submitted"', ""]).encode())
    file.chmod(0o755)
    return file


def _submitted(job: Job, numbers: Mapping[str, int]) -> str:
    """The lines that make the job's folder for its log and submit it; its id is in the variable j<number>."""
    needs = job.needs
    words = [f"--job-name={shlex.quote(job.name)}", f"--output={shlex.quote(str(job.log))}"]
    words += [f"--cpus-per-task={needs['cpus']}", f"--mem={int(needs['mem_gb'] * 1024)}M", f"--time={needs['minutes']}"]
    if needs["gpus"]:
        words.append(f"--gpus={needs['gpus']}")
    if job.shards:
        words.append(f"--array=0-{job.shards - 1}")
    if job.after:
        words.append("--dependency=afterok:" + ":".join(f"$j{numbers[name]}" for name in job.after))
    wrapped, logs = shlex.quote(job.command), shlex.quote(str(job.log.parent))
    return f"mkdir -p {logs}\nj{numbers[job.name]}=$(submit {' '.join(words)} --wrap {wrapped})"
