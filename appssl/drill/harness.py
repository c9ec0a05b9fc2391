"""The whole drill: undisturbed runs, runs that are killed, and faults with one expected outcome each."""

import random
import shutil
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from appssl.drill import changes, damage, places, runs
from appssl.drill.expecting import Case, Fault, attempt
from appssl.drill.kills import Kill, Reference, Shot, random_shot, trial, undisturbed
from appssl.drill.project import SETTINGS, Project
from appssl.errors import SettingsError

CASES: list[Case] = [*runs.CASES, *changes.CASES, *damage.CASES, *places.CASES]
_OF_FAULTS = "wearable"  # the chain with every stage, on the least data
_TRIES = 3  # of a trial whose run ended before the signal was sent

Say = Callable[[str], None]


@dataclass
class Drill:
    """Every row of a drill, and what is needed to repeat it."""

    seed: int
    profile: str
    kills: list[Kill] = field(default_factory=list)
    faults: list[Fault] = field(default_factory=list)

    @property
    def unexpected(self) -> list[Kill | Fault]:
        rows: list[Kill | Fault] = [*self.kills, *self.faults]
        return [row for row in rows if not row.as_expected]

    def plain(self) -> dict[str, Any]:
        rows = {"kills": [row.plain() for row in self.kills], "faults": [row.plain() for row in self.faults]}
        return {"seed": self.seed, "profile": self.profile, **rows}


def drill(
    folder: Path, *, domains: Sequence[str], kills: int, seed: int, profile: str, say: Say, jobs: int = 1
) -> Drill:
    """Runs everything in `folder`; what is as expected is removed from it, the rest stays to be looked at.

    Faults are made on this machine whatever the profile: they are of disks and files, not of a scheduler.

    Args:
        kills: number of signals, over the domains in turn. say: gets a line for every row. jobs: runs that are killed
            beside each other; the other faults come one by one, since some of them are of the whole machine.
    Raises:
        SettingsError: if the folder holds something already.
        AppsslError: if a run that nothing disturbs fails.
    """
    if folder.exists() and any(folder.iterdir()):
        raise SettingsError(f"--out {folder}: is not empty. Give a folder for the drill alone.")
    found = Drill(seed, profile)
    references = {}
    for domain in domains if kills else ():
        references[domain] = _peace(folder / domain / "undisturbed", domain, profile, say)[1]
    chosen = random.Random(seed)
    shots = [random_shot(references[domains[number % len(domains)]], chosen) for number in range(kills)]

    def killed(number: int) -> Kill:
        domain = domains[number % len(domains)]
        row = _killed(folder / domain / str(number + 1), references[domain], shots[number], domain, profile)
        row.trial = number + 1
        return row

    with ThreadPoolExecutor(jobs) as pool:
        for row in pool.map(killed, range(kills)):
            found.kills.append(row)
            what = f"{row.domain} {row.signal} to {row.target} at {row.stage}"
            say(f"kill {row.trial} of {kills}: {what}: {row.outcome}")
    finished, reference = _peace(folder / "faults/undisturbed", _OF_FAULTS, "local", say)
    for number, case in enumerate(CASES, 1):
        place = folder / "faults" / str(number)
        fault = attempt(case, finished, reference.digests, place)
        found.faults.append(fault)
        say(f"fault {number} of {len(CASES)}: {case.name}: {fault.outcome}")
        if fault.as_expected:
            shutil.rmtree(place, ignore_errors=True)
    if not found.unexpected:
        shutil.rmtree(folder)
    return found


def _peace(place: Path, domain: str, profile: str, say: Say) -> tuple[Project, Reference]:
    project = Project(place, domain, profile)
    reference = undisturbed(project)
    say(f"undisturbed: {domain}: {reference.seconds:.0f} s, {len(reference.digests)} results")
    return project, reference


def _killed(place: Path, reference: Reference, shot: Shot, domain: str, profile: str) -> Kill:
    """A trial with one signal, in a folder of its own; an earlier signal when the run was quicker than that."""
    for part in range(_TRIES):
        shutil.rmtree(place, ignore_errors=True)
        earlier = Shot(shot.target, shot.signal, shot.moment / 2**part)
        (row,) = trial(Project(place, domain, profile), reference, [earlier])
        if row.moment is not None or not row.as_expected:
            break
    if row.as_expected:
        shutil.rmtree(place, ignore_errors=True)
    return row


def known(domains: Sequence[str]) -> list[str]:
    """The domains asked for, all if none is.

    Raises:
        SettingsError: for one that there is not.
    """
    wrong = [domain for domain in domains if domain not in SETTINGS]
    if wrong:
        raise SettingsError(f"--domain {wrong[0]}: no such domain. There are: {', '.join(SETTINGS)}.")
    return list(dict.fromkeys(domains)) or list(SETTINGS)
