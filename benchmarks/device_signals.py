"""Views of signals rendered in batches on the training's device, beside one core that makes them one by one.

    python benchmarks/device_signals.py [--batch 512] [--devices 5] [--samples 125]

Two views with every change of `views/signal` (rotation, time warp, permutation, scaling, dropout, noise) of windows of
nine channels for each device, all in one run: drawing, which a core does in any case, rendering of whole batches on the
device (windows and draws are copied to it first, which is counted), and the loader's way on one core. Needs nothing.
"""

import argparse
import os
import statistics
import time
from collections.abc import Callable
from dataclasses import fields, replace

import numpy as np
import torch

from appssl.contracts import Meta
from appssl.ops.random import rng_for
from appssl.ops.signals.drawn_signals import DrawnSignals
from appssl.views.signal import Config, build

ROUNDS, WARM_UP, ON_CPU = 10, 3, 64
CHANNELS = [f"{sensor}_{axis}" for sensor in ("acc", "gyro", "mag") for axis in "xyz"]
CHANGES = ("jitter", "scaling", "rotation", "permutation", "time_warp", "dropout")


def seconds(work: Callable[[], object], clock: Callable[[], float]) -> float:
    found = []
    for _ in range(ROUNDS):
        begun = clock()
        work()
        found.append(clock() - begun)
    return statistics.median(found)


def moved(drawn: DrawnSignals, device: torch.device) -> DrawnSignals:
    tensors = {each.name: getattr(drawn, each.name) for each in fields(drawn) if each.name != "steps"}
    return replace(drawn, **{name: tensor.to(device, non_blocking=True) for name, tensor in tensors.items()})


def main() -> None:
    options = argparse.ArgumentParser()
    options.add_argument("--batch", type=int, default=512)
    options.add_argument("--devices", type=int, default=5)
    options.add_argument("--samples", type=int, default=125)
    given = options.parse_args()
    torch.set_num_threads(1)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    facts = {
        "devices": [f"device_{k}" for k in range(given.devices)], "channels": CHANNELS, "window_samples": given.samples,
        "channel_mean": np.zeros((given.devices, 9)).tolist(), "channel_std": np.ones((given.devices, 9)).tolist(),
    }  # fmt: skip
    meta = Meta("made", "wearable", "classification", facts=facts)
    one_by_one, in_batches = (
        build(Config(render=how, **dict.fromkeys(CHANGES, 1.0)), meta) for how in ("loader", "device")
    )
    rng = np.random.default_rng(0)
    windows = list(rng.standard_normal((given.batch, given.devices, 9, given.samples), dtype=np.float32))
    rngs = [rng_for(0, 0, index) for index in range(given.batch)]
    drawn = in_batches.drawn(windows, rngs)
    drawn = drawn.pin_memory() if device.type == "cuda" else drawn

    def on_device() -> None:
        moved(drawn, device).render()
        if device.type == "cuda":
            torch.cuda.synchronize()

    for _ in range(WARM_UP):
        on_device()
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats()
    few = list(zip(windows, rngs, strict=True))[:ON_CPU]
    name = torch.cuda.get_device_name() if device.type == "cuda" else "cpu, one core"
    views = given.batch * in_batches.num_views
    found = {
        f"device ({name})": seconds(on_device, time.perf_counter) / views,
        "drawing, one core": seconds(lambda: in_batches.drawn(windows, rngs), time.process_time) / views,
        "one by one, one core": seconds(lambda: [one_by_one.views(*pair) for pair in few], time.process_time)
        / (len(few) * one_by_one.num_views),
    }
    rendering = next(iter(found.values()))
    print(f"{views} views of {given.devices} x 9 x {given.samples} samples a batch, load {os.getloadavg()[0]:.1f}")
    for what, time_ in found.items():
        print(f"{what}: {1e6 * time_:.2f} us a view, {time_ / rendering:.1f} times the device's")
    if device.type == "cuda":
        print(f"peak device memory: {torch.cuda.max_memory_allocated() / 2**30:.2f} GiB")


if __name__ == "__main__":
    main()
