"""Runs the real command line in a subprocess, as a user would."""

import os
import signal
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


def killed(*arguments: str | Path, cwd: Path, after: float) -> int | None:
    """Starts `appssl ARGUMENTS` and kills its whole process group with SIGKILL after some seconds.

    Returns:
        The exit code if it ended by itself before, else None.
    """
    process = subprocess.Popen(
        [sys.executable, "-m", "appssl", *map(str, arguments)],
        cwd=cwd,
        env=environment(),
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )
    try:
        return process.wait(timeout=after)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        return None
