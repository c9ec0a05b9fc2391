"""Samples of three classes with several views, some with a wrong label and some that belong to no class."""

import numpy as np
import polars as pl
import torch
from torch import nn

from appssl.contracts import Context, Meta
from appssl.engine.loading import LabelledExamples
from tests.engine.training import Kept, settings

CLASSES = ("a", "b", "c")
META = Meta(source="test", domain="webnoisy", task="classification", classes=CLASSES)


class Encoder(nn.Module):
    """Two stages with batch normalization; (B, 4) -> (B, 5)."""

    num_features = 5

    def __init__(self):
        super().__init__()
        self.first = nn.Sequential(nn.Linear(4, 6), nn.BatchNorm1d(6), nn.Tanh())
        self.second = nn.Sequential(nn.Linear(6, 5), nn.BatchNorm1d(5), nn.Tanh())

    def forward(self, inputs):
        return self.second(self.first(inputs))

    def stage_features(self, inputs):
        first = self.first(inputs)
        return [first, self.second(first)]


class Data:
    """Sample n is a point near a corner; every fourth label is wrong, every fifth sample lies elsewhere."""

    meta = META

    def __init__(self, size=60):
        rng = np.random.default_rng(0)
        self.truth = np.arange(size) % 3
        corners = 3 * np.eye(4, dtype=np.float32)
        kind = np.where(np.arange(size) % 5 == 4, 3, self.truth)
        self.points = corners[kind] + 0.4 * rng.standard_normal((size, 4)).astype(np.float32)
        self.given = np.where(np.arange(size) % 4 == 3, (self.truth + 1) % 3, self.truth)
        self.samples = pl.DataFrame({"index": range(size)})

    def read(self, row):
        return self.points[row]


class Views:
    """Views add noise, `augment` less of it, `plain` none."""

    num_views, input_shape = 2, (4,)

    def views(self, sample, rng):
        return [
            torch.from_numpy(sample + 0.3 * rng.standard_normal(4).astype(np.float32)) for _ in range(self.num_views)
        ]

    def augment(self, sample, rng):
        return torch.from_numpy(sample + 0.1 * rng.standard_normal(4).astype(np.float32))

    def plain(self, sample):
        return torch.from_numpy(sample)


def labelled(size=60, views=None, rows=None):
    data = Data(size)
    rows = np.arange(size) if rows is None else np.array(rows)
    weights = np.ones(len(rows), np.float32)
    return LabelledExamples(data, rows, views or Views(), targets=data.given[rows], weights=weights)


def learner(build, config, num_rows=60, meta=META, encoder=None):
    torch.manual_seed(0)
    facts = {"num_rows": num_rows}
    return build(config, Context(meta, encoder or Encoder(), (4,), num_samples=num_rows, facts=facts))


def batch(size=8, seed=2):
    rng = torch.Generator().manual_seed(seed)
    return {
        "index": torch.arange(size) + 3,
        "input": torch.randn(size, 4, generator=rng),
        "views": [torch.randn(size, 4, generator=rng) for _ in range(3)],
        "target": torch.tensor([0, 1, 1, 2, 2, 2, 2, 0])[:size],
        "weight": torch.rand(size, generator=rng),
    }


def plain_batches(examples, size=16):
    return [examples.plain(np.arange(k, min(k + size, len(examples)))) for k in range(0, len(examples), size)]


def trained(folder, tuned, examples, **values):
    """Trains as the stage does; 60 samples in batches of 20 are three steps an epoch."""
    from appssl.engine.fit import fit

    config = settings(**{"steps": 12, "batch_size": 20, "checkpoint_steps": 2, "log_every": 1, **values})
    fit(tuned, examples, config, state_dir=folder, journal=Kept(), seed=0, accelerator="cpu")
    return tuned


class Stop(Exception):
    pass


class Stopping:
    """Examples that stop the training when a batch of an epoch is asked for."""

    def __init__(self, examples, batches):
        self.examples, self.left, self.facts = examples, batches, examples.facts

    def __len__(self):
        return len(self.examples)

    def batch(self, indices, *, seed, epoch):
        self.left -= 1
        if self.left < 0:
            raise Stop
        return self.examples.batch(indices, seed=seed, epoch=epoch)

    def plain(self, indices):
        return self.examples.plain(indices)
