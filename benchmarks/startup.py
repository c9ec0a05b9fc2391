"""How long the command line takes before it works: --help, and a run with nothing to do.

python benchmarks/startup.py            (needs nothing; makes a tiny run in a temporary folder first)
"""

import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

RUNS = 5
LIMITS = {"appssl --help": 0.5, "appssl run with nothing to do": 5.0}


def seconds(command: list[str], cwd: Path) -> float:
    begun = time.perf_counter()
    subprocess.run(command, cwd=cwd, check=False, capture_output=True)
    return time.perf_counter() - begun


def main() -> None:
    appssl = [sys.executable, "-m", "appssl"]
    with tempfile.TemporaryDirectory() as folder:
        here = Path(folder)
        seconds([*appssl, "run", "recsys/demo", "--quick"], here)
        jobs = {
            "python -c pass": [sys.executable, "-c", "pass"],
            "appssl --help": [*appssl, "--help"],
            "python -c 'import torch'": [sys.executable, "-c", "import torch"],
            "appssl run with nothing to do": [*appssl, "run", "recsys/demo", "--quick"],
        }
        for name, command in jobs.items():
            times = [seconds(command, here) for _ in range(RUNS + 1)][1:]
            limit = f"  goal below {LIMITS[name]} s" if name in LIMITS else ""
            print(f"{name:32s} median {statistics.median(times):.2f} s  ({min(times):.2f} to {max(times):.2f}){limit}")


if __name__ == "__main__":
    main()
