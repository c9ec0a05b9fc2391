"""A folder in which the tiny synthetic chain of a domain is run with the real command line, as a user would."""

import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import appssl
from appssl import bundle, slurm
from appssl.artifact import Artifact
from appssl.errors import ArtifactError
from appssl.runner import die_with_parent, profile_folder

# Every domain's own demo, on little data, with checkpoints often enough to be resumed from, and workers to be killed.
_TINY = {
    "needs.pretrain.cpus": 3, "needs.finetune.cpus": 3, "evaluate.num_bootstrap": 100,
    "pretrain.fit.log_every": 2, "finetune.fit.log_every": 2,
}  # fmt: skip
_IMAGES = {
    "data.make.size": "tiny", "data.budget": 1, "pretrain.fit.batch_size": 16, "pretrain.fit.checkpoint_steps": 2,
    "finetune.fit.batch_size": 8, "finetune.fit.checkpoint_steps": 2,
}  # fmt: skip
SETTINGS: Mapping[str, Mapping[str, Any]] = {
    "wsi": _TINY | _IMAGES,
    "wearable": _TINY | _IMAGES | {"data.source.split.test": 0.5, "finetune.label_fraction": 0.5},
    "webnoisy": _TINY | _IMAGES,
    "recsys": _TINY | {"pretrain.fit.checkpoint_steps": 4, "finetune.fit.checkpoint_steps": 8},
}
STAGES = ("prepare", "pretrain", "pseudolabel", "finetune", "evaluate", "report")
DONE = (0, 5)  # 5: done, and the made data has inputs that cannot be read
SECONDS, SECONDS_IN_QUEUES = 1800.0, 86_400.0  # no command of a tiny chain takes this long, on any machine


@dataclass(frozen=True)
class Done:
    """How a command ended; `err` is what it said on stderr."""

    code: int
    out: str
    err: str

    @property
    def is_done(self) -> bool:
        return self.code in DONE


def environment(extra: Mapping[str, str]) -> dict[str, str]:
    """This very package, the user's environment, and nothing sent to the user's own store."""
    kept = {key: value for key, value in os.environ.items() if key not in ("MLFLOW_TRACKING_URI", "APPSSL_DEBUG")}
    found = [extra.get("PYTHONPATH", ""), str(Path(appssl.__file__).parents[1]), os.environ.get("PYTHONPATH", "")]
    return {**kept, "COLUMNS": "200", "NO_COLOR": "1", **extra, "PYTHONPATH": os.pathsep.join(filter(None, found))}


class Project:
    """The chain of `domain` in `folder`, which is made; relative paths only, so that bytes do not depend on it."""

    def __init__(self, folder: Path, domain: str, profile: str = "local") -> None:
        folder.mkdir(parents=True, exist_ok=True)
        # A copy: were it named in the package, another installation of that would be another input of everything.
        if not (folder / "demo.yaml").exists():
            shutil.copy(bundle.pipelines() / domain / "demo.yaml", folder / "demo.yaml")
        self.folder, self.domain, self.profile = folder.resolve(), domain, profile
        self.is_slurm = slurm.read(profile_folder(profile)).get("executor") == "slurm"
        self.seconds = SECONDS_IN_QUEUES if self.is_slurm else SECONDS

    def command(self, *options: str) -> list[str]:
        """What is typed to run the chain."""
        settings = [part for key, value in SETTINGS[self.domain].items() for part in ("--set", f"{key}={value}")]
        words = ["run", "demo.yaml", "--quick", "--profile", self.profile, *settings, *options]
        return [sys.executable, "-m", "appssl", *words]

    def start(self, command: Iterable[str], **extra: str) -> "subprocess.Popen[bytes]":
        """Starts a command in a process group of its own, which ends with this process; what it says goes into files,
        which survive a kill."""
        options: dict[str, Any] = {"start_new_session": True, "preexec_fn": die_with_parent}
        with self._said("out").open("wb") as out, self._said("err").open("wb") as err:
            return subprocess.Popen(
                list(command), cwd=self.folder, env=environment(extra), stdout=out, stderr=err, **options
            )

    def _said(self, stream: str) -> Path:
        return self.folder / f".drill-{stream}"

    def ended(self, process: "subprocess.Popen[bytes]") -> Done:
        """Waits for a command; one that hangs is killed, and its code is that of the signal."""
        try:
            code = process.wait(timeout=self.seconds)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            code = process.wait()
        return Done(code, *(self._said(stream).read_text(errors="replace") for stream in ("out", "err")))

    def run(self, *options: str, **extra: str) -> Done:
        """Runs the chain; extra keyword arguments are environment variables."""
        return self.ended(self.start(self.command(*options), **extra))

    def appssl(self, *words: str, **extra: str) -> Done:
        return self.ended(self.start([sys.executable, "-m", "appssl", *words], **extra))

    @property
    def plan(self) -> dict[str, Any]:
        """The plan of the last run."""
        plan: dict[str, Any] = json.loads((self.folder / "results/.appssl/plan.json").read_text(encoding="utf-8"))
        return plan

    @property
    def results(self) -> Path:
        """Folder of the results, which for `--quick` is one of its own."""
        return self.folder / self.plan["results"]

    def stage(self, name: str) -> Path:
        """Folder of a stage of the run; `prepare` is that of the prepared data."""
        if name == "prepare":
            return self.results / "data" / next(iter(self.plan["data"]))
        return self.results / self.domain / "demo/s0" / name

    def forget(self, *stages: str) -> None:
        """Removes manifests: these stages have to be done again."""
        for name in stages:
            (self.stage(name) / "manifest.json").unlink()

    def stage_command(self, name: str, config: str | None = None) -> list[str]:
        """What the workflow calls for a stage."""
        plan, out = self.plan, self.stage(name).relative_to(self.folder).as_posix()
        words = [sys.executable, "-m", "appssl", name, "--config", config or f"{out}/config.yaml", "--out", out]
        if name == "prepare":
            return [*words, "--merge"]
        for kind, folder in plan["runs"][self.domain]["demo"]["s0"]["stages"][name]["inputs"].items():
            words += [f"--{kind}", f"{plan['results']}/{folder}"]
        return words

    def digests(self) -> dict[str, str]:
        """Digest of every artifact by its folder, with all files of it checked; damage instead where there is some."""
        root, found = self.folder / "results", {}
        for path in sorted(root.rglob("manifest.json")):
            try:
                digest = Artifact.open(path.parent).digest
            except ArtifactError as error:
                digest = str(error)
            found[path.parent.relative_to(root).as_posix()] = digest
        return found

    def copy(self, folder: Path) -> "Project":
        """The same project elsewhere, with the times of its files."""
        shutil.copytree(self.folder, folder, symlinks=True)
        return Project(folder, self.domain, self.profile)


def differing(found: Mapping[str, str], wanted: Mapping[str, str]) -> list[str]:
    """Artifacts that are missing, too many, or not of the wanted digest."""
    return sorted(name for name in found.keys() | wanted.keys() if found.get(name) != wanted.get(name))
