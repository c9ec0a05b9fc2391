"""A small problem to train on, and a journal that keeps what it is told."""

from collections.abc import Iterable
from typing import Any

import numpy as np
import torch
from torch import nn

from appssl.contracts import Batch, Progress, Step
from appssl.ops.random import rng_for
from appssl.recipe import Fit


class Noisy:
    """Examples whose inputs are random numbers of (seed, epoch, index)."""

    def __init__(self, size: int = 64, bad: int | None = None) -> None:
        self.facts: dict[str, Any] = {}
        self.size, self.bad = size, bad
        self.asked: list[tuple[int, ...]] = []

    def __len__(self) -> int:
        return self.size

    def batch(self, indices: np.ndarray, *, seed: int, epoch: int) -> Batch:
        self.asked.append(tuple(int(i) for i in indices))
        rows = np.stack([rng_for(seed, epoch, int(i)).standard_normal(6) for i in indices]).astype(np.float32)
        if self.bad is not None and self.bad in indices:
            rows[list(indices).index(self.bad)] = np.nan
        return {
            "index": torch.from_numpy(indices),
            "input": torch.from_numpy(rows),
            "target": torch.from_numpy((rows.sum(1) > 0).astype(np.int64)),
            "weight": torch.ones(len(indices)),
        }


class Plain(Noisy):
    """These have deterministic views too."""

    def plain(self, indices: np.ndarray) -> Batch:
        rows = np.stack([rng_for(9, 9, int(i)).standard_normal(6) for i in indices]).astype(np.float32)
        target = torch.from_numpy((rows.sum(1) > 0).astype(np.int64))
        return {"index": torch.from_numpy(indices), "input": torch.from_numpy(rows), "target": target}


class Small(nn.Module):
    """Batch normalization, dropout and a moving average: everything that a resume can get wrong."""

    def __init__(self) -> None:
        super().__init__()
        self.net = nn.Sequential(nn.Linear(6, 16), nn.BatchNorm1d(16), nn.ReLU(), nn.Dropout(0.2), nn.Linear(16, 2))
        self.register_buffer("average", torch.zeros(2))
        self.progress: list[Progress] = []

    def forward(self, batch: Batch) -> Step:
        logits = self.net(batch["input"])
        return Step(nn.functional.cross_entropy(logits, batch["target"]), {"loss_half": logits.mean()})

    def after_update(self, progress: Progress) -> None:
        self.average.mul_(0.9).add_(self.net[4].bias.detach(), alpha=0.1)
        self.progress.append(progress)


class Tracking(Small):
    """Learns towards what it found for each sample when it last saw all of them."""

    def __init__(self, size: int = 64) -> None:
        super().__init__()
        self.register_buffer("found", torch.zeros(size, 2))
        self.calls: list[dict[str, Any]] = []

    def forward(self, batch: Batch) -> Step:
        logits = self.net(batch["input"]).float()
        loss = nn.functional.cross_entropy(logits, batch["target"])
        return Step(loss + (logits - self.found[batch["index"]]).square().mean())

    def track(self, batches: Iterable[Batch], epoch: int) -> None:
        call: dict[str, Any] = {
            "epoch": epoch,
            "step": self.progress[-1].step,
            "batches": [],
            "training": self.training,
        }
        for batch in batches:
            logits = self.net(batch["input"])
            self.found[batch["index"]] = logits.float()
            call["batches"].append(batch)
            call |= {"dtype": logits.dtype, "gradient": logits.requires_grad}
        self.calls.append(call)


class Kept:
    def __init__(self) -> None:
        self.rows: list[tuple[int, dict[str, float]]] = []

    def metrics(self, step: int, values: dict[str, float]) -> None:
        self.rows.append((step, values))


def settings(**values: Any) -> Fit:
    given = {"steps": 12, "batch_size": 16, "log_every": 3, "checkpoint_steps": 3, "threads": 1, **values}
    return Fit(**given)


def small(seed: int = 0) -> Small:
    torch.manual_seed(seed)
    return Small()


def tracking(seed: int = 0, size: int = 64) -> Tracking:
    torch.manual_seed(seed)
    return Tracking(size)
