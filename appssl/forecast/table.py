"""A forecast from a trial: every job's time, memory and disk, their sums, and what cannot fit."""

import heapq
import math
import os
import shutil
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from appssl import outcome
from appssl.batch_jobs import Job
from appssl.errors import Problem, SettingsError
from appssl.forecast.measuring import Cost, size_of
from appssl.recipe import label

GIB = 2**30
_ROOM = 1.25  # times the forecast: what a message advises to allow


@dataclass(frozen=True)
class Row:
    """One job, or `count` equal ones. `known`: probed, or as it was the last time; memory None if nobody measured."""

    job: str
    count: int
    done: bool
    known: str
    seconds: float
    cpu_seconds: float | None
    memory: int | None
    bytes: int
    after: tuple[str, ...]
    needs: Mapping[str, Any]


@dataclass(frozen=True)
class Totals:
    """Of what is to do. `seconds`: on `cores`, as `seconds_on` orders the jobs; `seconds_unlimited`: all jobs at
    once that can be. `memory`: of the largest job."""

    jobs: int
    cores: int
    seconds: float
    seconds_unlimited: float
    cpu_seconds: float
    memory: int
    bytes: int
    gpu_hours: float


@dataclass(frozen=True)
class Forecast:
    """`on_cpu`: there was no GPU for a stage that wants one."""

    rows: Sequence[Row]
    totals: Totals
    on_cpu: bool = False


def done_row(plan: Mapping[str, Any], job: Job) -> Row | None:
    """A job that is done, as it was; None if it is not."""
    folder = Path(plan["results"]) / job.name
    if job.shards:
        folder = Path(plan["results"]) / "data" / job.name.removesuffix("-shards")
    if not (folder / "manifest.json").exists():
        return None
    seconds = 0.0 if job.shards else (outcome.read_json(folder / "run.json") or {}).get("seconds", 0.0)
    size = size_of(folder / "shards") if job.shards else size_of(folder)
    known = "took last time"
    return Row(job.name, max(1, job.shards), True, known, seconds, None, None, size, tuple(job.after), job.needs)


def totals(
    rows: Sequence[Row], *, cores: int, resolve: Cost | None, workflow: Cost | None, upload: Cost | None = None
) -> Totals:
    """Sums over the rows that are not done; `workflow` comes once, `resolve` for every stage. `upload` goes on beside
    the jobs: it takes CPU time, and no other."""
    left = [row for row in rows if not row.done]
    settings = sum(not row.job.endswith("-shards") and not row.job.startswith("synthetic/") for row in left)
    begin = workflow.seconds if workflow and left else 0.0
    each = resolve.seconds if resolve else 0.0
    once = sum(cost.cpu_seconds for cost in (workflow, upload) if cost and left)
    cpu = sum((row.cpu_seconds or 0.0) * row.count for row in left) + (resolve.cpu_seconds if resolve else 0) * settings
    return Totals(
        jobs=sum(row.count for row in left),
        cores=cores,
        seconds=begin + each * math.ceil(settings / cores) + seconds_on(left, cores),
        seconds_unlimited=begin + each * bool(settings) + seconds_on(left, None),
        cpu_seconds=cpu + once,
        memory=max((row.memory or 0 for row in left), default=0),
        bytes=sum(row.bytes * row.count for row in left),
        gpu_hours=sum(row.seconds * row.count * row.needs["gpus"] for row in left) / 3600,
    )


def seconds_on(rows: Sequence[Row], cores: int | None) -> float:
    """When the last job ends, if each starts as soon as what it waits for is done and cores are free; None: always."""
    names = {row.job for row in rows}
    waiting = [(row, {name for name in row.after if name in names}) for row in rows for _ in range(row.count)]
    left = {row.job: row.count for row in rows}
    running: list[tuple[float, int, str, int]] = []
    now, free = 0.0, math.inf if cores is None else float(cores)
    while waiting or running:
        still = []
        for row, after in waiting:
            cpus = row.needs["cpus"] if cores is None else min(row.needs["cpus"], cores)
            if cpus <= free and not any(left[name] for name in after):
                free -= cpus
                heapq.heappush(running, (now + row.seconds, len(running), row.job, cpus))
            else:
                still.append((row, after))
        waiting = still
        now, _, job, cpus = heapq.heappop(running)
        free += cpus
        left[job] -= 1
    return now


def refuse_what_cannot_fit(plan: Mapping[str, Any], forecast: Forecast) -> None:
    """
    Raises:
        SettingsError: with every job that would take more time or memory than its recipe allows or this machine has,
            and the disk if the results do not fit on it.
    """
    problems = [problem for row in forecast.rows if not row.done for problem in _misfits(plan, row)]
    folder = existing(Path(plan["results"]))
    free, size = shutil.disk_usage(folder).free, forecast.totals.bytes
    if size > free:
        wanted = f"the results would take {size / 1e9:.1f} GB, and {free / 1e9:.1f} GB are free there"
        problems.append(Problem(str(folder), "", f"{wanted}. Free space, or give another --out."))
    if problems:
        raise SettingsError(list(dict.fromkeys(problems)))


def _misfits(plan: Mapping[str, Any], row: Row) -> Iterator[Problem]:
    file, stage = _owner(plan, row.job)
    if file is None:
        return
    minutes, memory, needs = row.seconds / 60, (row.memory or 0) / GIB, row.needs
    if minutes > needs["minutes"]:
        more = " or data.shards" if row.job.endswith("-shards") else ""
        said = f"allows {needs['minutes']}, and {row.job} would take {minutes:.0f}"
        yield Problem(file, f"needs.{stage}.minutes", f"{said}. Raise it to {math.ceil(_ROOM * minutes)}{more}.")
    if memory > needs["mem_gb"]:
        said = f"allows {needs['mem_gb']:g} GiB, and {row.job} would take {memory:.1f}"
        yield Problem(file, f"needs.{stage}.mem_gb", f"{said}. Raise it to {math.ceil(_ROOM * memory)}.")
    if memory * GIB > memory_here():
        said = f"{row.job} would take {memory:.1f} GiB of memory, and this machine has {memory_here() / GIB:.1f}"
        yield Problem(file, "", f"{said}. Make {_SMALLER[stage]} smaller, or probe where it is to run.")


_SMALLER = {
    "prepare": "the shards (data.shards more)",
    "pretrain": "pretrain.fit.batch_size",
    "finetune": "finetune.fit.batch_size",
    "pseudolabel": "the data",
    "evaluate": "the data",
}


def _owner(plan: Mapping[str, Any], job: str) -> tuple[str | None, str]:
    """The recipe's file and the block of `needs` that a job is judged by; no file for a job that no recipe limits."""
    if job.startswith("synthetic/") or job.endswith("/report"):
        return None, ""
    key = job.removeprefix("data/").removesuffix("-shards")
    for domain, recipes in plan["runs"].items():
        for recipe, seeds in recipes.items():
            for seed, run in seeds.items():
                if run["data"] == key:
                    return label(Path(run["file"])), "prepare"
                if job.startswith(f"{domain}/{recipe}/{seed}/"):
                    return label(Path(run["file"])), job.rpartition("/")[2]
    return None, ""


def memory_here() -> int:
    """Bytes of memory of this machine, or of the part of it that this process may use."""
    whole = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    with suppress(OSError, ValueError):  # no limit says "max"
        return min(whole, int(Path("/sys/fs/cgroup/memory.max").read_text(encoding="ascii")))
    return whole


def existing(folder: Path) -> Path:
    """The folder, or the nearest one above it that is there."""
    folder = folder.resolve()
    return folder if folder.is_dir() else existing(folder.parent)


def as_json(forecast: Forecast) -> dict[str, Any]:
    rows = [asdict(row) for row in forecast.rows]
    return {"jobs": rows, "totals": {**asdict(forecast.totals), "measured_on_cpu": forecast.on_cpu}}


def as_text(forecast: Forecast) -> str:
    """A table of the jobs, and what they sum to."""
    rows, sums = forecast.rows, forecast.totals
    lines = [("job", "time", "memory", "disk", "known from")]
    for row in rows:
        name = f"{row.count} x {row.job}" if row.count > 1 else row.job
        memory = f"{row.memory / 1e6:,.0f} MB" if row.memory else "-"
        lines.append((name, clock(row.seconds), memory, f"{row.bytes * row.count / 1e6:,.1f} MB", _known(row)))
    widths = [max(len(line[column]) for line in lines) for column in range(5)]
    table = [
        "  ".join(
            cell.rjust(width) if 0 < place < 4 else cell.ljust(width)
            for place, (cell, width) in enumerate(zip(line, widths, strict=True))
        ).rstrip()
        for line in lines
    ]
    gpus = f", {sums.gpu_hours:.2f} GPU-hours" if sums.gpu_hours else ""
    gpus += " (measured on CPU: there is no GPU here)" if forecast.on_cpu else ""
    time = f"{clock(sums.seconds)} on {sums.cores} cores, {clock(sums.seconds_unlimited)} with all at once that can be"
    rest = f"{sums.memory / 1e6:,.0f} MB of memory for the largest, {sums.bytes / 1e6:,.1f} MB of disk{gpus}"
    table += ["", f"{sums.jobs} jobs to do: {time}; {clock(sums.cpu_seconds)} of CPU time, {rest}"]
    return "\n".join(table)


def _known(row: Row) -> str:
    return f"done, {row.known}" if row.done else row.known


def clock(seconds: float) -> str:
    """5.1 s, 3:20 min or 12:30 h."""
    if seconds < 60:
        return f"{seconds:.1f} s"
    if round(seconds) < 3600:
        return f"{round(seconds) // 60}:{round(seconds) % 60:02d} min"
    minutes = round(seconds / 60)
    return f"{minutes // 60}:{minutes % 60:02d} h"
