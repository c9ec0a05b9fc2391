"""Time and peak memory of the four demos, run at once as `make demo` does.

python benchmarks/demo.py [recipe ...]

Memory is the proportional set size (shared pages counted once) of the command and all its children, sampled twice a
second: short peaks between two samples are missed. Linux only.
"""

import contextlib
import subprocess
import sys
import tempfile
import time
from pathlib import Path

DEMOS = ("wsi/demo", "wearable/demo", "webnoisy/demo", "recsys/demo")
GOALS = {"seconds": 480, "GiB": 4.0}


def children(pid: int) -> list[int]:
    """The process and everything below it."""
    found = [pid]
    for task in Path(f"/proc/{pid}/task").glob("*/children"):
        for child in task.read_text().split():
            found += children(int(child))
    return found


def memory(pid: int) -> int:
    """Bytes of the tree of processes."""
    total = 0
    for one in children(pid):
        try:
            lines = Path(f"/proc/{one}/smaps_rollup").read_text().splitlines()
        except OSError:  # it has just ended
            continue
        total += sum(int(line.split()[1]) * 1024 for line in lines if line.startswith("Pss:"))
    return total


def main() -> None:
    recipes = sys.argv[1:] or DEMOS
    with tempfile.TemporaryDirectory() as folder:
        begun, peak = time.perf_counter(), 0
        process = subprocess.Popen([sys.executable, "-m", "appssl", "run", *recipes], cwd=folder)
        while process.poll() is None:
            with contextlib.suppress(OSError):  # a process has just ended
                peak = max(peak, memory(process.pid))
            time.sleep(0.5)
        seconds = time.perf_counter() - begun
    if process.returncode not in (0, 5):
        sys.exit(f"the run failed with exit code {process.returncode}")
    print(f"{seconds:.0f} s (goal below {GOALS['seconds']} s)")
    print(f"peak {peak / 2**30:.2f} GiB (goal below {GOALS['GiB']} GiB)")


if __name__ == "__main__":
    main()
