"""Runs the real command line in a subprocess, as a user would."""

import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

REPOSITORY = Path(__file__).parents[1]


@dataclass(frozen=True)
class Done:
    code: int
    out: str
    err: str


def environment(**extra: str) -> dict[str, str]:
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", "")])
    clean = {key: value for key, value in os.environ.items() if key not in ("MLFLOW_TRACKING_URI", "APPSSL_DEBUG")}
    source = os.pathsep.join(
        filter(None, [str(REPOSITORY), extra.pop("PYTHONPATH", None), os.environ.get("PYTHONPATH")])
    )
    return {**clean, "PATH": path, "PYTHONPATH": source, "COLUMNS": "200", "NO_COLOR": "1", **extra}


def appssl(*arguments: str | Path, cwd: Path, timeout: float = 600, **extra: str) -> Done:
    """`appssl ARGUMENTS` in `cwd`; extra keyword arguments are environment variables."""
    command = [sys.executable, "-m", "appssl", *map(str, arguments)]
    done = subprocess.run(
        command, cwd=cwd, env=environment(**extra), capture_output=True, text=True, timeout=timeout, check=False
    )
    return Done(done.returncode, done.stdout, done.stderr)
