"""Every error a user can cause, and the exit code it ends with.

AppsslError (1)
├── SettingsError (2)   a recipe, option or setting is wrong
├── DataError (3)       an input is missing, unreadable or contradicts itself
│   └── ArtifactError   a result of an earlier stage is damaged or does not match
├── DivergedError (4)   training produced a non-finite loss
└── LeftOutError (5)    the work is done, but some inputs were left out

A message says what happened, in which file and field, and what to do.
"""

from collections.abc import Sequence
from dataclasses import dataclass

NOT_JSON = (ValueError, RecursionError)  # what json.loads raises; too deep a nesting is no ValueError


class AppsslError(Exception):
    exit_code = 1


@dataclass(frozen=True)
class Problem:
    """One thing wrong in a recipe: `file: field message`."""

    file: str
    field: str
    message: str

    def __str__(self) -> str:
        return f"{self.file}: {self.field} {self.message}" if self.field else f"{self.file}: {self.message}"


class SettingsError(AppsslError):
    """Wrong settings; carries all problems found, not only the first."""

    exit_code = 2

    def __init__(self, problems: str | Sequence[Problem]) -> None:
        self.problems = [] if isinstance(problems, str) else list(problems)
        super().__init__(problems if isinstance(problems, str) else "\n".join(map(str, problems)))


class DataError(AppsslError):
    exit_code = 3


class ArtifactError(DataError):
    pass


class DivergedError(AppsslError):
    exit_code = 4


class LeftOutError(AppsslError):
    exit_code = 5
