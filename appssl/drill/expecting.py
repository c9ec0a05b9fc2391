"""What a case of the drill is, and how it says that something was not as expected."""

import subprocess
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from appssl.drill.project import SECONDS, Done, Project, differing
from appssl.drill.targets import processes

AS_EXPECTED, UNEXPECTED, NOT_TRIED = "as expected", "not as expected", "not tried"
Wanted = dict[str, str]  # digests of the undisturbed run


class Unexpected(Exception):
    """What happened instead."""


class NotTried(Exception):
    """This machine does not let the fault be made; says why."""


@dataclass(frozen=True)
class Case:
    """A fault: what is done to a finished project of its own, and in words what has to come of it.

    `happen(project, wanted)` makes the fault and raises `Unexpected` or `NotTried`.
    """

    name: str
    expected: str
    happen: Callable[[Project, Wanted], None]


@dataclass(frozen=True)
class Fault:
    """One row: how a case ended."""

    name: str
    expected: str
    outcome: str
    detail: str
    seconds: float

    @property
    def as_expected(self) -> bool:
        return self.outcome != UNEXPECTED

    def plain(self) -> dict[str, Any]:
        return asdict(self)


def attempt(case: Case, finished: Project, wanted: Wanted, folder: Path) -> Fault:
    """Runs a case on a copy of a finished project."""
    begun = time.monotonic()
    outcome, detail = AS_EXPECTED, ""
    try:
        case.happen(finished.copy(folder), wanted)
    except NotTried as reason:
        outcome, detail = NOT_TRIED, str(reason)
    except Unexpected as other:
        outcome, detail = UNEXPECTED, str(other)
    except Exception as error:  # a case that breaks is a row too, and never stops the others
        outcome, detail = UNEXPECTED, f"{type(error).__name__}: {error}"
    return Fault(case.name, case.expected, outcome, detail, round(time.monotonic() - begun, 1))


def expect(truth: object, said: str) -> None:
    if not truth:
        raise Unexpected(said)


def until(truth: Callable[[], object], process: "subprocess.Popen[bytes]", what: str) -> None:
    """Waits for something that has to happen before a process ends."""
    deadline = time.monotonic() + SECONDS
    while not truth():
        expect(process.poll() is None and time.monotonic() < deadline, f"the command ended without {what}")
        time.sleep(0.005)


def until_stage(project: Project, process: "subprocess.Popen[bytes]", stage: str) -> None:
    until(lambda: any(target.stage == stage for target in processes(project.folder)), process, f"a process of {stage}")


def expect_failure(done: Done, code: int, *words: str) -> None:
    """The command ended with this exit code and said these words, without a traceback."""
    expect(done.code == code, f"exit code {done.code} instead of {code}: {_end(done)}")
    for word in words:
        expect(word in done.err, f"{word!r} was not said: {_end(done)}")
    expect("Traceback" not in done.err, f"a traceback: {_end(done)}")


def expect_done(done: Done) -> None:
    expect(done.is_done, f"exit code {done.code}: {_end(done)}")


def expect_equal(project: Project, wanted: Wanted) -> None:
    wrong = differing(project.digests(), wanted)
    expect(not wrong, f"other digests: {', '.join(wrong)}")


def expect_healed(project: Project, wanted: Wanted) -> None:
    """The same command ends well, with the bytes of the undisturbed run."""
    expect_done(project.run())
    expect_equal(project, wanted)


def _end(done: Done) -> str:
    return done.err.strip()[-600:]
