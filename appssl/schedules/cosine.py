"""Cosine decay after linear warm-up.

Source: Loshchilov and Hutter, SGDR, ICLR 2017, arXiv 1608.03983, equation 5 with one cycle; warm-up as in Goyal et al.,
arXiv 1706.02677. Deviations: none.
"""

import math
from collections.abc import Callable
from typing import Literal

from pydantic import Field

from appssl.settings import Settings


class Config(Settings):
    name: Literal["cosine"] = "cosine"
    warmup: float = Field(0.05, ge=0, lt=1, description="share of the steps over which the factor rises to 1")
    final: float = Field(0.0, ge=0, le=1, description="factor that the decay ends in")


def build(config: Config) -> Callable[[int, int], float]:
    """Function of (step from 0, num_steps): the factor of the base learning rate, in [0, 1]."""

    def factor(step: int, num_steps: int) -> float:
        warmup_steps = int(config.warmup * num_steps)
        if step < warmup_steps:
            return (step + 1) / warmup_steps
        share = (step - warmup_steps) / max(1, num_steps - warmup_steps)
        return config.final + (1 - config.final) * 0.5 * (1 + math.cos(math.pi * share))

    return factor
