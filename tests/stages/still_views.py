"""Views from outside of the package that are never augmented."""

from typing import Literal

import numpy as np
import torch

from appssl.settings import Settings


class Config(Settings):
    name: Literal["tests.stages.still_views"] = "tests.stages.still_views"


class Still:
    num_views, input_shape = 1, (3, 16, 16)

    def views(self, sample, rng):
        return [self.plain(sample)]

    def augment(self, sample, rng):
        return self.plain(sample)

    def plain(self, sample):
        return torch.from_numpy(sample.astype(np.float32).transpose(2, 0, 1) / 255)


def build(config, meta):
    return Still()
