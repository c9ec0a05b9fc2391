"""Macro-F1 of a classifier when devices are missing at test time.

For every set of devices the test windows are classified again with the other devices taken away (NaN in the raw window,
which views/signal shows as zero, the mean over the training data), and macro_f1 is measured as in the evaluator
`classification`, with 95 % bootstrap intervals over groups:

    macro_f1_of_all_devices, macro_f1_without_D and macro_f1_only_D for every device D,
    macro_f1_of_D_and_E for all other sets, with subsets: all

Source: robustness to missing sensors as commonly measured. Deviations: none.
"""

from collections.abc import Sequence
from itertools import combinations
from typing import Any, Literal

import numpy as np
from pydantic import Field

from appssl.contracts import Metric, Scored
from appssl.errors import DataError
from appssl.evaluators.classification import as_metrics
from appssl.ops.bootstrap import bootstrap, group_codes
from appssl.ops.metrics import confusion_statistic
from appssl.settings import Settings

WHOLE = "macro_f1_of_all_devices"
DESCRIPTIONS = {WHOLE: (0.0, 1.0, +1)}  # the others are named after the devices of the data
REMARK = "A device that is missing is zero after normalization, its mean over the training data."
MOST_SUBSETS = 127  # those of seven devices


class Config(Settings):
    name: Literal["device_subsets"] = "device_subsets"
    subsets: Literal["each", "all"] = Field(
        "each", description="each device alone and each missing, or all sets of devices but the empty one"
    )


class DeviceSubsets:
    def __init__(self, config: Config) -> None:
        self.config = config

    def evaluate(self, scored: Scored, *, num_bootstrap: int, seed: int) -> dict[str, Metric]:
        """macro_f1 of every set of devices; a value for which it is not defined is left out.

        Raises:
            DataError: without a classifier, without several devices, or with too many sets of them.
        """
        devices = _devices(scored)
        assert scored.rescored is not None
        codes, num_groups = group_codes(scored.groups)
        num_classes = len(scored.classes)
        found = {}
        for name, kept in named_subsets(devices, self.config.subsets).items():
            there = np.isin(np.arange(len(devices)), kept)
            prediction = scored.rescored(Without(there)).argmax(axis=1)
            statistic = confusion_statistic(scored.target, prediction, codes, num_groups, num_classes)
            measured = bootstrap(statistic, num_groups, num=num_bootstrap, seed=seed, elements=num_classes**2)
            found[name] = measured["macro_f1"]
        return as_metrics(found, num_groups)


def build(config: Config) -> DeviceSubsets:
    return DeviceSubsets(config)


class Without:
    """Takes devices out of a raw window (devices, channels, T): NaN where `there` (devices,) bool is False."""

    def __init__(self, there: np.ndarray) -> None:
        self._there = there[:, None, None]

    def __call__(self, sample: Any) -> np.ndarray:
        return np.where(self._there, sample, np.float32(np.nan))


def named_subsets(devices: Sequence[str], which: Literal["each", "all"]) -> dict[str, tuple[int, ...]]:
    """Metric name -> numbers of the devices that are there; the whole set first, then by falling size.

    Raises:
        DataError: if there are too many.
    """
    numbers = range(len(devices))
    sizes = sorted({len(devices) - 1, 1}) if which == "each" else numbers[1:]
    chosen = [kept for size in reversed(sizes) for kept in combinations(numbers, size)]
    if len(chosen) > MOST_SUBSETS:
        raise DataError(
            f"device_subsets: {len(devices)} devices have {len(chosen)} subsets, {MOST_SUBSETS} are the most. "
            "Set subsets: each."
        )
    return {WHOLE: tuple(numbers)} | {_name(devices, kept): kept for kept in chosen}


def _name(devices: Sequence[str], kept: tuple[int, ...]) -> str:
    if len(kept) == 1:
        return f"macro_f1_only_{devices[kept[0]]}"
    if len(kept) == len(devices) - 1:
        return f"macro_f1_without_{next(d for n, d in enumerate(devices) if n not in kept)}"
    return f"macro_f1_of_{'_and_'.join(devices[n] for n in kept)}"


def _devices(scored: Scored) -> list[str]:
    if scored.rescored is None:
        raise DataError("the evaluator device_subsets needs a classifier: add a finetune block.")
    devices = list(scored.facts.get("devices", []))
    if len(devices) < 2:
        raise DataError(
            f"the evaluator device_subsets needs windows of several devices; these data have {len(devices)}."
        )
    return devices
