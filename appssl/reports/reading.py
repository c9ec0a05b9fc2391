"""A finished run as the reports read it: its stages, their files, journal and settings."""

import json
import math
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from appssl.artifact import MANIFEST, Artifact
from appssl.errors import NOT_JSON
from appssl.settings import read_yaml

STAGES = ("pretrain", "pseudolabel", "finetune", "evaluate")
JUDGES = {"pseudolabel": "before training", "finetune": "in training"}  # stages that may judge labels, and when
PLACES = ("root", "shards")  # settings of prepare that say where and in how many jobs, not what
CLOCK_WORDS = ("time", "second", "wait", "memory")  # metrics that differ from run to run and stay out of the page


@dataclass(frozen=True)
class Stage:
    """A finished stage: its artifact and what lies beside it."""

    name: str
    artifact: Artifact

    @property
    def folder(self) -> Path:
        return self.artifact.folder

    def json(self, name: str, default: Any) -> Any:
        return self.artifact.json(name) if self.artifact.has(name) else default

    def table(self, name: str) -> Any:
        """A Parquet file as a polars frame, None if the artifact has none of this name."""
        return self.artifact.table(name) if self.artifact.has(name) else None

    def config(self) -> dict[str, Any]:
        """`config.yaml`: stage, domain, recipe, seed, settings; {} if it is missing."""
        path = self.folder / "config.yaml"
        return read_yaml(path) if path.is_file() else {}

    def times(self) -> dict[str, Any]:
        """`run.json`: seconds, hardware, packages and facts of the stage; {} if it is missing or damaged."""
        try:
            values = json.loads((self.folder / "run.json").read_text(encoding="utf-8"))
        except (OSError, *NOT_JSON):
            return {}
        return values if isinstance(values, dict) else {}

    def curves(self) -> dict[str, list[tuple[int, float]]]:
        """Metrics over steps from the journal, without those that measure time; of a repeated step the last."""
        found: dict[str, dict[int, float]] = {}
        for line in _lines(self.folder / "metrics.jsonl"):
            if line.get("event") != "metrics" or not isinstance(line.get("values"), dict):
                continue
            for name, value in line["values"].items():
                if isinstance(value, int | float) and not any(word in name for word in CLOCK_WORDS):
                    found.setdefault(name, {})[int(line.get("step", 0))] = float(value)
        return {name: sorted(steps.items()) for name, steps in sorted(found.items())}


def _lines(path: Path) -> Iterator[dict[str, Any]]:
    """Objects of a JSON-lines file; a torn line, as a killed process leaves it, is skipped."""
    if not path.is_file():
        return
    for text in path.read_text(encoding="utf-8", errors="replace").splitlines():
        try:
            value = json.loads(text)
        except NOT_JSON:
            continue
        if isinstance(value, dict):
            yield value


@dataclass(frozen=True)
class Run:
    """A run: data, finished stages in order, and what it is called."""

    folder: Path
    data: Stage
    stages: dict[str, Stage] = field(default_factory=dict)

    @property
    def domain(self) -> str:
        return self.folder.parent.parent.name

    @property
    def recipe(self) -> str:
        return self.folder.parent.name

    @property
    def seed(self) -> str:
        return self.folder.name.removeprefix("s")

    @property
    def meta(self) -> dict[str, Any]:
        return self.data.json("meta.json", {})

    @property
    def description(self) -> str:
        """The recipe's sentence, from `about.json`: it is not a setting, so it lies beside the stages."""
        try:
            about = json.loads((self.folder / "about.json").read_text(encoding="utf-8"))
        except (OSError, *NOT_JSON):
            return ""
        return str(about.get("description", "")) if isinstance(about, dict) else ""

    @property
    def all(self) -> list[Stage]:
        return [self.data, *self.stages.values()]

    def metrics(self) -> dict[str, dict[str, dict[str, Any]]]:
        """Evaluator -> metric -> {value, low, high, num_groups}; {} if nothing was evaluated."""
        return self.stages["evaluate"].json("metrics.json", {}) if "evaluate" in self.stages else {}

    def comparisons(self) -> list[dict[str, Any]]:
        return self.stages["evaluate"].json("comparison.json", []) if "evaluate" in self.stages else []


def read_run(run_dir: Path, data_dir: Path) -> Run:
    """Opens the finished stages of a run. Digests were compared by whoever calls, a report reads only.

    Raises:
        ArtifactError: if the data or a manifest is not what it should be.
    """
    folder = run_dir.resolve()
    found = {
        name: Stage(name, Artifact.open(folder / name, check=False))
        for name in STAGES
        if (folder / name / MANIFEST).is_file()
    }
    return Run(folder, Stage("prepare", Artifact.open(data_dir, "data", check=False)), found)


def is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
