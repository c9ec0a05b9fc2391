"""`appssl check`: all problems of recipes at once, and what would run."""

from collections.abc import Mapping
from typing import Annotated, Any

import typer

from appssl.cli.options import Json, Quick, Results, Seeds, Set


def command(
    recipes: Annotated[list[str], typer.Argument(help="Recipes: domain/name, or YAML files.")],
    set_: Set = None,
    seed: Seeds = None,
    out: Results = "results",  # type: ignore[assignment]
    quick: Quick = False,
    probe: Annotated[
        bool,
        typer.Option("--probe", help="Forecast time, memory and disk from a short real run; refuse what cannot fit."),
    ] = False,
    probe_seconds: Annotated[
        float, typer.Option("--probe-seconds", min=1, help="How long that run may work, beside starting processes.")
    ] = 30,
    as_json: Json = False,
) -> None:
    """Validate recipes and show what would run. Example: appssl check my.yaml --set data.root=/data"""
    import json

    from appssl import outcome
    from appssl.forecast.foreseen import forecast
    from appssl.plan import make_plan
    from appssl.recipe import parse_overrides

    plan = make_plan(recipes, seeds=seed or [0], overrides=parse_overrides(set_ or []), results=out, quick=quick)
    if probe:
        _probe(plan, probe_seconds, as_json=as_json)
        return
    rows = [
        {"job": name, "done": (folder / "manifest.json").exists(), **forecast(plan, name, folder)}
        for name, folder in outcome.folders(plan)
    ]
    if as_json:
        typer.echo(json.dumps(rows, indent=1))
        return
    for row in rows:
        state = "done " if row["done"] else "to do"
        typer.echo(f"{state}  {row['job']}  {row['foreseen']}")
    typer.echo(f"no problems found; {sum(not row['done'] for row in rows)} of {len(rows)} jobs to do")


def _probe(plan: Mapping[str, Any], seconds: float, *, as_json: bool) -> None:
    import json

    from appssl.forecast.table import as_json as plain
    from appssl.forecast.table import as_text, refuse_what_cannot_fit
    from appssl.forecast.trial import foresee

    found = foresee(plan, seconds)
    typer.echo(json.dumps(plain(found), indent=1) if as_json else as_text(found))
    refuse_what_cannot_fit(plan, found)
