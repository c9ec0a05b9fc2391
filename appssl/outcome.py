"""How the runs of a plan ended: results, failures, and inputs that could not be read."""

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from appssl.artifact import MANIFEST, sha256_file
from appssl.errors import NOT_JSON
from appssl.plan import settings_digest

# The metric that stands for a run in tables, by evaluator.
MAIN_METRICS = {"classification": "macro_f1", "mil": "bag_auroc", "ranking": "recall@20", "knn": "knn_macro_f1"}


def needed(plan: Mapping[str, Any]) -> set[str]:
    """Folders, relative to the results, of the runs that were asked for, and of the stages they stand on."""
    waiting = [f"{domain}/{recipe}/s{seed}/report" for domain, recipe, seed in plan["targets"]]
    found: set[str] = set()
    while waiting:
        folder = waiting.pop()
        if folder not in found:
            found.add(folder)
            if not folder.startswith("data/"):
                domain, recipe, seed, stage = folder.split("/")
                waiting += plan["runs"][domain][recipe][seed]["stages"][stage]["inputs"].values()
    return found


def folders(plan: Mapping[str, Any]) -> Iterator[tuple[str, Path]]:
    """Name and folder of every stage that is needed, data first."""
    root, wanted = Path(plan["results"]), needed(plan)
    for key, data in plan["data"].items():
        if f"data/{key}" not in wanted:
            continue
        for shard in range(data["settings"]["shards"]):
            yield f"data/{key} shard {shard}", root / "data" / key / "shards" / str(shard)
        yield f"data/{key}", root / "data" / key
    for domain, recipes in plan["runs"].items():
        for recipe, seeds in recipes.items():
            for seed, run in seeds.items():
                for stage in run["stages"]:
                    if f"{domain}/{recipe}/{seed}/{stage}" not in wanted:
                        continue
                    yield f"{domain}/{recipe} {seed} {stage}", root / domain / recipe / seed / stage


def is_current(plan: Mapping[str, Any], place: str) -> bool:
    """Whether a stage's result is there, with the settings of a complete plan and from results of which that is true.

    Args:
        place: its folder, relative to the results.
    """
    root, config = Path(plan["results"]), json.loads(plan["configs"][place])
    manifest = read_json(root / place / MANIFEST)
    if not isinstance(manifest, dict):
        return False
    if manifest.get("settings") != settings_digest(config["stage"], config["seed"], config["settings"]):
        return False
    reads: dict[str, str] = {}
    if not place.startswith("data/"):
        domain, recipe, seed, stage = place.split("/")
        reads = plan["runs"][domain][recipe][seed]["stages"][stage]["inputs"]
    return all(
        is_current(plan, other) and manifest["inputs"].get(name) == sha256_file(root / other / MANIFEST)
        for name, other in reads.items()
    )


def failures(plan: Mapping[str, Any]) -> list[dict[str, Any]]:
    """`failed.json` of every stage that failed and is not complete."""
    found = []
    for name, folder in folders(plan):
        values = read_json(folder / "failed.json")
        if values and not (folder / "manifest.json").exists():
            found.append({"folder": name, "message": values["message"], "exit_code": values["exit_code"]})
    return found


def failed_inputs(plan: Mapping[str, Any]) -> list[str]:
    """One line for every input that could not be read."""
    import polars as pl

    lines = []
    for key in plan["data"]:
        folder = Path(plan["results"]) / "data" / key
        account = read_json(folder / "account.json") or {}
        if not any(values["failed"] for values in account.values()):
            continue
        table = pl.read_parquet(folder / "quarantine.parquet").filter(pl.col("outcome") == "failed")
        lines += [
            f"{r['what']} {r['item']} ({r['where']}): {r['reason']}: {r['detail']}" for r in table.iter_rows(named=True)
        ]
    return lines


def rows(plan: Mapping[str, Any]) -> list[dict[str, Any]]:
    """One row for every run that was asked for."""
    found = []
    for domain, recipe, seed in plan["targets"]:
        folder = Path(plan["results"]) / domain / recipe / f"s{seed}"
        metric, value = main_metric(folder)
        report = folder / "report" / "report.html"
        row = {"run": f"{domain}/{recipe}", "seed": seed, "metric": metric, **value}
        found.append({**row, "report": str(report) if report.exists() else None})
    return found


def main_metric(run: Path) -> tuple[str | None, dict[str, float | None]]:
    """Name and value (with interval) of the metric that stands for a run; None if it was not evaluated."""
    metrics = read_json(run / "evaluate" / "metrics.json") or {}
    for evaluator, name in MAIN_METRICS.items():
        if name in metrics.get(evaluator, {}):
            found = metrics[evaluator][name]
            return name, {key: found.get(key) for key in ("value", "low", "high")}
    return None, {"value": None, "low": None, "high": None}


def table(rows: list[dict[str, Any]]) -> str:
    """The rows as aligned text."""
    lines = [("run", "seed", "metric", "value", "95 % interval", "report")]
    for row in rows:
        value = "-" if row["value"] is None else f"{row['value']:.4f}"
        interval = "-" if row["low"] is None else f"{row['low']:.4f} to {row['high']:.4f}"
        lines.append(
            (row["run"], str(row["seed"]), row["metric"] or "-", value, interval, row["report"] or "not finished")
        )
    widths = [max(len(line[column]) for line in lines) for column in range(6)]
    return "\n".join(
        "  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip() for line in lines
    )


def read_json(path: Path) -> Any:
    """Content of a JSON file; None if it is missing or damaged (damage is reported where the artifact is opened)."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, *NOT_JSON):
        return None
