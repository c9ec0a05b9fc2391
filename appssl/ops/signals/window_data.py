"""Prepared windows of signals, opened: views into one memory-mapped array, because overlap is not stored."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import polars as pl

from appssl.ops.signals.windows import devices_of_bits, gathered

if TYPE_CHECKING:
    from appssl.artifact import Artifact
    from appssl.contracts import Meta


class WindowData:
    """Prepared windows; `read` gives (devices, channels, time) float32. Memory-mapped: overlap is not stored.

    Devices that a window lacks, where the data were prepared with `missing_devices: mask`, are NaN.
    """

    def __init__(self, artifact: Artifact, meta: Meta) -> None:
        self.meta = meta
        self.samples: pl.DataFrame = artifact.table("samples.parquet")
        self._signal = np.asarray(np.load(artifact.path("signal.npy"), mmap_mode="r"))  # a memory map reads slowly
        self._position = self.samples["position"].to_numpy()
        facts = self.meta.facts
        self._shape = (len(facts["devices"]), len(facts["channels"]), int(facts["window_samples"]))
        self._lacking: np.ndarray | None = None
        if "devices" in self.samples.columns:
            self._lacking = ~devices_of_bits(self.samples["devices"].to_numpy(), self._shape[0])

    def read(self, row: int) -> np.ndarray:
        start = int(self._position[row])
        found = np.array(self._signal[start : start + self._shape[2]].T.reshape(self._shape), order="C")
        if self._lacking is not None:
            found[self._lacking[row]] = np.nan
        return found

    def read_many(self, rows: np.ndarray) -> np.ndarray:
        """Windows (B, devices, channels, time) float32 of rows (B,) int64, as `read` gives them one by one."""
        found = gathered(self._signal, self._position[rows], self._shape[2]).reshape(-1, *self._shape)
        if self._lacking is not None:
            found[self._lacking[rows]] = np.nan
        return found
