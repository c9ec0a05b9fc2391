"""Infinite learning rate: warm-up, cool-down to a constant rate for as long as wanted, a short annealing at the end.

As factors of the base rate, with n the number of the update from 1, c and f the constant and final factors, and the
boundaries N_w <= N_c <= N_d < N, which are shares of all N steps:

    warm-up    n <  N_w          n / N_w
    cool-down  N_w <= n < N_c    c + (1 - c) d(r),   r = (n - N_w) / (N_c - N_w),   d falls from 1 to 0:
                                 cosine (1 + cos(pi r)) / 2;  linear 1 - r;  inverse_sqrt 1 - h(r) / h(1),
                                 h(x) = 1 / sqrt(1 + 10 x) - 1
    constant   N_c <= n < N_d    c
    annealing  N_d <= n <= N     c (f / c)^((n - N_d) / (N - N_d))

A later stage goes on from the weights before annealing, with c from its first step: `first_stage: false`. With
N_c = N_w and c = 1 this is warm-up, stable, decay.
Source: Singh et al., Beyond Cosine Decay, CoLLAs 2025, arXiv 2503.02844; first in Ibrahim et al., arXiv 2403.08763.
Deviations: the rate is set before the update, so that the first update has 1 / N_w and the last has f.
"""

import math
from collections.abc import Callable
from typing import Literal

from pydantic import Field, model_validator

from appssl.settings import Settings

Cooldown = Literal["cosine", "linear", "inverse_sqrt"]


class Config(Settings):
    name: Literal["infinite"] = "infinite"
    warmup: float = Field(0.05, ge=0, lt=1, description="share of the steps after which the factor is 1, N_w / N")
    cooldown_end: float = Field(0.5, ge=0, lt=1, description="share of the steps after which it is constant, N_c / N")
    constant_end: float = Field(0.8, ge=0, lt=1, description="share of the steps after which it is annealed, N_d / N")
    constant: float = Field(0.5, gt=0, le=1, description="factor of the constant phase, c: high forgets, low underfits")
    final: float = Field(0.1, gt=0, le=1, description="factor that the annealing ends in, f")
    cooldown: Cooldown = Field("cosine", description="form of the cool-down: cosine, linear or inverse_sqrt")
    first_stage: bool = Field(True, description="false: of a later stage, without warm-up and cool-down")

    @model_validator(mode="after")
    def _ordered(self) -> "Config":
        if not self.warmup <= self.cooldown_end <= self.constant_end:
            raise ValueError("needs warmup <= cooldown_end <= constant_end")
        if self.final > self.constant:
            raise ValueError("needs final <= constant")
        return self


def build(config: Config) -> Callable[[int, int], float]:
    """Function of (step from 0, num_steps): the factor of the base learning rate, in (0, 1]."""

    def factor(step: int, num_steps: int) -> float:
        warmup, cooled, annealing = (
            int(share * num_steps) for share in (config.warmup, config.cooldown_end, config.constant_end)
        )
        if not config.first_stage:
            warmup = cooled = 0
        return infinite_factor(
            step + 1,
            (warmup, cooled, annealing, num_steps),
            constant=config.constant,
            final=config.final,
            cooldown=config.cooldown,
        )

    return factor


def branch(config: Config, num_steps: int) -> int:
    """Steps before the annealing, N_d: after them a later stage goes on."""
    return max(1, int(config.constant_end * num_steps))


def infinite_factor(
    n: int, boundaries: tuple[int, int, int, int], *, constant: float, final: float, cooldown: Cooldown = "cosine"
) -> float:
    """The equations above.

    Args:
        n: number of the update, 0 to N. boundaries: N_w, N_c, N_d, N.
    """
    warmup_steps, cooled, annealing, num_steps = boundaries
    if n < warmup_steps:
        return n / warmup_steps
    if n < cooled:
        return constant + (1 - constant) * _left(cooldown, (n - warmup_steps) / (cooled - warmup_steps))
    if n < annealing:
        return constant
    return constant * (final / constant) ** ((n - annealing) / (num_steps - annealing))


def _left(cooldown: Cooldown, progress: float) -> float:
    """What is left of the way from 1 to the constant factor, falling from 1 to 0."""
    if cooldown == "linear":
        return 1 - progress
    if cooldown == "inverse_sqrt":
        return 1 - (1 / math.sqrt(1 + 10 * progress) - 1) / (1 / math.sqrt(11) - 1)
    return 0.5 * (1 + math.cos(math.pi * progress))
