"""What the Snakefile needs of Python: the plan from the configuration, and paths derived from it."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from appssl.errors import SettingsError
from appssl.outcome import needed


def load_plan(config: Mapping[str, Any]) -> dict[str, Any]:
    """The plan that `appssl run` wrote (`plan`), or one made of `recipes`, `seeds`, `results`, `set`, `quick`.

    Raises:
        SettingsError: if the configuration names neither.
    """
    if "plan" in config:
        return json.loads(Path(config["plan"]).read_text(encoding="utf-8"))
    if "recipes" not in config:
        raise SettingsError("nothing to run: use 'appssl run RECIPE', or snakemake --config recipes=wearable/demo.")
    from appssl.plan import complete, make_plan
    from appssl.recipe import parse_overrides

    plan = make_plan(
        _words(config["recipes"]),
        seeds=[int(seed) for seed in _words(config.get("seeds", "0"))],
        overrides=parse_overrides(_words(config.get("set", ""))),
        results=Path(config.get("results", "results")),
        quick=bool(config.get("quick", False)),
    )
    return complete(plan)


def _words(value: Any) -> list[str]:
    return [str(v) for v in value] if isinstance(value, list) else str(value).replace(",", " ").split()


def manifest_inputs(plan: Mapping[str, Any], stage: Mapping[str, Any]) -> list[str]:
    """Manifests of everything a planned stage reads."""
    return [f"{plan['results']}/{folder}/manifest.json" for folder in stage["inputs"].values()]


def num_workers(stage: Mapping[str, Any]) -> int:
    """Processes that make batches for a planned stage: the CPUs beside each GPU, or beyond those of its threads."""
    needs, settings = stage["needs"], stage["settings"]
    threads = settings["fit"]["threads"] if "fit" in settings else settings["threads"]
    count: int = max(1, needs["cpus"] // needs["gpus"] - 1) if needs["gpus"] else max(0, needs["cpus"] - threads)
    return count


def targets(plan: Mapping[str, Any]) -> list[str]:
    """Manifests of everything that is needed: a result that was deleted is made again."""
    return [f"{plan['results']}/{folder}/manifest.json" for folder in sorted(needed(plan))]
