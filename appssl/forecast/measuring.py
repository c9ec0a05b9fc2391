"""What a command takes: time, CPU time, peak memory of it and its children, and the bytes that it leaves."""

import os
import subprocess
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from appssl.errors import AppsslError
from appssl.progress import last_line
from appssl.stages.frame import read_run

_SECONDS_BETWEEN_LOOKS = 0.1


@dataclass(frozen=True)
class Cost:
    """`start`: seconds until the work began. `memory`: peak bytes; `own_memory`: without what is only mapped from
    files. `size`: bytes of the result's folder, without shards in it."""

    seconds: float
    cpu_seconds: float
    memory: int
    own_memory: int
    size: int
    start: float


class ChildFailed(AppsslError):
    """A measured command failed; has its exit code and the end of what it said."""


def measured(
    command: Sequence[str],
    out: Path,
    *,
    log: Path,
    limit: float,
    cwd: Path | None = None,
    variables: Mapping[str, str] | None = None,
) -> Cost:
    """Runs a command to its end.

    Args:
        out: folder that it writes. log: gets its stderr. limit: seconds after which it is stopped. variables: of its
            environment, beside those of this process.
    Raises:
        ChildFailed: if it fails, or takes longer.
    """
    log.parent.mkdir(parents=True, exist_ok=True)
    begun = time.perf_counter()
    with log.open("wb") as file:
        environment, nothing = {**os.environ, **(variables or {})}, subprocess.DEVNULL
        child = subprocess.Popen(command, stdin=nothing, stdout=nothing, stderr=file, cwd=cwd, env=environment)
    peak = own_peak = 0
    try:
        while True:
            pid, status, used = os.wait4(child.pid, os.WNOHANG)
            if pid:
                break
            if time.perf_counter() - begun > limit:
                raise ChildFailed(f"took longer than {limit:.0f} s and was stopped. Give the probe more seconds.")
            whole, own = memory_of(child.pid)
            peak, own_peak = max(peak, whole), max(own_peak, own)
            time.sleep(_SECONDS_BETWEEN_LOOKS)
    except BaseException:
        child.terminate()
        os.waitpid(child.pid, 0)
        raise
    child.returncode = os.waitstatus_to_exitcode(status)
    seconds = time.perf_counter() - begun
    if child.returncode:
        error = ChildFailed(last_line(log).removeprefix("appssl: ") or f"ended with code {child.returncode}")
        error.exit_code = max(1, child.returncode)
        raise error
    worked = read_run(out).get("seconds", 0.0)
    return Cost(
        seconds=seconds,
        cpu_seconds=used.ru_utime + used.ru_stime,
        memory=peak,
        own_memory=own_peak,
        size=size_of(out),
        start=max(0.0, seconds - worked),
    )


def memory_of(pid: int) -> tuple[int, int]:
    """Bytes in memory of a process and its descendants, what several share counted once, and at least the most that the
    process itself ever had; and of these, bytes that are not mapped from files. Zeros where the system does not say.

    The peak that `wait4` reports is no use: it begins with that of the process that started the command.
    """
    whole = own = 0
    for each in _family(pid):
        try:
            lines = Path(f"/proc/{each}/smaps_rollup").read_text(encoding="ascii").splitlines()[1:]
        except OSError:  # it has ended, or there is no /proc
            continue
        held = {name: int(rest.split()[0]) * 1024 for name, _, rest in (line.partition(":") for line in lines)}
        whole += held.get("Pss", 0)
        own += held.get("Pss_Anon", 0) + held.get("Pss_Shmem", 0)
    return max(whole, _peak(pid)), own


def _peak(pid: int) -> int:
    try:
        lines = Path(f"/proc/{pid}/status").read_text(encoding="ascii").splitlines()
    except OSError:
        return 0
    return next((int(line.split()[1]) * 1024 for line in lines if line.startswith("VmHWM:")), 0)


def _family(pid: int) -> Iterator[int]:
    yield pid
    try:
        tasks = list(Path(f"/proc/{pid}/task").iterdir())
    except OSError:
        return
    for task in tasks:
        try:
            children = (task / "children").read_text(encoding="ascii").split()
        except OSError:
            continue
        for child in children:
            yield from _family(int(child))


def size_of(folder: Path) -> int:
    """Bytes of the files in a folder, without its `shards`."""
    files = (path for path in folder.rglob("*") if path.is_file() and path.relative_to(folder).parts[0] != "shards")
    return sum(path.stat().st_size for path in files)
