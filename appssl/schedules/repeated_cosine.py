"""Cosine decay with warm-up, again in each of several equal stages: what continual pretraining usually does.

With n the number of the update in its stage of N steps, from 1, N_w steps of warm-up and f the final factor:

    n < N_w: n / N_w,     else  f + (1 - f) (1 + cos(pi (n - N_w) / (N - N_w))) / 2

Source: the baseline of Singh et al., Beyond Cosine Decay, CoLLAs 2025, arXiv 2503.02844; restarts: Loshchilov and
Hutter, SGDR, ICLR 2017, arXiv 1608.03983. Deviations: the stages are parts of one training; where steps do not divide
evenly, earlier and later stages differ by one. The rate is set before the update, so that the last of a stage has f.
"""

import math
from collections.abc import Callable
from typing import Literal

from pydantic import Field

from appssl.settings import Settings


class Config(Settings):
    name: Literal["repeated_cosine"] = "repeated_cosine"
    stages: int = Field(5, ge=1, description="equal parts of the training, each with a warm-up and decay of its own")
    warmup: float = Field(0.05, ge=0, lt=1, description="share of a stage over which the factor rises to 1")
    final: float = Field(0.1, ge=0, le=1, description="factor that each decay ends in")


def build(config: Config) -> Callable[[int, int], float]:
    """Function of (step from 0, num_steps): the factor of the base learning rate, in [0, 1]."""

    def factor(step: int, num_steps: int) -> float:
        stage = step * config.stages // num_steps
        start, end = (-(-boundary * num_steps // config.stages) for boundary in (stage, stage + 1))
        length = end - start
        return cosine_factor(step - start + 1, int(config.warmup * length), length, final=config.final)

    return factor


def cosine_factor(n: int, warmup_steps: int, num_steps: int, *, final: float) -> float:
    """The equation above for n in 0 to `num_steps`."""
    if n < warmup_steps:
        return n / warmup_steps
    return final + (1 - final) * 0.5 * (1 + math.cos(math.pi * (n - warmup_steps) / (num_steps - warmup_steps)))
