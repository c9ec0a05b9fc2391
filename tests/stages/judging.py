"""A finetuner from outside of the package that judges its samples: those whose number is odd are called noise."""

from typing import Literal

import polars as pl
import torch
from torch import nn

from appssl.contracts import Step
from appssl.ops.classify import Classifier
from appssl.settings import Settings


class Config(Settings):
    name: Literal["tests.stages.judging"] = "tests.stages.judging"
    silent: bool = False


class Twice:
    """Every labelled sample with a second light view."""

    def __init__(self, labelled):
        self.labelled, self.facts = labelled, {**labelled.facts, "num_rows": len(labelled.data.samples)}

    def __len__(self):
        return len(self.labelled)

    def batch(self, indices, *, seed, epoch):
        other = self.labelled.batch(indices, seed=seed + 1, epoch=epoch)["input"]
        return {**self.labelled.batch(indices, seed=seed, epoch=epoch), "views": [other]}

    def plain(self, indices):
        return self.labelled.plain(indices)


class Judging(nn.Module):
    def __init__(self, config, context):
        super().__init__()
        self.silent = config.silent
        self.backbone = context.backbone
        self.head = nn.Linear(context.backbone.num_features, len(context.meta.classes))
        self.register_buffer("given", torch.full((context.facts["num_rows"],), -1))

    def forward(self, batch):
        logits = self.head(self.backbone(batch["input"])) + self.head(self.backbone(batch["views"][0]))
        return Step(nn.functional.cross_entropy(logits, batch["target"]))

    def track(self, batches, epoch):
        for batch in batches:
            self.given[batch["index"]] = batch["target"]

    def findings(self):
        if self.silent:
            return None
        rows = (self.given >= 0).nonzero()[:, 0].flip(0)  # in any order
        odd = rows % 2
        return pl.DataFrame(
            {
                "index": rows.numpy(),
                "label": torch.where(odd == 1, -1, self.given[rows]).numpy(),
                "confidence": [0.5] * len(rows),
                "weight": (1 - odd).double().numpy(),
                "kind": ["ood_noise" if o else "clean" for o in odd],
                "reason": ["odd" if o else "even" for o in odd],
                "p_clean": (1 - odd).double().numpy(),
            }
        )

    def export(self):
        return Classifier(self.backbone, self.head)


def labelled_examples(config, labelled):
    return Twice(labelled)


def build(config, context):
    return Judging(config, context)
