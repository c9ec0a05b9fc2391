"""Runs that are hit by a signal at a random moment and started again: do they end with the same bytes?"""

import os
import random
import signal
import subprocess
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from appssl.drill.project import Done, Project, differing
from appssl.drill.targets import end_leftovers, stage_now, targets
from appssl.errors import AppsslError

SIGNALS = ("SIGKILL", "SIGTERM", "SIGUSR1")
TARGETS = ("parent", "stage", "worker", "group")
EQUAL, DIFFERENT, UNFINISHED = "equal", "different", "did not finish"
_MORE_ATTEMPTS = 3  # after the last signal; one is expected to do
_SECONDS_BETWEEN_LOOKS, _FOR_A_CONTROLLER = 0.1, 2.0  # a cluster is not to be asked all the time


@dataclass(frozen=True)
class Reference:
    """An undisturbed run: how long it took, its digests, and at which seconds there was something of each target."""

    seconds: float
    digests: dict[str, str]
    seen: dict[str, list[float]]


@dataclass(frozen=True)
class Shot:
    """A signal to send: to what, from which second of the attempt on, only while `stage` is done if that is given."""

    target: str
    signal: str
    moment: float
    stage: str = ""


@dataclass
class Kill:
    """One row: what was sent, when (seconds; None: the run had ended before), while which stage, and how it ended.

    Attributes:
        attempts: how often the command was given until it was done. outcome: equal, different or did not finish.
        detail: artifacts that differ, or what the last attempt said.
    """

    domain: str
    target: str
    signal: str
    moment: float | None
    stage: str
    attempts: int = 0
    outcome: str = ""
    detail: str = ""
    trial: int = 0

    @property
    def as_expected(self) -> bool:
        return self.outcome == EQUAL

    def plain(self) -> dict[str, Any]:
        return asdict(self)


@dataclass
class _Attempt:
    """One time that the command is given."""

    project: Project
    shot: Shot | None
    sent: Kill | None = None
    seen: dict[str, list[float]] = field(default_factory=dict)

    def watch(self) -> Done:
        every = _FOR_A_CONTROLLER if self.project.is_slurm else _SECONDS_BETWEEN_LOOKS
        process = self.project.start(self.project.command())
        begun = time.monotonic()
        while process.poll() is None:
            after = time.monotonic() - begun
            if after > self.project.seconds:
                os.killpg(process.pid, signal.SIGKILL)
            if self.shot is None:
                for kind in {target.kind for target in targets(self.project.folder, self.project.is_slurm)}:
                    self.seen.setdefault(kind, []).append(after)
            elif self.sent is None and after >= self.shot.moment:
                self._fire(self.shot, process, after)
            time.sleep(every)
        return self.project.ended(process)

    def _fire(self, shot: Shot, process: "subprocess.Popen[bytes]", after: float) -> None:
        found = targets(self.project.folder, self.project.is_slurm)
        stage = stage_now(found)
        if shot.target in ("parent", "group"):
            if shot.stage and shot.stage not in stage:
                return
            (os.kill if shot.target == "parent" else os.killpg)(process.pid, signal.Signals[shot.signal])
        else:
            fitting = [t for t in found if t.kind == shot.target and shot.stage in ("", t.stage)]
            if not fitting or not fitting[0].send(shot.signal):
                return
            stage = fitting[0].stage
        self.sent = Kill(self.project.domain, shot.target, shot.signal, round(after, 2), stage)


def undisturbed(project: Project) -> Reference:
    """Runs the chain once, in peace.

    Raises:
        AppsslError: if it does not end well; then there is nothing to compare with.
    """
    begun = time.monotonic()
    attempt = _Attempt(project, None)
    done = attempt.watch()
    if not done.is_done:
        raise AppsslError(f"the undisturbed run of {project.domain} in {project.folder} failed:\n{done.err}")
    return Reference(time.monotonic() - begun, project.digests(), attempt.seen)


def random_shot(reference: Reference, chosen: random.Random) -> Shot:
    """A signal, and a moment at which its target was there in the undisturbed run."""
    target, name, part = chosen.choice(TARGETS), chosen.choice(SIGNALS), chosen.random()
    moments = reference.seen.get(target)
    if not moments:  # the parent and the group are there all the time; where no worker was seen, it is the first
        return Shot(target, name, part * reference.seconds * (0.5 if target == "worker" else 1.0))
    return Shot(target, name, moments[int(part * len(moments))])


def random_shots(reference: Reference, chosen: random.Random, count: int) -> list[Shot]:
    """Signals for one folder that is gone on with: earlier ones, since each attempt has less to do."""
    shots = [random_shot(reference, chosen) for _ in range(count)]
    return [Shot(shot.target, shot.signal, shot.moment * 0.4) for shot in shots]


def trial(project: Project, reference: Reference, shots: Sequence[Shot]) -> list[Kill]:
    """Gives the same command until it is done; the first attempts are hit by one of `shots` each, in this order.

    Returns:
        A row for every signal that was sent; one without a moment if the run had ended before the first.
    """
    rows: list[Kill] = []
    attempts = 0
    while attempts < len(shots) + _MORE_ATTEMPTS:
        attempt = _Attempt(project, shots[attempts] if attempts < len(shots) else None)
        done = attempt.watch()
        attempts += 1
        rows += [attempt.sent] if attempt.sent else []
        if done.is_done:
            break
    left = end_leftovers(project.folder, project.is_slurm)
    wrong = differing(project.digests(), reference.digests)
    rows = rows or [Kill(project.domain, shots[0].target, shots[0].signal, None, "ended before")]
    for row in rows:
        row.attempts = attempts
        row.outcome = UNFINISHED if not done.is_done else DIFFERENT if wrong else EQUAL
        row.detail = done.err[-2000:] if not done.is_done else ", ".join(wrong)
        if left and not row.detail:
            row.detail = f"left going: {stage_now(left)}"
    return rows
