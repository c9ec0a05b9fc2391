"""The base learning rate throughout, after an optional linear warm-up. Deviations: none."""

from collections.abc import Callable
from typing import Literal

from pydantic import Field

from appssl.settings import Settings


class Config(Settings):
    name: Literal["constant"] = "constant"
    warmup: float = Field(0.0, ge=0, lt=1, description="share of the steps over which the factor rises to 1")


def build(config: Config) -> Callable[[int, int], float]:
    """Function of (step from 0, num_steps): the factor of the base learning rate, in (0, 1]."""

    def factor(step: int, num_steps: int) -> float:
        warmup_steps = int(config.warmup * num_steps)
        return (step + 1) / warmup_steps if step < warmup_steps else 1.0

    return factor
