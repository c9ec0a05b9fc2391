"""What can be known of a training that ran out of memory.

An exception says so itself. A process that was killed says nothing; two places may know why: the kernel's counter of
kills for want of memory in the process's cgroup, and SLURM's accounts. Neither says which process of the cgroup or job
it was. Where the cgroup went with its job, or a service outside the kernel did the killing, nothing is known.
"""

import errno
import os
import subprocess
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

_CGROUPS = Path("/sys/fs/cgroup")
_SECONDS_FOR_SACCT = 30
_WORDS = (  # in a RuntimeError: of torch's allocator on a CPU, of CUDA outside torch's allocator, of C++
    "can't allocate memory",
    "CUDA error: out of memory",
    "CUBLAS_STATUS_ALLOC_FAILED",
    "std::bad_alloc",
)


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an exception, also one that a loader's process handed over, says that memory ran out."""
    if isinstance(error, OSError):
        return error.errno == errno.ENOMEM
    if isinstance(error, MemoryError | torch.OutOfMemoryError):
        return True
    return isinstance(error, RuntimeError) and any(word in str(error) for word in _WORDS)


def traces() -> dict[str, Any]:
    """Where a kill of this process for want of memory would show, to be asked later: JSON types only."""
    cgroup, kills = _kills() or (None, 0)
    return {"cgroup": cgroup, "oom_kills": kills, "slurm_job": os.environ.get("SLURM_JOB_ID")}


def evidence(before: Mapping[str, Any]) -> str | None:
    """What says that a process with these `traces` was killed for want of memory; None if nothing does."""
    cgroup, kills = _kills() or (None, 0)
    if cgroup is not None and before.get("cgroup") == cgroup and kills > before.get("oom_kills", kills):
        return "the kernel killed a process of the same cgroup for want of memory"
    job = before.get("slurm_job")
    if job and _ended_out_of_memory(job):
        return f"SLURM ended job {job} as OUT_OF_MEMORY"
    return None


def _kills() -> tuple[str, int] | None:
    """This process's cgroup, and how many of its processes were killed for want of memory; None where nobody counts.

    The name is that of one folder between two starts of the machine: a new cgroup of the same path has another.
    """
    try:
        for line in Path("/proc/self/cgroup").read_text().splitlines():
            _, controllers, place = line.split(":", 2)
            inside = place.lstrip("/")
            if "memory" in controllers.split(","):
                file = _CGROUPS / "memory" / inside / "memory.oom_control"
            elif not controllers:  # version 2
                file = _CGROUPS / inside / "memory.events"
            else:
                continue
            if file.is_file():
                counts = dict(row.split() for row in file.read_text().splitlines())
                started = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
                return f"{started}:{file.parent.stat().st_ino}", int(counts["oom_kill"])
    except (OSError, ValueError, KeyError):
        return None
    return None


def _ended_out_of_memory(job: str) -> bool:
    """What SLURM's accounts say of a job or one of its steps; False without accounts."""
    try:
        asked = subprocess.run(
            ["sacct", "--noheader", "--parsable2", "--format=State", f"--jobs={job}"],
            capture_output=True, text=True, check=False, timeout=_SECONDS_FOR_SACCT,
        )  # fmt: skip
    except (OSError, subprocess.TimeoutExpired):
        return False
    return any(line.startswith("OUT_OF_ME") for line in asked.stdout.splitlines())
