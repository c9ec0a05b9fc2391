"""Windows, features, device selection and drift of recordings, beside numpy and tsflex; preparation of long ones.

python benchmarks/wearable.py [HOURS ...]     (lengths that are prepared; 6 12 24 without. A week is 168)

tsflex is measured where it is installed: pip install 'appssl[bench]'. Times are CPU times of one thread, the best of
three. A preparation runs in a process of its own, whose time and peak memory are told: 3 devices, 100 Hz, 6 and 3
channels, as recordings of 12 h and as one of each device for all the time.
"""

import os

os.environ |= {"OMP_NUM_THREADS": "1", "POLARS_MAX_THREADS": "1"}  # before numpy and polars: one core is measured

import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import polars as pl
import pyarrow.parquet as pq
import torch

from appssl.artifact import Artifact
from appssl.backbones.summary_features import SummaryFeatures
from appssl.ops.mmd import mmd2
from appssl.ops.signals.clock_alignment import align, motion_energy
from appssl.ops.signals.resample import GAP
from appssl.ops.signals.windows import gravest, left_out, starts

DEVICES, CHANNELS = ("wrist", "hip", "ankle"), ("acc_x", "acc_y", "acc_z", "gyro_x", "gyro_y", "gyro_z")
HZ, PART_HOURS, PAUSE_SECONDS = 100.0, 12.0, 900.0
FORMS = {"files": "files of 12 h", "one": "a file for all"}
PREPARE = """
import sys, time
from pathlib import Path
from appssl.artifact import ArtifactWriter
from appssl.sources.wearable import Config, build
root = Path(sys.argv[1])
source = build(Config(table="recordings.csv", sampling_hz=25.0, window_seconds=4.0, split={"test": 0}))
begun = time.process_time()
shard = ArtifactWriter(root / "shard", "shard", settings_digest="", inputs={})
source.prepare(root, 0, 1, shard)
data = ArtifactWriter(root / "data", "data", settings_digest="", inputs={})
source.merge(root, [shard.finish()], data)
data.finish()
peak = next(line.split()[1] for line in open("/proc/self/status") if line.startswith("VmHWM"))
print(time.process_time() - begun, peak)
"""


def seconds(work: Callable[[], object]) -> float:
    best = np.inf
    for _ in range(3):
        begun = time.process_time()
        work()
        best = min(best, time.process_time() - begun)
    return best


def motion(count: int, hz: float, rng: np.random.Generator) -> np.ndarray:
    """Gravity, slow turns and bursts of steps, (count, 6) float32."""
    t = np.arange(count) / hz
    active = (np.sin(2 * np.pi * t / 900) > 0.3)[:, None]
    steps = np.sin(2 * np.pi * 1.8 * t)[:, None] * rng.uniform(1, 4, 6)
    found = active * steps + rng.normal(0, 0.1, (count, 6))
    found[:, 2] += 9.81
    return found.astype(np.float32)


def write_recordings(root: Path, hours: float, num_channels: int, form: str) -> None:
    """Recordings of `PART_HOURS` with pauses between, so that each is a session, or one of each device."""
    rng = np.random.default_rng(0)
    rows = []
    (root / "files").mkdir(parents=True)
    parts = max(1, round(hours / PART_HOURS))
    count = int(hours / parts * 3600 * HZ)
    for device in DEVICES:
        for part in range(parts):
            begin = part * (count / HZ + (PAUSE_SECONDS if form == "files" else 0))
            table = {"time": begin + np.arange(count) / HZ}
            table |= dict(zip(CHANNELS[:num_channels], motion(count, HZ, rng).T, strict=False))
            frame = pl.DataFrame(table)
            if form == "files" or part == 0:
                name = f"{part}_{device}"
                rows.append((name, "p1", device, f"files/{name}.parquet"))
                writer = pq.ParquetWriter(root / rows[-1][3], frame.to_arrow().schema, compression="zstd")
            writer.write_table(frame.to_arrow(), row_group_size=1 << 20)
            if form == "files" or part == parts - 1:
                writer.close()
    names = ["recording_id", "subject_id", "device", "path"]
    pl.DataFrame(rows, schema=names, orient="row").write_csv(root / "recordings.csv")


def prepare(root: Path, hours: float, num_channels: int, form: str) -> None:
    write_recordings(root, hours, num_channels, form)
    done = subprocess.run([sys.executable, "-c", PREPARE, str(root)], capture_output=True, text=True, check=True)
    cpu, peak = done.stdout.split()
    size = sum(file.stat().st_size for file in (root / "files").iterdir()) / 2**20
    told = f"{FORMS[form]}, {num_channels} channels, {hours:5.1f} h"
    print(f"preparation of {told}: {float(cpu):6.1f} s, {float(cpu) / hours:5.3f} an hour, "
          f"peak {int(peak) / 2**20:.2f} GiB, {size:.0f} MiB of Parquet", flush=True)  # fmt: skip


def windows(artifact: Artifact) -> None:
    from appssl.sources.wearable import Config, build

    data = build(Config(table="recordings.csv")).open(artifact)
    signal = np.load(artifact.path("signal.npy"), mmap_mode="r")
    size = int(data.meta.facts["window_samples"])
    step = size // 2
    codes = np.zeros((len(signal), len(DEVICES)), np.uint8)
    codes[:: len(signal) // 97] = GAP
    first = starts(len(signal), size, step)[: len(data.samples)]
    rows = np.arange(len(first))
    num_bytes = len(rows) * size * signal.shape[1] * 4

    def numpy_copy() -> None:
        np.ascontiguousarray(np.lib.stride_tricks.sliding_window_view(signal, size, axis=0)[first])

    def ours() -> None:
        left_out(codes, first, gravest(codes, first, size), size, min_devices=len(DEVICES))
        data.read_many(rows)

    theirs, mine = seconds(numpy_copy), seconds(ours)
    print(f"{len(rows)} windows with their gaps: {num_bytes / mine / 1e9:.2f} GB/s, numpy's strided copy "
          f"{num_bytes / theirs / 1e9:.2f} (ratio {theirs / mine:.2f})", flush=True)  # fmt: skip
    features(np.array(signal[: 200 * size]), size, step)


def features(signal: np.ndarray, size: int, step: int) -> None:
    """mean, std, min, max and energy of every channel."""
    network = SummaryFeatures(signal.shape[1])
    tensor = torch.from_numpy(signal)

    def ours() -> torch.Tensor:
        return network(tensor.unfold(0, size, step))

    mine = seconds(ours)
    count = len(ours())
    print(f"features of {count} windows: {count / mine:.0f} windows/s", end="")
    if find_spec("tsflex"):
        from tsflex.features import FeatureCollection, MultipleFeatureDescriptors

        def energy(x: np.ndarray) -> float:
            return float((x * x).mean())

        import pandas as pd

        names = [f"c{k}" for k in range(signal.shape[1])]
        frame = pd.DataFrame(signal, columns=names)
        wanted = MultipleFeatureDescriptors([np.mean, np.std, np.min, np.max, energy], names, size, step)
        collection = FeatureCollection(wanted)
        theirs = seconds(lambda: collection.calculate(frame, n_jobs=1, approve_sparsity=True))
        print(f", tsflex {count / theirs:.0f} (ratio {theirs / mine:.1f})", end="")
    print(flush=True)


def selection_and_drift() -> None:
    rng = np.random.default_rng(1)
    norms = torch.from_numpy(rng.normal(0, 0.3, (5, 512, 100)).astype(np.float32))
    print(f"device selection, 5 devices, 512 windows of 100: {1e3 * seconds(lambda: mmd2(norms[0], norms[1:])):.0f} ms")
    count = int(24 * 3600 * HZ)
    one = motion(count, HZ, rng)[:, :3]
    other = one + rng.normal(0, 0.05, one.shape).astype(np.float32)

    def drift() -> None:
        energies = [motion_energy(signal, HZ) for signal in (one, other)]
        align(*energies, hz=HZ, block_seconds=300, max_lag_seconds=30)

    print(f"offset and drift, 24 h at 100 Hz: {seconds(drift):.1f} s", flush=True)


def main() -> None:
    torch.set_num_threads(1)
    lengths = [float(word) for word in sys.argv[1:]] or [6.0, 12.0, 24.0]
    selection_and_drift()
    for form in FORMS:
        for num_channels in (6, 3):
            for hours in lengths:
                with tempfile.TemporaryDirectory() as folder:
                    prepare(Path(folder) / "made", hours, num_channels, form)
                    if (form, num_channels, hours) == ("files", 6, lengths[0]):
                        windows(Artifact.open(Path(folder) / "made" / "data", "data"))


if __name__ == "__main__":
    main()
