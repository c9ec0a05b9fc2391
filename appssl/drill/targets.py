"""What of a run can be hit by a signal: its processes on this machine (Linux), or its jobs on a SLURM cluster."""

import os
import re
import signal
import subprocess
import time
from dataclasses import dataclass
from pathlib import Path

PLANNING = "before or between stages"
_OURS = ("appssl", "snakemake")  # never the shell of somebody who looks at the folder
_NO_STAGES = ("run", "check", "status", "verify", "doctor")


@dataclass(frozen=True)
class Target:
    """A process or job of a run: what it is (`stage`, `worker`, `other`), the stage it does, its number."""

    kind: str
    stage: str
    number: str
    is_job: bool = False

    def send(self, name: str) -> bool:
        """Sends a signal by name; False if there is nothing any more that could receive it."""
        if self.is_job:
            command = ["scancel", f"--signal={name.removeprefix('SIG')}", "--full", self.number]
            return subprocess.run(command, capture_output=True, check=False).returncode == 0
        try:
            os.kill(int(self.number), signal.Signals[name])
        except ProcessLookupError:
            return False
        return True


def targets(folder: Path, is_slurm: bool) -> list[Target]:
    """What a run in `folder` has going now. Jobs of earlier attempts that are still there count too."""
    return jobs(folder) if is_slurm else processes(folder)


def processes(folder: Path) -> list[Target]:
    """Processes of appssl that work in `folder`, also those whose parent was killed. Empty where /proc is not."""
    stages: dict[int, str] = {}
    parents: dict[int, int] = {}
    for entry in Path("/proc").glob("[0-9]*"):
        try:
            if os.readlink(entry / "cwd") != str(folder):
                continue
            words = (entry / "cmdline").read_bytes().decode(errors="replace").split("\0")
            if not any(name in word for word in words for name in _OURS):
                continue
            parents[int(entry.name)] = int((entry / "stat").read_text().rpartition(")")[2].split()[1])
        except OSError:  # it ended meanwhile, or is somebody else's
            continue
        stages[int(entry.name)] = _stage(words)
    found = []
    for pid, stage in stages.items():
        kind = "other" if not stage else "worker" if stages.get(parents[pid]) else "stage"  # workers are forked
        found.append(Target(kind, stage, str(pid)))
    return found


def _stage(words: list[str]) -> str:
    """Stage that a command line does: `python .../bin/appssl pretrain ...` is pretrain; empty if it does none."""
    for word, after, last in zip(words, words[1:], [*words[2:], ""], strict=False):
        if word.rpartition("/")[2] == "appssl" and after and after not in _NO_STAGES:
            return last if after == "data" else after
    return ""


def jobs(folder: Path) -> list[Target]:
    """Running jobs that were submitted from `folder`."""
    command = ["squeue", "--me", "--noheader", "--states=RUNNING", "--format=%i|%Z|%k|%j"]
    asked = subprocess.run(command, capture_output=True, text=True, check=False)
    found = []
    for line in asked.stdout.splitlines():
        number, where, comment, name = line.split("|", 3)
        if Path(where).resolve() == folder:
            rule = re.search(r"rule_([a-z]+)", f"{comment} {name}")
            found.append(Target("stage", rule.group(1) if rule else name, number, is_job=True))
    return found


def stage_now(found: list[Target]) -> str:
    """The stages that are being done, for people."""
    return ", ".join(sorted({target.stage for target in found if target.stage})) or PLANNING


def end_leftovers(folder: Path, is_slurm: bool, seconds: float = 60.0) -> list[Target]:
    """Waits for what killed attempts left going, then kills it; returns what had to be killed."""
    deadline = time.monotonic() + seconds
    while left := targets(folder, is_slurm):
        if time.monotonic() > deadline:
            for target in left:
                target.send("SIGKILL")
            return left
        time.sleep(0.2)
    return []
