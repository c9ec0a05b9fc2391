"""Sums of metrics on the device, and the line that says how training goes."""

import sys
import time

import torch
from torch import Tensor

from appssl.ops.distributed import mean_of_processes

_SECONDS_BETWEEN_LINES = 5.0
_BAR = 24


class Meter:
    """Adds up metrics without touching the host; `read` is the one synchronization of a logging interval."""

    def __init__(self, device: torch.device) -> None:
        self._sums: dict[str, Tensor] = {}
        self._counts: dict[str, int] = {}
        self._bad_step = torch.full((), -1, dtype=torch.int64, device=device)

    def add(self, step: int, loss: Tensor, metrics: dict[str, Tensor]) -> None:
        """Adds the mean loss of a step and its other metrics, all detached scalars on the device."""
        for name, value in {**metrics, "loss": loss}.items():
            value = value.detach().float()
            self._sums[name] = self._sums[name] + value if name in self._sums else value.clone()
            self._counts[name] = self._counts.get(name, 0) + 1
        first = (self._bad_step < 0) & ~torch.isfinite(loss.detach())
        self._bad_step = torch.where(first, step, self._bad_step)

    def read(self) -> tuple[dict[str, float], int | None]:
        """Means since the last call, over the steps that had the metric and over all processes, which must call this
        together; and this process's first step with a non-finite loss.
        """
        names = list(self._sums)
        if not names:
            return {}, None
        means = mean_of_processes(torch.stack([self._sums[name] / self._counts[name] for name in names]).double())
        values = torch.cat([means, self._bad_step.double()[None]]).tolist()
        self._sums, self._counts = {}, {}
        bad = int(values[-1])
        return dict(zip(names, values, strict=False)), bad if bad >= 0 else None


class Clock:
    """Time spent on steps, on waiting for data and on the probe, and a line about it on stderr."""

    def __init__(self, name: str, start: int, stop: int, batch_size: int, *, shown: bool) -> None:
        self.name, self.start, self.stop, self.batch_size = name, start, stop, batch_size
        self._shown = shown
        self._begun = self._interval = time.perf_counter()
        self._waited = self._interval_waited = self._probed = 0.0
        self._said = 0.0

    def waited(self, seconds: float) -> None:
        self._waited += seconds
        self._interval_waited += seconds

    def probed(self, seconds: float) -> None:
        self._probed += seconds

    def interval(self, num_steps: int) -> dict[str, float]:
        """Metrics of the last `num_steps` steps, and a fresh start."""
        now = time.perf_counter()
        seconds = max(now - self._interval, 1e-9)
        share = self._interval_waited / seconds
        self._interval, self._interval_waited = now, 0.0
        return {
            "time/step_seconds": seconds / num_steps,
            "time/samples_per_second": num_steps * self.batch_size / seconds,
            "time/data_wait_share": share,
        }

    def total(self, step: int) -> tuple[float, float, float]:
        """Samples per second, and shares of the time spent waiting for data and on the probe, since the start."""
        seconds = max(time.perf_counter() - self._begun, 1e-9)
        return (step - self.start) * self.batch_size / seconds, self._waited / seconds, self._probed / seconds

    def say(self, step: int, loss: float) -> None:
        now = time.perf_counter()
        if not self._shown or (
            now - self._said < _SECONDS_BETWEEN_LINES and step < self.stop and not sys.stderr.isatty()
        ):
            return
        self._said = now
        rate, waiting, _ = self.total(step)
        left = (self.stop - step) * self.batch_size / max(rate, 1e-9)
        text = (
            f"{self.name} step {step}/{self.stop}  loss {loss:.4f}  {rate:,.0f} samples/s  "
            f"{int(left // 60)}:{int(left % 60):02d} left  waiting for data {waiting:.0%}"
        )
        if sys.stderr.isatty():
            filled = _BAR * step // self.stop
            print(
                f"\r[{'█' * filled}{'·' * (_BAR - filled)}] {text} ",
                end="" if step < self.stop else "\n",
                file=sys.stderr,
                flush=True,
            )
        else:
            print(text, file=sys.stderr, flush=True)
