"""A plan as a list of batch jobs, each the command that the workflow would run: for places without a workflow manager.

The shards of a data set are one job with many tasks. What is done already ends at once. Who runs the jobs is said by
the writers: `batch_script.py` for SLURM, `kubernetes_jobs.py` for Kubernetes.
"""

import shlex
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from appssl import outcome
from appssl.artifact import write_bytes
from appssl.workflow import num_workers

_WITH_DEVICES = ("pretrain", "finetune")
_WITH_WORKERS = ("pretrain", "pseudolabel", "finetune", "evaluate")


@dataclass(frozen=True)
class Job:
    """`after`: names of jobs that must end well first. `shards`: tasks of the job, 0 for a job that is one.

    In the command and log of a job with tasks the number of the task is `task`, as the list was asked to write it.
    """

    name: str
    command: str
    log: Path
    after: Sequence[str]
    needs: Mapping[str, Any]
    shards: int = 0


@dataclass(frozen=True)
class Writing:
    """How the writer writes: the program, and the number of a job's task in a shell command and in a log's name."""

    program: str
    task: str
    task_in_log: str

    def call(self, *words: Any) -> str:
        return shlex.join([self.program, *map(str, words)])


def write_configs(plan: Mapping[str, Any]) -> None:
    """Writes every stage's `config.yaml` into its place in the results."""
    for place in sorted(outcome.needed(plan)):
        values = yaml.safe_load(plan["configs"][place])
        text = yaml.safe_dump(values, sort_keys=False, allow_unicode=True)
        write_bytes(Path(plan["results"]) / place / "config.yaml", text.encode())


def batch_jobs(plan: Mapping[str, Any], writing: Writing) -> list[Job]:
    """Jobs of a complete plan (as of `plan.complete`), each behind those that it waits for."""
    return list(_jobs(plan, Path(plan["results"]), writing))


def _jobs(plan: Mapping[str, Any], results: Path, writing: Writing) -> Iterator[Job]:
    needed = outcome.needed(plan)
    small = {"cpus": 1, "gpus": 0, "mem_gb": 2, "minutes": 30}
    data = {key: about for key, about in plan["data"].items() if f"data/{key}" in needed}
    for made in dict.fromkeys(about["synthetic"] for about in data.values() if about["synthetic"]):
        domain, size, seed = Path(made).name.split("-")
        call = writing.call("data", "make", domain, "--size", size, "--seed", seed, "--out", results / made)
        yield Job(made, call, results / "logs" / f"{made}.log", (), small)
    for key, about in data.items():
        folder, logs = results / "data" / key, results / "logs" / "data" / key
        config = folder / "config.yaml"
        shard = writing.call("prepare", "--config", config) + f" --shard {writing.task}"
        shard += f" --out {shlex.quote(str(folder / 'shards'))}/{writing.task}"
        first = [about["synthetic"]] if about["synthetic"] else []
        one = {**about["needs"], "cpus": 1}
        log = logs / f"shard-{writing.task_in_log}.log"
        yield Job(f"{key}-shards", shard, log, first, one, about["settings"]["shards"])
        merge = writing.call("prepare", "--config", config, "--merge", "--out", folder)
        yield Job(f"data/{key}", merge, logs / "prepare.log", [f"{key}-shards"], one)
    for place in _ordered(plan, needed):
        yield _stage(plan, results, place, writing)


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


def _stage(plan: Mapping[str, Any], results: Path, place: str, writing: Writing) -> Job:
    stage, planned = place.rpartition("/")[2], _planned(plan, place)
    words: list[Any] = [stage, "--config", results / place / "config.yaml"]
    for name, other in planned["inputs"].items():
        kind, _, compared = name.partition(":")
        words += [f"--{kind}", f"{compared}={results / other}" if compared else results / other]
    needs = planned["needs"]
    if stage in _WITH_DEVICES:
        words += ["--devices", needs["gpus"], "--strategy", needs["strategy"]]
    if stage in _WITH_WORKERS:
        words += ["--workers", num_workers(planned)]
    command = writing.call(*words, "--out", results / place)
    return Job(place, command, results / "logs" / f"{place}.log", list(planned["inputs"].values()), needs)
