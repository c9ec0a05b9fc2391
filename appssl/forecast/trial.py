"""The stages of a plan for real, but on a share of the inputs and for few optimizer steps: what a forecast stands on.

Nothing of a stage is imitated: the workflow's own commands run, each as a process, with changed settings of two kinds:
how many inputs there are (`forecast/share.py`) and `fit.steps`. Every recipe is tried with its first seed.
"""

import copy
import os
import shlex
import shutil
import sys
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
import yaml

from appssl import outcome, registry, runner
from appssl.artifact import write_bytes, write_json
from appssl.batch_jobs import Job, Writing, batch_jobs, write_configs
from appssl.forecast.law import Foreseen, Point, extrapolate
from appssl.forecast.measuring import ChildFailed, Cost, measured
from appssl.forecast.share import BEYOND, Units, count_units
from appssl.forecast.table import Forecast, Row, done_row, existing, totals
from appssl.ops.file_lock import take
from appssl.ops.journal import JOURNAL, read_events
from appssl.plan import MODELS, complete
from appssl.settings import validate
from appssl.stages.frame import read_run

_SCRATCH = ".appssl-probe-"
FIRST_STEPS = 6  # twice the default number of times that an encoder is probed on the way: every other is a mere step
_LARGER = 2  # times the first share: below that a second one tells little
_PATIENCE = 20  # times the seconds of the probe that a single command may take
_OF_INPUTS, _OF_DATA, _OF_TRAINING = 1 / 20, 1 / 3, 1 / 4  # of the seconds: first share, larger share, each training
_WRITING = Writing(program="appssl", task="0", task_in_log="0")
_APPSSL = [sys.executable, "-m", "appssl"]
_SHARE = [sys.executable, "-c", "import appssl.cli.main; from appssl.forecast.share import main; main()"]


@dataclass
class Tried:
    """What was measured of a job: the last point is the base. `steps`: optimizer steps of the whole training."""

    points: list[Point] = field(default_factory=list)
    steps: int = 0

    def at(self, share: float = 1.0) -> Foreseen:
        return extrapolate(self.points, share=share, steps=self.steps)


@dataclass
class Trial:
    """Tries the jobs of a plan in a folder.

    Attributes:
        seconds: that the work may take, beside starting processes.
        tried: by the name that `batch_jobs` gives the job. resolve, workflow: what it takes to write the settings of
            one stage, and to start the workflow. upload: to send the metrics of what was tried. units: by data key.
    """

    plan: Mapping[str, Any]
    folder: Path
    seconds: float
    tried: dict[str, Tried] = field(default_factory=dict)
    units: dict[str, Units] = field(default_factory=dict)
    resolve: Cost | None = None
    workflow: Cost | None = None
    upload: Cost | None = None

    def run(self) -> None:
        """
        Raises:
            AppsslError: of the kind of the stage that fails on all of the data.
        """
        roots = self._make()
        self._start_workflow()
        few = self._few_steps(roots)
        shares = {key: self._first_share(key, few) for key in few["data"]}
        shares = self._chain(few, "first", shares)
        larger = {key: share for key, old in shares.items() if (share := self._larger(key, few, old)) is not None}
        last = dict.fromkeys(shares, "first")
        if larger:
            try:
                self._chain(few, "larger", {**shares, **larger}, only=set(larger))
                last |= dict.fromkeys(larger, "larger")
            except ChildFailed as error:
                if max(larger.values()) == 1.0:
                    raise
                print(f"a larger share of the data was not measured: {error}", file=sys.stderr)
        self._more_steps(few, last)
        self._upload()

    def row(self, job: Job) -> Row:
        """The job as it will be."""
        count = max(1, job.shards)
        tried = self.tried[representative(self.plan, job.name)]
        found = tried.at(tried.points[-1].share if is_page(job.name) else 1 / count)
        return Row(job.name, count, False, "probed", after=tuple(job.after), needs=job.needs, **found.plain())

    def _measured(self, words: list[str], out: Path, name: str, **place: Any) -> Cost:
        print(f"probing {name}", file=sys.stderr, flush=True)
        return measured(words, out, log=self.folder / "log", limit=_PATIENCE * self.seconds, **place)

    def _make(self) -> dict[str, Path]:
        """Folder of the inputs of each data set; synthetic ones are made unless they are there."""
        roots = {}
        for key, data in self.plan["data"].items():
            root = Path(data["settings"]["root"]).resolve()
            if data["synthetic"] and not (root / "manifest.json").exists():
                root = self.folder / data["synthetic"]
                domain, size, seed = root.name.split("-")
                words = [*_APPSSL, "data", "make", domain, "--size", size, "--seed", seed, "--out", str(root)]
                if data["synthetic"] not in self.tried:
                    cost = self._measured(words, root, data["synthetic"])
                    self.tried[data["synthetic"]] = Tried([Point(1.0, 0, cost)])
            roots[key] = root
        return roots

    def _start_workflow(self) -> None:
        """Plans all jobs as the workflow does, none of them done."""
        folder = self.folder / "workflow"
        plan = copy.deepcopy(dict(self.plan)) | {"results": str(folder)}
        for data in plan["data"].values():
            data["tables"] = [str(Path(table).resolve()) for table in data["tables"]]
        for run in _runs(plan):
            run["file"] = str(Path(run["file"]).resolve())
        plan = complete(plan)
        write_json(folder / "plan.json", plan)
        config = {"plan": str(folder / "plan.json"), "pathvars": {"results": plan["results"]}}
        write_bytes(folder / "config.yaml", yaml.safe_dump(config).encode())
        command = runner.snakemake_command(folder / "config.yaml", runner.profile_folder("local"), None)
        self.workflow = self._measured([*command, "--dry-run", "--quiet", "all"], folder, "the workflow", cwd=folder)
        settings = next(iter(plan["configs"].values()))
        out = folder / "resolve" / "config.yaml"
        words = [*_APPSSL, "resolve", "--settings", settings, "--out", str(out)]
        self.resolve = self._measured(words, out.parent, "the start of a process")

    def _upload(self) -> None:
        """Sends what was tried first to a store of its own, as the workflow does beside its jobs."""
        project = self.folder / "store"
        project.mkdir()
        words = [sys.executable, "-m", "appssl.upload", str(self.folder / "first"), str(project)]
        store = {"MLFLOW_TRACKING_URI": f"sqlite:///{project / 'mlflow.db'}"}
        self.upload = self._measured(words, project, "the upload of metrics", cwd=project, variables=store)

    def _few_steps(self, roots: Mapping[str, Path]) -> dict[str, Any]:
        """The plan for the first seeds of what is to do, with few steps, one shard, and the GPUs that are here."""
        plan = copy.deepcopy(dict(self.plan))
        plan["targets"] = sorted({(d, r, int(first_seed(plan, d, r)[1:])) for d, r, _ in todo(self.plan)})
        for key, data in plan["data"].items():
            data["settings"] |= {"root": str(roots[key]), "shards": 1}
            data["synthetic"] = None
        for stage in (stage for run in _runs(plan) for stage in run["stages"].values()):
            stage["needs"]["gpus"] = min(stage["needs"]["gpus"], torch.cuda.device_count())
            if "fit" in stage["settings"]:
                stage["settings"]["fit"] |= {"epochs": None, "steps": FIRST_STEPS, "log_every": 1}
        needed = outcome.needed(plan)
        plan["data"] = {key: data for key, data in plan["data"].items() if f"data/{key}" in needed}
        return plan

    def _first_share(self, key: str, few: Mapping[str, Any]) -> float:
        settings: Any = validate(MODELS["prepare"], few["data"][key]["settings"], file=key, owner="prepare")
        source = registry.build("sources", settings.source)
        print(f"probing the inputs of {key}", file=sys.stderr, flush=True)
        units = count_units(source, Path(settings.root), self.folder / "units")
        self.units[key] = units
        return units.share(_OF_INPUTS * self.seconds / units.seconds)

    def _chain(
        self, few: dict[str, Any], level: str, shares: dict[str, float], only: set[str] | None = None
    ) -> dict[str, float]:
        """Runs every job on the shares of the data; where one fails, its data is tried again with a larger share.

        Args:
            only: keys of the data whose jobs are run; the others' results are those of the level before.
        Returns:
            The shares that were large enough.
        """
        root = self.folder / level
        plan = complete({**few, "results": str(root)})
        write_configs(plan)
        jobs = batch_jobs(plan, _WRITING)
        keys = keys_of(jobs)
        done: dict[str, Point] = {}
        while (job := next((job for job in jobs if job.name not in done), None)) is not None:
            own = keys[job.name]
            if only is not None and not own & only:
                self._link(job, root)
                done[job.name] = self.tried[job.name].points[-1]
                continue
            try:
                done[job.name] = self._job(job, root, shares, min(shares[key] for key in own))
            except ChildFailed as error:
                key = next((key for key in own if shares[key] < 1), None)
                if key is None or only is not None:
                    error.args = (f"{job.name}: {error}",)
                    raise
                print(f"{job.name}: {error} A larger share of the data is tried.", file=sys.stderr)
                shares[key] = self.units[key].share(4 * shares[key] * self.units[key].number)
                for name in [name for name in done if key in keys[name]]:
                    del done[name]
                    shutil.rmtree(root / name, ignore_errors=True)
                write_configs(plan)
        for name, point in done.items():
            if only is None or keys[name] & only:
                self.tried.setdefault(name, Tried()).points.append(point)
        return shares

    def _link(self, job: Job, root: Path) -> None:
        """Puts the result for the first share into another level."""
        if not job.shards:
            shutil.rmtree(root / job.name)
            (root / job.name).symlink_to(self.folder / "first" / job.name)

    def _job(self, job: Job, root: Path, shares: Mapping[str, float], share: float) -> Point:
        if not job.shards:
            steps = FIRST_STEPS if is_training(job.name) else 0
            return Point(share, steps, self._measured(as_typed(job), root / job.name, job.name))
        key = job.name.removesuffix("-shards")
        config, out = root / "data" / key / "config.yaml", root / "data" / key / "shards/0"
        if job.name not in self.tried:
            nothing = self.folder / "nothing" / key
            words = [*_SHARE, str(config), str(BEYOND - 1), str(BEYOND), str(nothing)]
            self.tried[job.name] = Tried([Point(0.0, 0, self._measured(words, nothing, "a shard of nothing"))])
        shards = self.units[key].shards(shares[key] * self.units[key].number)
        words = [*_SHARE, str(config), "0", str(shards), str(out)]
        return Point(share, 0, self._measured(words, out, f"{job.name} ({share:.2%} of the inputs)"))

    def _larger(self, key: str, few: dict[str, Any], share: float) -> float | None:
        """The share of the data whose work fits the time, by what the first one took; None if it is not larger."""
        jobs = keys_of(batch_jobs(complete({**few, "results": "."}), _WRITING))
        costs = [self.tried[name].points[-1].cost for name, own in jobs.items() if key in own]
        worked = sum(max(0.0, cost.seconds - cost.start) for cost in costs)
        if share == 1.0:
            return None
        units = self.units[key]
        fitting = share * units.number * _OF_DATA * self.seconds / max(worked, 1e-3)
        larger = units.share(fitting)
        return larger if larger >= _LARGER * share else None

    def _more_steps(self, few: dict[str, Any], last: Mapping[str, str]) -> None:
        """Measures each training once more, with the steps that the time allows."""
        jobs = batch_jobs(complete({**few, "results": "."}), _WRITING)
        keys = keys_of(jobs)
        for job in (job for job in jobs if is_training(job.name)):
            level = "larger" if "larger" in {last[key] for key in keys[job.name]} else "first"
            root, out = self.folder / level, self.folder / "long" / job.name
            tried = self.tried[job.name]
            base = tried.points[-1]
            settings = _planned(self.plan, job.name)["settings"]["fit"]
            examples = int(read_run(root / job.name)["num_examples"])
            tried.steps = num_steps(settings, examples / base.share)
            steps = self._fitting_steps(root / job.name, examples // settings["batch_size"], tried.steps)
            if steps <= FIRST_STEPS:
                continue
            config = yaml.safe_load((root / job.name / "config.yaml").read_text(encoding="utf-8"))
            config["settings"]["fit"] |= {"steps": steps, "log_every": settings["log_every"]}
            write_bytes(out / "config.yaml", yaml.safe_dump(config).encode())
            there = batch_jobs(complete({**few, "results": str(root)}), _WRITING)
            words = as_typed(next(each for each in there if each.name == job.name))
            words[words.index("--config") + 1], words[-1] = str(out / "config.yaml"), str(out)
            cost = self._measured(words, out, f"{job.name} ({steps} of {tried.steps} steps)")
            tried.points = [*tried.points[:-1], base, Point(base.share, steps, cost)]

    def _fitting_steps(self, folder: Path, per_epoch: int, all_steps: int) -> int:
        """Steps for the time that a training has, in whole epochs if it has an epoch's."""
        more = int(_OF_TRAINING * self.seconds / step_seconds(folder))
        if FIRST_STEPS + 1.25 * more >= all_steps:
            return all_steps
        return FIRST_STEPS + (more - more % per_epoch if more >= per_epoch else max(more, 1))


def todo(plan: Mapping[str, Any]) -> list[tuple[str, str, int]]:
    """Targets of which anything is not done."""
    left = []
    for target in plan["targets"]:
        needed = outcome.needed({**plan, "targets": [target]})
        if not all((Path(plan["results"]) / place / "manifest.json").exists() for place in needed):
            left.append(tuple(target))
    return left


def first_seed(plan: Mapping[str, Any], domain: str, recipe: str) -> str:
    return str(next(iter(plan["runs"][domain][recipe])))


def representative(plan: Mapping[str, Any], name: str) -> str:
    """Name of the job that is tried for this one: that of its recipe's first seed."""
    if name.startswith("synthetic/"):
        return name
    key = name.removeprefix("data/").removesuffix("-shards")
    for domain, recipes in plan["runs"].items():
        for recipe, seeds in recipes.items():
            first = first_seed(plan, domain, recipe)
            for seed, run in seeds.items():
                if run["data"] == key:
                    return name.replace(key, seeds[first]["data"])
                if name.startswith(f"{domain}/{recipe}/{seed}/"):
                    return f"{domain}/{recipe}/{first}/{name.rpartition('/')[2]}"
    return name


def is_training(name: str) -> bool:
    return name.rpartition("/")[2] in ("pretrain", "finetune")


def is_page(name: str) -> bool:
    """Whether the job writes a report: what that shows is bounded, so it does not grow with the data."""
    return name.rpartition("/")[2] == "report"


def as_typed(job: Job) -> list[str]:
    return [*_APPSSL, *shlex.split(job.command)[1:]]


def keys_of(jobs: list[Job]) -> dict[str, set[str]]:
    """Keys of all data that a job stands on, by its name."""
    found: dict[str, set[str]] = {}
    for job in jobs:
        found[job.name] = {job.name.removesuffix("-shards")} if job.shards else set()
        for other in job.after:
            found[job.name] |= found.get(other, set())
    return found


def num_steps(fit: Mapping[str, Any], examples: float) -> int:
    """Optimizer steps of a training on so many examples, as the loop counts them."""
    return int(fit["steps"] or max(1, round((fit["epochs"] or 1) * max(1, int(examples) // fit["batch_size"]))))


def step_seconds(folder: Path) -> float:
    """Of a training that has ended: the shortest step after the first, which is slower."""
    metrics = [event["values"] for event in read_events(folder / JOURNAL) if event["event"] == "metrics"]
    found = [values["time/step_seconds"] for values in metrics if "time/step_seconds" in values]
    return max(min(found[1:] or found), 1e-4)


def _planned(plan: Mapping[str, Any], name: str) -> dict[str, Any]:
    domain, recipe, seed, stage = name.split("/")
    found: dict[str, Any] = plan["runs"][domain][recipe][seed]["stages"][stage]
    return found


def _runs(plan: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
    return (run for recipes in plan["runs"].values() for seeds in recipes.values() for run in seeds.values())


@contextmanager
def probe_folder(beside: Path) -> Iterator[Path]:
    """A folder that is removed at the end; first the folders go that killed probes left."""
    for left in beside.glob(f"{_SCRATCH}*"):
        lock = take(left / ".lock", wait=False)
        if lock is not None:
            os.close(lock)
            shutil.rmtree(left)
    with tempfile.TemporaryDirectory(prefix=_SCRATCH, dir=beside) as folder:
        lock = take(Path(folder) / ".lock")
        try:
            yield Path(folder)
        finally:
            os.close(lock or 0)


def foresee(plan: Mapping[str, Any], seconds: float) -> Forecast:
    """Tries the plan in a folder beside its results, and removes that folder.

    Args:
        seconds: that the work may take, beside starting processes.
    Raises:
        AppsslError: of the kind of the stage that fails on all of the data.
    """
    with probe_folder(existing(Path(plan["results"]))) as folder:
        trial = Trial(plan, folder, seconds)
        if todo(plan):
            trial.run()
    rows = [done_row(plan, job) or trial.row(job) for job in batch_jobs(complete(dict(plan)), _WRITING)]
    cores = len(os.sched_getaffinity(0))
    sums = totals(rows, cores=cores, resolve=trial.resolve, workflow=trial.workflow, upload=trial.upload)
    return Forecast(rows, sums, on_cpu=sums.gpu_hours > 0 and torch.cuda.device_count() == 0)
