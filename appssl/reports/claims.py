"""Claims of recipes, measured: effect, verdict and cost of each, as a row of the table of claims."""

from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from types import ModuleType
from typing import Any, Literal

from appssl.artifact import MANIFEST
from appssl.errors import Problem, SettingsError
from appssl.outcome import is_current, read_json
from appssl.recipe import Claim
from appssl.registry import load
from appssl.reports.effects import Effect, effects
from appssl.reports.reading import Run, read_run


def verdict_of(
    low: float | None, high: float | None, *, by: float, more: bool
) -> Literal["shown", "not shown", "opposite"]:
    """What an interval [low, high] of a difference says of the claim that it is larger (`more`) or smaller by `by`.

    shown: beyond the margin. opposite: on the other side of 0, and of a margin that is negative. Without interval: not
    shown.
    """
    if low is None or high is None:
        return "not shown"
    least, most = (low, high) if more else (-high, -low)
    if least > by:
        return "shown"
    return "opposite" if most < min(by, 0.0) else "not shown"


def is_finished(plan: Mapping[str, Any], run: tuple[str, str], claims: Sequence[Claim]) -> bool:
    """Whether a recipe, and all that its claims hold it against, are evaluated as the complete plan has it, for every
    seed of it; an evaluation of other settings or data that lies there does not count."""
    domain, recipe = run
    seeds = [seed for d, name, seed in plan["targets"] if (d, name) == run]
    recipes = {recipe, *(run_name(claim.against) for claim in claims)}
    return all(is_current(plan, f"{domain}/{name}/s{seed}/evaluate") for name in recipes for seed in seeds)


def measure(
    plan: Mapping[str, Any], method: str, run: tuple[str, str], claims: Sequence[Claim]
) -> list[dict[str, Any]]:
    """Rows of a method's claims, in their order, without those against a recipe that the plan compares nothing with.

    Args:
        plan: as of `plan.make_plan`, its runs done. method: what it is called in the table. run: its domain and recipe.
    """
    domain, recipe = run
    seeds = [seed for d, name, seed in plan["targets"] if (d, name) == run]
    ours = [_run(plan, domain, recipe, seed) for seed in seeds]
    measured: dict[str, tuple[list[Run], dict[str, Effect]]] = {}
    rows = []
    for claim in claims:
        other = run_name(claim.against)
        if f"compare:{other}" not in plan["runs"][domain][recipe][f"s{seeds[0]}"]["stages"]["evaluate"]["inputs"]:
            continue
        if other not in measured:
            theirs = [_run(plan, domain, other, seed) for seed in seeds]
            metrics = [c.metric for c in claims if run_name(c.against) == other]
            measured[other] = theirs, effects(ours, theirs, list(dict.fromkeys(metrics)))
        theirs, found = measured[other]
        pair = [f"{domain}/{name}/s{seed}/evaluate" for name in (recipe, other) for seed in seeds]
        row = {"method": method, "domain": domain, **claim.plain(), **_plain(found[claim.metric], claim)}
        rows.append({**row, "seconds": seconds(plan, pair), **_when([*ours, *theirs])})
    return rows


def refuse_unmeasured(plan: Mapping[str, Any], method: str, run: tuple[str, str], claims: Sequence[Claim]) -> None:
    """Arguments as those of `measure`, before the runs are done.

    Raises:
        SettingsError: if a metric that is not of probabilities is not measured of the other recipe.
    """
    problems = []
    for i, claim in enumerate(claims):
        ours, theirs = (_evaluators(plan, run[0], name) for name in (run[1], run_name(claim.against)))
        alone = [
            name for name, module in ours.items() if not hasattr(module, "paired") or hasattr(module, "PER_SAMPLE")
        ]
        needed = [name for name in alone if claim.metric in getattr(ours[name], "DESCRIPTIONS", ())]
        if theirs and needed and needed[0] not in theirs:
            message = f"is not measured of {claim.against}. Add {needed[0]} to its evaluate.evaluators."
            problems.append(Problem(method, f"claims.{i}.metric", message))
    if problems:
        raise SettingsError(problems)


def _evaluators(plan: Mapping[str, Any], domain: str, recipe: str) -> dict[str, ModuleType]:
    """Evaluators of a planned recipe; {} if it is not planned, as in a quick form."""
    for run in plan["runs"][domain].get(recipe, {}).values():
        names = [each["name"] for each in run["stages"]["evaluate"]["settings"]["evaluators"]]
        return {name: load("evaluators", name) for name in names}
    return {}


def run_name(recipe: str) -> str:
    """What a recipe that is named by path, or with its domain, is called where its results lie."""
    return recipe.rpartition("/")[2].removesuffix(".yaml").removesuffix(".yml")


def _run(plan: Mapping[str, Any], domain: str, recipe: str, seed: int) -> Run:
    root = Path(plan["results"])
    key = plan["runs"][domain][recipe][f"s{seed}"]["data"]
    return read_run(root / domain / recipe / f"s{seed}", root / "data" / key)


def _plain(effect: Effect, claim: Claim) -> dict[str, Any]:
    ends = {"value": effect.value, "low": effect.low, "high": effect.high, "paired": effect.paired}
    by_seed = {str(seed): value for seed, value in effect.by_seed.items()}
    return {**ends, "by_seed": by_seed, "verdict": verdict_of(effect.low, effect.high, by=claim.by, more=claim.more)}


def seconds(plan: Mapping[str, Any], folders: Sequence[str]) -> float:
    """Time of the stages in these folders and of those they stand on, each once; not of what they are compared with."""
    root, waiting = Path(plan["results"]), list(folders)
    found: dict[str, float] = {}
    while waiting:
        folder = waiting.pop()
        if folder in found:
            continue
        parts = (
            [root / folder, *(root / folder / "shards").glob("*")] if folder.startswith("data/") else [root / folder]
        )
        times = [(read_json(part / "run.json") or {}).get("seconds", 0.0) for part in parts]
        found[folder] = float(sum(times))
        if not folder.startswith("data/"):
            domain, recipe, seed, stage = folder.split("/")
            inputs = plan["runs"][domain][recipe][seed]["stages"][stage]["inputs"]
            waiting += [other for name, other in inputs.items() if not name.startswith("compare:")]
    return sum(found.values())


def _when(runs: Sequence[Run]) -> dict[str, str]:
    """Day (UTC) of the last evaluation, and the version that made it."""
    stages = [run.stages["evaluate"] for run in runs]
    last = max(stages, key=lambda stage: (stage.folder / MANIFEST).stat().st_mtime)
    day = datetime.fromtimestamp((last.folder / MANIFEST).stat().st_mtime, UTC).date()
    return {"date": day.isoformat(), "version": str(last.artifact.manifest["version"])}
