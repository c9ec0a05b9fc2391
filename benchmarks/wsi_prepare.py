"""Preparing large slides: peak memory, and two processes against one.

python benchmarks/wsi_prepare.py        (makes two slides of 40,960 x 40,960 pixels; wants two free cores)

The work is that of `appssl run`: digest, mask, grid, every tile read and scored once, and the result written.
"""

import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from wsi_tiles import make

ONE_SHARD = """
import sys
from pathlib import Path
import cv2
from appssl.artifact import ArtifactWriter
from appssl.sources.wsi import Config, build
cv2.setNumThreads(1)
root, shard, num_shards = Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3])
source = build(Config(folder="slides", spacing_um=0.5, tile_px=256, group_by="slide", split={"test": 0}))
out = ArtifactWriter(root / f"out{num_shards}_{shard}", "shard", settings_digest="", inputs={})
source.prepare(root, shard, num_shards, out)
tiles = len(out.finish().table("tiles.parquet"))
peak = next(line.split()[1] for line in open("/proc/self/status") if line.startswith("VmHWM"))
print(tiles, peak)
"""


def start(root: Path, shard: int, num_shards: int) -> "subprocess.Popen[str]":
    command = [sys.executable, "-c", ONE_SHARD, str(root), str(shard), str(num_shards)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, text=True)


def measured(root: Path, num_shards: int) -> tuple[float, int, float]:
    """Seconds of all shards at once, the tiles they keep, and the largest peak memory of a process, GiB."""
    begun = time.perf_counter()
    running = [start(root, shard, num_shards) for shard in range(num_shards)]
    said = [process.communicate()[0].split() for process in running]
    seconds = time.perf_counter() - begun
    return seconds, sum(int(tiles) for tiles, _ in said), max(int(peak) for _, peak in said) / 2**20


def main() -> None:
    with tempfile.TemporaryDirectory() as folder:
        slides = Path(folder) / "slides"
        slides.mkdir()
        make(slides / "one.tif")
        os.link(slides / "one.tif", slides / "two.tif")
        alone, tiles, memory = measured(Path(folder), 1)
        print(f"one process: {alone:.1f} s, {tiles} tiles, {tiles / alone:.0f} tiles/s, peak {memory:.2f} GiB")
        both, again, _ = measured(Path(folder), 2)
        assert again == tiles
        print(f"two processes: {both:.1f} s, ratio {alone / both:.2f}")


if __name__ == "__main__":
    main()
