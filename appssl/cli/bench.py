"""`appssl bench`: runs the claims of recipes as one workflow, and writes what came out into a table."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from appssl.cli.options import Json, Quick, Results, Set

if TYPE_CHECKING:
    from appssl.recipe import Recipe

_TABLE = Path("docs/claims.md")
_PLACES = ("data.root", "data.shards", "needs.")  # settings that say where and with what, and change no result


def list_(
    table: Annotated[
        Path, typer.Option("--table", help="Table of claims that verdicts and costs are read from.")
    ] = _TABLE,
    as_json: Json = False,
) -> None:
    """List methods with their claims, and what these cost when they were last run. Example: appssl bench list"""
    import json

    from appssl.reports.claims_page import direction, minutes, read_claims
    from appssl.reports.wording import readable

    known = {(row["method"], row["says"]): row for row in read_claims(table)}
    found = []
    for method, of in _methods([]).items():
        for claim in of.recipe.claims:
            row = known.get((method, claim.says), {})
            last = {key: row.get(key) for key in ("verdict", "seconds", "date")}
            found.append({"method": method, **claim.plain(), **last})
    if as_json:
        typer.echo(json.dumps(found, indent=1))
        return
    for row in found:
        ran = f"{row['verdict']}, {minutes(row['seconds'])}, {row['date']}" if row["verdict"] else "not run"
        typer.echo(f"{row['method']}: {row['says']}")
        typer.echo(f"    {readable(row['metric'])} {direction(row)} against {row['against']}; {ran}")


def run(
    methods: Annotated[
        list[str] | None, typer.Argument(metavar="METHOD", help="Bench recipes, or domain/name; all with claims.")
    ] = None,
    seeds: Annotated[int, typer.Option("--seeds", min=2, help="How many seeds, from 0 on.")] = 3,
    set_: Set = None,
    out: Results = "results",  # type: ignore[assignment]
    write: Annotated[
        Path | None, typer.Option("--write", help="Table to put the results into, docs/claims.md.")
    ] = None,
    quick: Quick = False,
    profile: Annotated[str, typer.Option("--profile", help="local, slurm, or a folder.")] = "local",
    cores: Annotated[int | None, typer.Option("--cores", min=1, help="CPU cores to use on this machine.")] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", "-n", help="Show the jobs, run nothing.")] = False,
) -> None:
    """Run recipes beside what they are compared with; say which claims hold. Example: appssl bench run bss --seeds 5"""
    from appssl import runner
    from appssl.errors import AppsslError
    from appssl.plan import complete, make_plan
    from appssl.recipe import parse_overrides
    from appssl.reports.claims import is_finished, measure, refuse_unmeasured
    from appssl.reports.claims_page import counted, read_claims, table, write_claims

    overrides = parse_overrides(set_ or [])
    if write is not None:
        _refuse_other_results(quick, overrides)
        read_claims(write)
    chosen = _methods(methods or [])
    plan = make_plan(
        [of.given for of in chosen.values()], seeds=range(seeds), overrides=overrides, results=out, quick=quick
    )
    for method, of in chosen.items():
        refuse_unmeasured(plan, method, (of.recipe.domain, of.name), of.recipe.claims)
    whole, stopped = complete(plan), None
    try:
        how: dict[str, Any] = {"profile": profile, "cores": cores, "dry_run": dry_run}
        runner.run(whole, results=out, summary=None, as_json=False, **how)
    except AppsslError as error:  # told at the end; some methods may be finished, or all, with inputs left out
        if dry_run:
            raise
        stopped = error
    if dry_run:
        return
    rows = []
    for method, of in chosen.items():
        if stopped is not None and not is_finished(whole, (of.recipe.domain, of.name), of.recipe.claims):
            typer.echo(f"{method}: not finished, so not measured", err=True)
            continue
        found = measure(plan, method, (of.recipe.domain, of.name), of.recipe.claims)
        rows += found
        if missing := len(of.recipe.claims) - len(found):
            typer.echo(f"{method}: {missing} claim(s) not measured, the quick form makes fewer comparisons", err=True)
    if stopped is not None and not rows:
        raise stopped
    if write is not None:
        typer.echo(f"{write}: {counted(write_claims(write, rows))}")
    else:
        typer.echo(f"\n{'QUICK FORM: says nothing of the claims. ' if quick else ''}{counted(rows)}\n\n{table(rows)}")
    if stopped is not None:
        raise stopped


def _refuse_other_results(quick: bool, overrides: Mapping[str, Any]) -> None:
    """The table holds results of recipes as they are."""
    from appssl.errors import SettingsError

    if quick:
        raise SettingsError("--write with --quick: the quick form says nothing of a claim. Leave out one of them.")
    if changed := [key for key in overrides if not key.startswith(_PLACES)]:
        raise SettingsError(
            f"--write with --set {changed[0]}: the table is of recipes as they are. Change the recipe, or do not write."
        )


@dataclass(frozen=True)
class _Method:
    """A recipe with claims: `given` to find it by, and its name where results lie."""

    given: str
    name: str
    recipe: "Recipe"


def _methods(names: Sequence[str]) -> dict[str, _Method]:
    """Recipes by what the table calls them (`bench/bss`); all that have claims if none are named.

    Raises:
        SettingsError: if a recipe is wrong, or has no claims.
    """
    from appssl.errors import Problem, SettingsError
    from appssl.recipe import read

    found, problems = {}, []
    for given in names or _with_claims():
        full = given if "/" in given or given.endswith((".yaml", ".yml")) else f"bench/{given}"
        try:
            name, path, recipe = read(full, overrides={}, quick=False)
        except SettingsError as error:
            problems += error.problems
            continue
        if not recipe.claims:
            problems.append(Problem(full, "claims", "is missing. 'appssl bench list' names recipes that have claims."))
        found[f"{path.resolve().parent.name}/{name}"] = _Method(full, name, recipe)
    if problems:
        raise SettingsError(problems)
    return found


def _with_claims() -> list[str]:
    """Recipes with claims that come with the package or lie below ./pipelines, which count first."""
    from appssl import bundle

    places = (bundle.pipelines(), Path("pipelines"))
    files = {f"{file.parent.name}/{file.stem}": file for place in places for file in place.glob("*/*.yaml")}
    return sorted(name for name, file in files.items() if "\nclaims:" in file.read_text(encoding="utf-8"))
