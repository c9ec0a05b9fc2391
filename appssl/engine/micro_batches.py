"""Into how many micro-batches an attempt at a training divides its batches: more after one that ran out of memory.

Batches, their order and the number of steps stay. `micro_batches.json` in the state folder holds the number in use and
how the attempt ended: null while it trains, `orderly`, or `memory` with the reason. A start that finds null follows a
death without a word, and divides further only where something says that memory was the reason; a plain kill changes
nothing. Results are equal within rounding, and but for draws inside the network (dropout, masks), where the loss is a
mean over samples that do not see each other; elsewhere a smaller micro-batch would be another method, and is refused.
"""

import json
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, Literal

import torch
from lightning_fabric import Fabric
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from appssl.artifact import write_json
from appssl.engine.out_of_memory import evidence, is_out_of_memory, traces
from appssl.errors import NOT_JSON, AppsslError

FILE = "micro_batches.json"
_LONGEST_REASON = 200
_MORE_MEMORY = "lower fit.batch_size, or give more memory; the same command tries the same again."
_ONE_SAMPLE = "they hold one sample already"


class OutOfMemory(AppsslError):
    """Training ran out of memory; the state folder tells the next attempt."""


class Attempt:
    """One attempt at a training.

    Attributes:
        number: micro-batches in a batch, on each process.
    """

    def __init__(
        self, fabric: Fabric, state_dir: Path, *, name: str, batch_size: int, asked: int, obstacle: str | None
    ) -> None:
        """Decides the number, the same on every process; says so where it is not that of the settings.

        Args:
            asked: `fit.accumulate`. obstacle: why a smaller micro-batch would change the result; None if it would not.
        Raises:
            OutOfMemory: if the attempt before was killed for want of memory, and this one cannot need less. Said once:
                the attempt after it is as before.
        """
        self._fabric, self._path, self._name = fabric, state_dir / FILE, name
        self._share = batch_size // fabric.world_size
        self._obstacle = obstacle
        refused = None
        found = 0
        if fabric.is_global_zero:
            try:
                found = self._next(asked)
            except OutOfMemory as error:
                refused = error
        self.number = _of_first_process(fabric, found)
        if not self.number:
            raise refused or OutOfMemory(f"{name}: the first process says why this attempt is refused.")

    def _next(self, asked: int) -> int:
        before = _read(self._path)
        if before is None:
            return asked
        number = max(asked, before["micro_batches"])
        number = _divisor(self._share, number) or number  # it may have been of another number of devices
        was_told = before["ended"] == "memory"
        reason = before["reason"] if was_told else evidence(before) if before["ended"] is None else None
        if reason is None:
            return number
        if self._obstacle_to(number) is not None:
            if was_told:
                return number
            self._note("orderly", number)
            raise OutOfMemory(self._said(number, reason))
        smaller = self._smaller(number)
        assert smaller is not None
        sizes = f"{self._share // smaller} samples now instead of {self._share // number}"
        print(
            f"{self._name}: the attempt before ran out of memory ({reason}). Micro-batches have {sizes}; batches, "
            "order and steps stay.",
            file=sys.stderr,
        )
        return smaller

    @contextmanager
    def watched(self) -> Iterator[None]:
        """Around the training: notes that it runs, and how it ended.

        Raises:
            OutOfMemory: in place of an exception that says so.
        """
        self._traces = traces()
        if self._fabric.is_global_zero:
            self._note(None, self.number)
        self._fabric.barrier()  # a process that runs out of memory at once must not be written over
        try:
            yield
        except BaseException as error:
            reason = self._reason(error)
            with suppress(AppsslError):  # a full disk must not hide what happened
                self._note_failure(reason)
            if reason is None:
                raise
            raise OutOfMemory(self._said(self.number, reason)) from error
        if self._fabric.is_global_zero:
            self._note("orderly", self.number)

    def _reason(self, error: BaseException) -> str | None:
        if is_out_of_memory(error):
            return _shortened(error)
        return evidence(self._traces) if "DataLoader worker" in str(error) else None  # it may have been killed

    def _note_failure(self, reason: str | None) -> None:
        """Any process may run out of memory; the others fail because it is gone, which is no news then."""
        if reason is not None:
            self._note("memory", self.number, reason)
        elif self._fabric.is_global_zero and (_read(self._path) or {}).get("ended") != "memory":
            self._note("orderly", self.number)

    def _note(self, ended: Literal["memory", "orderly"] | None, number: int, reason: str | None = None) -> None:
        found = {"micro_batches": number, "ended": ended, "reason": reason}
        write_json(self._path, {**found, **(self._traces if ended is None else {})})

    def _smaller(self, number: int) -> int | None:
        return _divisor(self._share, 2 * number)

    def _obstacle_to(self, number: int) -> str | None:
        return self._obstacle or (_ONE_SAMPLE if self._smaller(number) is None else None)

    def _said(self, number: int, reason: str) -> str:
        begun = f"{self._name}: memory ran out with micro-batches of {self._share // number} samples ({reason})."
        obstacle, smaller = self._obstacle_to(number), self._smaller(number)
        if smaller is None:
            return f"{begun} There are no smaller ones, {obstacle}: {_MORE_MEMORY}"
        if obstacle is not None:
            return (
                f"{begun} Smaller ones are not taken by themselves, the result would be another: {obstacle}. Set "
                f"fit.accumulate to {smaller} if you want that, {_MORE_MEMORY}"
            )
        return (
            f"{begun} The same command goes on from the last checkpoint with {self._share // smaller} samples in each; "
            "batches, order and steps stay."
        )


def obstacle_of(learner: nn.Module, examples: Any) -> str | None:
    """Why smaller micro-batches would change what is learned; None if they would not.

    Args:
        learner: in training mode, so that normalization that stays as it is counts for nothing.
    """
    if not getattr(learner, "is_mean_over_samples", False):
        return (
            "the loss of this method is no mean over samples that do not see each other (fit.backbone_batch saves "
            "memory and keeps the loss of the whole batch)"
        )
    if any(isinstance(module, _BatchNorm) and module.training for module in learner.modules()):
        return "batch normalization sees the samples of one micro-batch"
    if getattr(examples, "is_drawn_by_batch", False):
        return "the sampler draws once for the samples of one micro-batch"
    return None


def _of_first_process(fabric: Fabric, number: int) -> int:
    if fabric.world_size == 1:
        return number
    found = fabric.all_reduce(torch.tensor(number, device=fabric.device), reduce_op="sum")  # others bring 0
    return int(torch.as_tensor(found))


def _divisor(share: int, least: int) -> int | None:
    """The smallest number of equal parts, `least` or more, of `share` samples."""
    return next((count for count in range(least, share + 1) if share % count == 0), None)


def _read(path: Path) -> dict[str, Any] | None:
    """What the attempt before left; None if there was none, or its note is damaged."""
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, *NOT_JSON):
        return None
    is_note = isinstance(found, dict) and {"micro_batches", "ended", "reason"} <= found.keys()
    return found if is_note and isinstance(found["micro_batches"], int) else None


def _shortened(error: BaseException) -> str:
    """The line of an error that says what could not be allocated; a loader's process puts its traceback before it."""
    lines = [line.strip() for line in str(error).splitlines() if "memory" in line.lower()]
    return (lines[-1] if lines else type(error).__name__)[:_LONGEST_REASON].rstrip(".")
