"""Batches as a pure function of (seed, step): the same for any number of workers or devices, and after a resume."""

import os
import signal
from collections.abc import Generator, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.utils.data import DataLoader, Dataset

from appssl.contracts import Batch, Examples, PreparedData, Views
from appssl.errors import DataError, SettingsError
from appssl.ops.random import permutation, rng_for
from appssl.ops.rows import raw_samples
from appssl.settings import nearest

_ACCELERATORS = ("auto", "cpu", "cuda", "gpu")


class LabelledExamples:
    """Lightly augmented labelled rows, for training with labels: {index, input, target, weight}.

    Args:
        rows: (N,) int64. targets: (N,) int64 class numbers. weights: (N,) float32.
    """

    def __init__(
        self, data: PreparedData, rows: np.ndarray, views: Views, *, targets: np.ndarray, weights: np.ndarray
    ) -> None:
        self.data, self.rows, self.views, self.targets, self.weights = data, rows, views, targets, weights
        counts = np.bincount(targets, weights=weights, minlength=len(data.meta.classes))
        self.facts: Mapping[str, Any] = {"class_counts": counts.tolist()}

    def __len__(self) -> int:
        return len(self.rows)

    def batch(self, indices: np.ndarray, *, seed: int, epoch: int) -> Batch:
        rows = self.rows[indices]
        samples = raw_samples(self.data, rows)
        made = [self.views.augment(x, rng_for(seed, epoch, int(row))) for x, row in zip(samples, rows, strict=True)]
        return {
            "index": torch.from_numpy(rows),
            "input": torch.stack(made),
            "target": torch.from_numpy(self.targets[indices]),
            "weight": torch.from_numpy(self.weights[indices]),
        }

    def plain(self, indices: np.ndarray) -> Batch:
        rows = self.rows[indices]
        return {
            "index": torch.from_numpy(rows),
            "input": torch.stack([self.views.plain(sample) for sample in raw_samples(self.data, rows)]),
            "target": torch.from_numpy(self.targets[indices]),
        }


@dataclass(frozen=True)
class Order:
    """Which examples an optimizer step sees. The last incomplete batch of an epoch is dropped.

    Args:
        batch_size: over all devices. rank, world_size: this process and how many there are. accumulate: micro-batches.
    """

    num_examples: int
    batch_size: int
    seed: int
    accumulate: int = 1
    rank: int = 0
    world_size: int = 1

    def __post_init__(self) -> None:
        if self.num_examples < self.batch_size:
            raise DataError(
                f"fit.batch_size is {self.batch_size}, but there are only {self.num_examples} training examples. "
                f"Set fit.batch_size to at most {self.num_examples}, or give more data."
            )
        if self.batch_size % (self.world_size * self.accumulate):
            raise DataError(
                f"fit.batch_size {self.batch_size} does not divide into {self.world_size} device(s) times "
                f"fit.accumulate {self.accumulate} micro-batches."
            )

    @property
    def steps_per_epoch(self) -> int:
        return self.num_examples // self.batch_size

    def epoch(self, step: int) -> int:
        return step // self.steps_per_epoch

    def indices(self, step: int, micro: int) -> np.ndarray:
        """Examples of micro-batch `micro` of step `step` (from 0) on this process, (B / world / accumulate,) int64."""
        epoch, within = divmod(step, self.steps_per_epoch)
        order = _order_of_epoch(self.seed, epoch, self.num_examples)
        whole = order[within * self.batch_size : (within + 1) * self.batch_size]
        parts = whole.reshape(self.world_size, self.accumulate, -1)
        return parts[self.rank, micro].copy()


@lru_cache(maxsize=2)
def _order_of_epoch(seed: int, epoch: int, size: int) -> np.ndarray:
    """The permutation of an epoch, kept: making it anew for every batch of a million examples takes longer than one."""
    order = permutation(seed, epoch, size)
    order.flags.writeable = False
    return order


class _Steps(Dataset[Batch]):
    """Micro-batches numbered over the whole training."""

    def __init__(self, examples: Examples, order: Order) -> None:
        self.examples, self.order = examples, order

    def __getitem__(self, number: int) -> Batch:
        step, micro = divmod(number, self.order.accumulate)
        return make_batch(self.examples, self.order, step, micro)


def make_batch(examples: Examples, order: Order, step: int, micro: int) -> Batch:
    return examples.batch(order.indices(step, micro), seed=order.seed, epoch=order.epoch(step))


def batches(examples: Examples, order: Order, *, start: int, stop: int, workers: int, pin: bool) -> Generator[Batch]:
    """Micro-batches of the steps start..stop-1, in order, made by `workers` processes (0: by this one).

    To be closed: an error's traceback would keep it, and its processes, until long after.
    """
    numbers = range(start * order.accumulate, stop * order.accumulate)
    return _loaded(_Steps(examples, order), numbers, workers=workers, pin=pin)


class _PlainRows:
    """Plain views of rows (N,) int64: {input}."""

    def __init__(self, data: PreparedData, rows: np.ndarray, views: Views) -> None:
        self.data, self.rows, self.views = data, rows, views

    def __len__(self) -> int:
        return len(self.rows)

    def plain(self, indices: np.ndarray) -> Batch:
        made = [self.views.plain(sample) for sample in raw_samples(self.data, self.rows[indices])]
        return {"input": torch.stack(made)}


class _Plain(Dataset[Batch]):
    """Plain batches numbered by their first example."""

    def __init__(self, examples: Any, batch_size: int) -> None:
        self.examples, self.batch_size = examples, batch_size

    def __getitem__(self, first: int) -> Batch:
        return self.examples.plain(np.arange(first, min(first + self.batch_size, len(self.examples))))


def plain_batches(examples: Any, batch_size: int, *, workers: int, pin: bool) -> Generator[Batch]:
    """All examples once, in order, in plain batches of at most `batch_size`."""
    return _loaded(_Plain(examples, batch_size), range(0, len(examples), batch_size), workers=workers, pin=pin)


def _loaded(dataset: Dataset[Batch], numbers: range, *, workers: int, pin: bool) -> Generator[Batch]:
    loader: DataLoader[Batch] = DataLoader(
        dataset,
        batch_size=None,
        sampler=numbers,
        num_workers=workers,
        generator=torch.Generator(),  # its own: the loader draws from it, which must not move the training's numbers
        collate_fn=_as_it_is,  # type: ignore[arg-type]  # with batch_size=None it gets what the dataset gives
        pin_memory=pin,
        worker_init_fn=_start_worker,
        prefetch_factor=4 if workers else None,
    )
    yield from _one_ahead(iter(loader)) if workers else loader


def _one_ahead(made: Iterator[Batch]) -> Iterator[Batch]:
    """What the workers made, each taken over from them while the one before it is computed with."""
    with ThreadPoolExecutor(1, "next-batch") as thread:
        coming = thread.submit(next, made, None)
        while (batch := coming.result()) is not None:
            coming = thread.submit(next, made, None)
            yield batch


def _as_it_is(batch: Batch) -> Batch:
    return batch


def _start_worker(worker: int) -> None:
    """One thread; and a cluster's notice, which it sends to every process of a job, does not end a worker at once.

    The training finishes its step, saves, and then ends its workers itself; one that it forgot ends a minute later.
    """
    torch.set_num_threads(1)
    for number in (signal.SIGTERM, signal.SIGUSR1):
        signal.signal(number, lambda *_: signal.alarm(60))


def embed(
    model: nn.Module,
    data: PreparedData,
    rows: np.ndarray,
    views: Views,
    *,
    batch_size: int = 256,
    threads: int = 2,
    accelerator: str = "auto",
    workers: int | None = None,
) -> np.ndarray:
    """Output (N, F) float32 of a network for the plain views of rows (N,) int64; evaluation mode, no gradient.

    Args:
        workers: processes that make the batches; 0: this one; None: beside a GPU as many as there are other CPUs.
    Raises:
        DataError: if there are no rows.
    """
    if not len(rows):
        raise DataError("there are no rows to embed.")
    if workers is None:
        workers = _other_cpus() if device_of(accelerator).type == "cuda" else 0
    how: dict[str, Any] = {"batch_size": batch_size, "threads": threads, "accelerator": accelerator, "workers": workers}
    return np.concatenate(list(embedded(model, data, rows, views, **how)))


def embedded(
    model: nn.Module,
    data: PreparedData,
    rows: np.ndarray,
    views: Views,
    *,
    batch_size: int,
    threads: int,
    accelerator: str,
    workers: int,
) -> Iterator[np.ndarray]:
    """What `embed` gives, batch by batch."""
    torch.set_num_threads(threads)
    device = device_of(accelerator)
    model = model.to(device).eval()
    examples = _PlainRows(data, rows, views)
    with closing(plain_batches(examples, batch_size, workers=workers, pin=device.type == "cuda")) as found:
        for batch in found:
            with torch.inference_mode():
                features = model(batch["input"].to(device, non_blocking=True)).float().cpu().numpy()
            yield features


def _other_cpus() -> int:
    """CPUs that this process may use beside its own, at most 16."""
    return min(16, len(os.sched_getaffinity(0)) - 1)


def device_of(accelerator: str) -> torch.device:
    """The device that `auto`, `cpu`, `cuda` or `gpu` means here.

    Raises:
        SettingsError: for another word. DataError: if there is no such device.
    """
    if accelerator not in _ACCELERATORS:
        raise SettingsError(f"--accelerator {accelerator}: no such device.{nearest(accelerator, _ACCELERATORS)}")
    cuda = accelerator in ("auto", "cuda", "gpu") and torch.cuda.is_available()
    if accelerator in ("cuda", "gpu") and not cuda:
        raise DataError("--accelerator cuda: no CUDA device is visible here; 'appssl doctor' says what there is.")
    return torch.device("cuda" if cuda else "cpu")
