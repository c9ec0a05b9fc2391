"""Features of a network that does not change: every sample passes it once, however often its features are asked for."""

import os
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from io import FileIO
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from appssl.contracts import PreparedData, Views
from appssl.engine.loading import embed, embedded
from appssl.errors import AppsslError
from appssl.ops.file_lock import take

_BATCH = 256  # rows: also after a resume, so that the same rows pass together
_SECONDS_BETWEEN_LINES = 30.0


class Features:
    """Features of rows of prepared data, each computed when it is first asked for.

    Args:
        how: threads, accelerator and workers, as for `embed`.
    """

    def __init__(self, network: nn.Module, data: PreparedData, views: Views, how: Mapping[str, Any]) -> None:
        self.network, self.data, self.views, self.how = network, data, views, how
        self._place = np.full(len(data.samples), -1)
        self._found: np.ndarray | None = None

    def of(self, rows: np.ndarray) -> np.ndarray:
        """(N, F) float32 of rows (N,) int64, in their order."""
        new = np.unique(rows[self._place[rows] < 0])
        if len(new) or self._found is None:
            found = embed(self.network, self.data, new, self.views, **self.how)
            known = found[:0] if self._found is None else self._found
            self._place[new] = len(known) + np.arange(len(new))
            self._found = np.concatenate([known, found])
        return self._found[self._place[rows]]


class FeatureData:
    """Prepared data whose samples are the features (F,) float32 of a network, in a file of the machine's disk."""

    def __init__(self, data: PreparedData, width: int) -> None:
        self.meta, self.samples, self.width = data.meta, data.samples, width
        self._data = data
        self._place = np.full(len(data.samples), -1)
        self._values: Any = None

    def compute(
        self, network: nn.Module, rows: np.ndarray, views: Views, file: Path, *, how: Mapping[str, Any]
    ) -> float:
        """Computes the features of rows (N,) int64, or what is missing of them in `file`, which is appended to.

        Of several processes one computes, the others wait for it.

        Returns:
            Seconds that it took.
        Raises:
            AppsslError: if the file cannot be written.
        """
        begun = time.monotonic()
        wanted = np.unique(rows)
        with _alone(file.with_suffix(".lock")):
            self._append(network, wanted, views, file, how)
        self._values = np.memmap(file, np.float32, "r", shape=(len(wanted), self.width))
        self._place[wanted] = np.arange(len(wanted))
        network.cpu()
        return time.monotonic() - begun

    def _append(self, network: nn.Module, rows: np.ndarray, views: Views, file: Path, how: Mapping[str, Any]) -> None:
        of_batch = _BATCH * self.width * 4
        size = file.stat().st_size if file.exists() else 0
        done = min(size // of_batch * _BATCH, len(rows))
        if size == len(rows) * self.width * 4:
            return
        begun = said = time.monotonic()
        with file.open("ab", buffering=0) as stream:
            stream.truncate(done * self.width * 4)
            first = done
            for features in embedded(network, self._data, rows[first:], views, batch_size=_BATCH, **how):
                self._write(stream, features, len(rows))
                done += len(features)
                now = time.monotonic()
                if now - said > _SECONDS_BETWEEN_LINES:
                    left = (now - begun) * (len(rows) - done) / (done - first)
                    print(f"features {done:,}/{len(rows):,}  {left / 60:.0f} min left", file=sys.stderr)
                    said = now
            os.fsync(stream.fileno())

    def _write(self, stream: FileIO, features: np.ndarray, num_rows: int) -> None:
        left = memoryview(features.astype(np.float32, copy=False).tobytes())
        try:
            while left:
                left = left[stream.write(left) :]
        except OSError as error:
            raise AppsslError(
                f"{stream.name}: features cannot be written: {error.strerror}. {num_rows:,} samples need "
                f"{num_rows * self.width * 4 / 1e9:.2f} GB there; free some space and run the same command again."
            ) from error

    def read(self, row: int) -> np.ndarray:
        found: np.ndarray = self._values[self._place[row]]
        return found

    def read_many(self, rows: np.ndarray) -> np.ndarray:
        found: np.ndarray = self._values[self._place[rows]]
        return found


class FeatureViews:
    """Features as they are."""

    num_views = 1

    def __init__(self, width: int) -> None:
        self.input_shape: tuple[int, ...] = (width,)

    def views(self, sample: np.ndarray, rng: np.random.Generator) -> list[Tensor]:
        return [self.plain(sample)]

    def augment(self, sample: np.ndarray, rng: np.random.Generator) -> Tensor:
        return self.plain(sample)

    def plain(self, sample: np.ndarray) -> Tensor:
        return torch.from_numpy(np.array(sample))


class Computed(nn.Module):
    """Stands for the network whose features are the inputs."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.num_features = width

    def forward(self, features: Tensor) -> Tensor:
        return features


def in_place_of(data: PreparedData, views: Views, encoder: nn.Module) -> tuple[FeatureData, FeatureViews, Computed]:
    """Features in place of data, of their views and of the encoder, for layers that are trained behind it."""
    width = int(encoder.num_features)  # type: ignore[arg-type]
    return FeatureData(data, width), FeatureViews(width), Computed(width)


@contextmanager
def _alone(lock: Path) -> Iterator[None]:
    lock.parent.mkdir(parents=True, exist_ok=True)
    handle = take(lock)
    assert handle is not None  # it waits
    try:
        yield
    finally:
        os.close(handle)
