"""A plan as plain batch jobs of SLURM: for login nodes where no workflow manager may run.

`submit.sh` asks `sbatch` for the same commands that the workflow runs, with what each needs and after which others; the
shards of a data set are one array. What is done already ends at once.
"""

import shlex
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from appssl import outcome
from appssl.artifact import write_bytes
from appssl.workflow import num_workers

_WITH_DEVICES = ("pretrain", "finetune")

_HEAD = """\
#!/usr/bin/env bash
# Made by `appssl run --script`: submits every job of a plan with its dependencies, then ends. `squeue --me` shows them,
# `appssl status {results}` where every stage stands; `appssl ui --out {results}` sends what they measured to MLflow.
# More options for every job: SBATCH_ACCOUNT, SBATCH_PARTITION and the other variables of sbatch.
set -euo pipefail
cd {place}
submit() { sbatch --parsable --requeue --open-mode=append --kill-on-invalid-dep=yes "$@"; }
"""


@dataclass(frozen=True)
class Job:
    """One call of sbatch. `after`: names of jobs that must end well first. `shards`: tasks of an array, 0 for none."""

    name: str
    command: str
    log: Path
    after: Sequence[str]
    needs: Mapping[str, Any]
    shards: int = 0


def write_script(plan: Mapping[str, Any], folder: Path) -> Path:
    """Writes `submit.sh` into a folder, and every stage's `config.yaml` into its place in the results.

    Args:
        plan: complete, as of `plan.complete`.
    """
    results = Path(plan["results"])
    for place in sorted(outcome.needed(plan)):
        values = yaml.safe_load(plan["configs"][place])
        text = yaml.safe_dump(values, sort_keys=False, allow_unicode=True)
        write_bytes(results / place / "config.yaml", text.encode())
    jobs = list(_jobs(plan, results))
    head = _HEAD.replace("{results}", str(results)).replace("{place}", shlex.quote(str(Path.cwd())))
    numbers = {job.name: number for number, job in enumerate(jobs)}
    lines = [_submitted(job, numbers) for job in jobs]
    file = folder / "submit.sh"
    write_bytes(file, "\n".join([head, *lines, f'echo "{len(jobs)} jobs submitted"', ""]).encode())
    file.chmod(0o755)
    return file


def _jobs(plan: Mapping[str, Any], results: Path) -> Iterator[Job]:
    needed = outcome.needed(plan)
    small = {"cpus": 1, "gpus": 0, "mem_gb": 2, "minutes": 30}
    data = {key: about for key, about in plan["data"].items() if f"data/{key}" in needed}
    for made in dict.fromkeys(about["synthetic"] for about in data.values() if about["synthetic"]):
        domain, size, seed = Path(made).name.split("-")
        call = _call("data", "make", domain, "--size", size, "--seed", seed, "--out", results / made)
        yield Job(made, call, results / "logs" / f"{made}.log", (), small)
    for key, about in data.items():
        folder, logs = results / "data" / key, results / "logs" / "data" / key
        config, task = folder / "config.yaml", "$SLURM_ARRAY_TASK_ID"
        shard = _call("prepare", "--config", config) + f" --shard {task} --out {_quoted(folder / 'shards')}/{task}"
        first = [about["synthetic"]] if about["synthetic"] else []
        one = {**about["needs"], "cpus": 1}
        yield Job(f"{key}-shards", shard, logs / "shard-%a.log", first, one, about["settings"]["shards"])
        merge = _call("prepare", "--config", config, "--merge", "--out", folder)
        yield Job(f"data/{key}", merge, logs / "prepare.log", [f"{key}-shards"], one)
    for place in _ordered(plan, needed):
        yield _stage(plan, results, place)


def _ordered(plan: Mapping[str, Any], places: set[str]) -> list[str]:
    """Stages of runs, each behind those that it reads."""
    found: dict[str, None] = {}

    def visit(place: str) -> None:
        if place in found or place.startswith("data/"):
            return
        for other in _planned(plan, place)["inputs"].values():
            visit(other)
        found[place] = None

    for place in sorted(places):
        visit(place)
    return list(found)


def _planned(plan: Mapping[str, Any], place: str) -> Mapping[str, Any]:
    domain, recipe, seed, stage = place.split("/")
    found: Mapping[str, Any] = plan["runs"][domain][recipe][seed]["stages"][stage]
    return found


def _stage(plan: Mapping[str, Any], results: Path, place: str) -> Job:
    stage, planned = place.rpartition("/")[2], _planned(plan, place)
    words: list[Any] = [stage, "--config", results / place / "config.yaml"]
    for name, other in planned["inputs"].items():
        kind, _, compared = name.partition(":")
        words += [f"--{kind}", f"{compared}={results / other}" if compared else results / other]
    needs = planned["needs"]
    if stage in _WITH_DEVICES:
        words += ["--devices", needs["gpus"], "--strategy", needs["strategy"], "--workers", num_workers(planned)]
    command = _call(*words, "--out", results / place)
    return Job(place, command, results / "logs" / f"{place}.log", list(planned["inputs"].values()), needs)


def _call(*words: Any) -> str:
    """A call of this installation's `appssl`."""
    return shlex.join([str(Path(sys.executable).parent / "appssl"), *map(str, words)])


def _quoted(path: Path) -> str:
    return shlex.quote(str(path))


def _submitted(job: Job, numbers: Mapping[str, int]) -> str:
    """The lines that make the job's folder for its log and submit it; its id is in the variable j<number>."""
    needs = job.needs
    words = [f"--job-name={shlex.quote(job.name)}", f"--output={_quoted(job.log)}"]
    words += [f"--cpus-per-task={needs['cpus']}", f"--mem={int(needs['mem_gb'] * 1024)}M", f"--time={needs['minutes']}"]
    if needs["gpus"]:
        words.append(f"--gpus={needs['gpus']}")
    if job.shards:
        words.append(f"--array=0-{job.shards - 1}")
    if job.after:
        words.append("--dependency=afterok:" + ":".join(f"$j{numbers[name]}" for name in job.after))
    wrapped = shlex.quote(job.command)
    return f"mkdir -p {_quoted(job.log.parent)}\nj{numbers[job.name]}=$(submit {' '.join(words)} --wrap {wrapped})"
