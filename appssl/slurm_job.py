"""One job of the workflow on a SLURM node: its command at once, where Snakemake would start twice before it.

Snakemake on the login node still decides what is done, checks what a job has left, and keeps its records. On the node
remains what it does around a command: wait until the inputs are seen there, remove what an earlier attempt left, make
the folders, and say how many threads there are. Needs nothing but Python, to start at once.
"""

import base64
import json
import os
import shlex
import sys
import time
import zlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

MODULE = "appssl.slurm_job"
_OTHERS = "--slurm-jobstep-array-execs="  # what Snakemake's plugin calls the commands of an array's other tasks
_THREADS = ("OMP", "GOTO", "OPENBLAS", "MKL", "NUMEXPR")  # libraries, which Snakemake tells so too


def words(python: str, job: Mapping[str, Any]) -> str:
    """The command line of a job, without any character that a shell or sbatch would change.

    Args:
        python: that runs it. job: `command` for bash, `threads`, paths of its `inputs`, `outputs` and `logs`, and its
            `patience`: seconds that an input may take to be seen on the node.
    """
    packed = base64.urlsafe_b64encode(zlib.compress(json.dumps({**job}).encode(), level=9))
    return shlex.join([python, "-m", MODULE, packed.decode()])


def unpacked(packed: str) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(zlib.decompress(base64.urlsafe_b64decode(packed)))
    return found


def of_this_task(arguments: Sequence[str], environment: Mapping[str, str]) -> dict[str, Any]:
    """The job that is to be done here. An array is given its first task's, and those of the others by their numbers."""
    first, *rest = arguments
    others = json.loads(base64.b64decode(rest[0].removeprefix(_OTHERS))) if rest else {}
    other = others.get(environment.get("SLURM_ARRAY_TASK_ID"))
    return unpacked(first if other is None else shlex.split(zlib.decompress(bytes.fromhex(other)).decode())[-1])


def prepare(job: Mapping[str, Any]) -> None:
    """
    Raises:
        SystemExit: if an input is not there in time.
    """
    deadline = time.monotonic() + job["patience"]
    while missing := [path for path in job["inputs"] if not Path(path).exists()]:
        if time.monotonic() > deadline:
            sys.exit(f"not seen on this node within {job['patience']:.0f} s: {', '.join(missing)}")
        time.sleep(1)
    for path in (*job["outputs"], *job["logs"]):
        Path(path).unlink(missing_ok=True)
        Path(path).parent.mkdir(parents=True, exist_ok=True)


def main() -> None:
    job = of_this_task(sys.argv[1:], os.environ)
    prepare(job)
    shell = ["bash", "-c", f"set -euo pipefail; {job['command']}"]
    os.execvpe(shell[0], shell, os.environ | {f"{name}_NUM_THREADS": str(job["threads"]) for name in _THREADS})


if __name__ == "__main__":
    main()
