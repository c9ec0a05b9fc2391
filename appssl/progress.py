"""What is going on, on stderr, while a workflow runs: which stage started, how far it is, how it ended."""

import sys
import threading
import time
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Any

from appssl import outcome

_INTERVAL_SECONDS = 1.0


class Progress:
    """Watches the stage folders of a plan from a thread. On a terminal the last line shows the running stages."""

    def __init__(self, plan: Mapping[str, Any]) -> None:
        self._folders = dict(outcome.folders(plan))
        self._results = Path(plan["results"])
        self._seen = {name: self._state(folder) for name, folder in self._folders.items()}
        self._started: dict[str, float] = {}
        self._begun = time.time()
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)
        self._width = 0

    def __enter__(self) -> "Progress":
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stop.set()
        self._thread.join()
        self._look()
        self._say_running("")

    def _watch(self) -> None:
        while not self._stop.wait(_INTERVAL_SECONDS):
            self._look()
            self._say_running("   ".join(self._running()))

    def _state(self, folder: Path) -> str:
        if (folder / "manifest.json").exists():
            return "done"
        return "failed" if (folder / "failed.json").exists() else "waiting"

    def _look(self) -> None:
        for name, folder in self._folders.items():
            log = self._log(name)
            if name not in self._started and log.exists() and log.stat().st_mtime >= self._begun:
                self._started[name] = time.time()
            state = self._state(folder)
            if state != self._seen[name] and state != "waiting":
                seconds = time.time() - self._started.get(name, self._begun)
                self._say(f"{state:7s}{name}  {seconds:.0f} s")
            self._seen[name] = state

    def _running(self) -> list[str]:
        return [f"{name}: {last_line(self._log(name))}" for name in self._started if self._seen[name] == "waiting"]

    def _log(self, name: str) -> Path:
        parts = name.split(" ")
        if parts[0].startswith("data/"):
            return self._results / "logs" / parts[0] / (f"shard-{parts[2]}.log" if len(parts) > 1 else "prepare.log")
        return self._results / "logs" / parts[0] / parts[1] / f"{parts[2]}.log"

    def _say(self, text: str) -> None:
        self._say_running("")
        print(text, file=sys.stderr, flush=True)

    def _say_running(self, text: str) -> None:
        if sys.stderr.isatty():
            shown = text[:150]
            print(f"\r{shown.ljust(self._width)}\r", end="", file=sys.stderr, flush=True)
            self._width = len(shown)


def last_line(log: Path) -> str:
    """Last line of a log, "" if there is none."""
    try:
        with log.open("rb") as file:
            file.seek(0, 2)
            file.seek(max(0, file.tell() - 2000))
            text = file.read().decode("utf-8", errors="replace")
    except OSError:
        return ""
    lines = [line.strip() for line in text.replace("\r", "\n").split("\n") if line.strip()]
    return lines[-1] if lines else ""
