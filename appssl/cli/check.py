"""`appssl check`: all problems of recipes at once, and what would run."""

from typing import Annotated

import typer

from appssl.cli.options import Json, Quick, Results, Seeds, Set


def command(
    recipes: Annotated[list[str], typer.Argument(help="Recipes: domain/name, or YAML files.")],
    set_: Set = None,
    seed: Seeds = None,
    out: Results = "results",  # type: ignore[assignment]
    quick: Quick = False,
    as_json: Json = False,
) -> None:
    """Validate recipes and show what would run. Example: appssl check my.yaml --set data.root=/data"""
    import json

    from appssl import outcome
    from appssl.plan import make_plan
    from appssl.recipe import parse_overrides
    from appssl.stages.forecast import forecast

    plan = make_plan(recipes, seeds=seed or [0], overrides=parse_overrides(set_ or []), results=out, quick=quick)
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
