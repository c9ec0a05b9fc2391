"""Preparation of interaction logs: seconds, peak memory and events per second, beside polars sorting the same files.

python benchmarks/recsys_prepare.py [EVENTS ...]     (1000000 10000000 without)

The logs are those of `appssl data make recsys --events EVENTS`. Preparation and sorting run in processes of their own,
one after the other, with all cores; the log is made before and not counted. The peer reads the files with polars, sorts
them by time and writes one Parquet file: no check, no ids as numbers, no duplicates, no k-core, and the log in memory.
"""

import subprocess
import sys
import tempfile
from pathlib import Path

from appssl.synthetic.recsys import make

PREPARE = """
import sys, time
from pathlib import Path
from appssl.artifact import ArtifactWriter
from appssl.sources.recsys import Config, Multi, build
root = Path(sys.argv[1])
source = build(Config(interactions="interactions", categorical=("category",), multi=(Multi(column="tags"),)))
begun = time.perf_counter()
shard = ArtifactWriter(root / "shard", "shard", settings_digest="", inputs={})
source.prepare(root, 0, 1, shard)
data = ArtifactWriter(root / "data", "data", settings_digest="", inputs={})
source.merge(root, [shard.finish()], data)
data.finish()
"""
SORT = """
import sys, time
import polars as pl
begun = time.perf_counter()
pl.scan_parquet(sys.argv[1] + "/interactions/*.parquet").sort("timestamp").sink_parquet(sys.argv[1] + "/sorted.parquet")
"""
TOLD = """
peak = next(line.split()[1] for line in open("/proc/self/status") if line.startswith("VmHWM"))
print(time.perf_counter() - begun, peak)
"""


def measured(program: str, root: Path, *, may_fail: bool = False) -> tuple[float, float]:
    """Seconds, and peak memory in GiB, of a program in a process of its own; NaN where it may fail and does."""
    command = [sys.executable, "-c", program + TOLD, str(root)]
    done = subprocess.run(command, capture_output=True, text=True, check=not may_fail)
    if done.returncode != 0:
        return float("nan"), float("nan")
    seconds, peak = done.stdout.split()
    return float(seconds), int(peak) / 2**20


def main() -> None:
    for events in [int(word) for word in sys.argv[1:]] or [1_000_000, 10_000_000]:
        with tempfile.TemporaryDirectory() as folder:
            root = Path(folder)
            make(root, size=str(events), seed=0)
            seconds, peak = measured(PREPARE, root)
            theirs, their_peak = measured(SORT, root, may_fail=True)  # for want of memory
        print(f"{events:,} events: {seconds:.1f} s, {events / seconds:,.0f} events/s, peak {peak:.2f} GiB; "
              f"polars scan and sort {theirs:.1f} s, peak {their_peak:.2f} GiB "
              f"(ratio {seconds / theirs:.1f})", flush=True)  # fmt: skip


if __name__ == "__main__":
    main()
