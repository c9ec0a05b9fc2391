"""`appssl run`: plans the recipes, lets Snakemake do the jobs, sends the journals to MLflow, says how it ended."""

from pathlib import Path
from typing import Annotated, Any

import typer

from appssl.cli.options import Json, Quick, Results, Seeds, Set


def command(
    recipes: Annotated[list[str], typer.Argument(help="Recipes: domain/name, or YAML files.")],
    set_: Set = None,
    seed: Seeds = None,
    out: Results = "results",  # type: ignore[assignment]
    profile: Annotated[str, typer.Option("--profile", help="local, slurm, kubernetes, or a folder.")] = "local",
    cores: Annotated[int | None, typer.Option("--cores", min=1, help="CPU cores to use on this machine.")] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", "-n", help="Show the jobs, run nothing.")] = False,
    quick: Quick = False,
    sweep: Annotated[
        Path | None, typer.Option("--sweep", help="YAML file with a grid of settings: a run at every point of it.")
    ] = None,
    summary: Annotated[
        Path | None, typer.Option("--summary", help="Folder for a Markdown summary of each recipe over its seeds.")
    ] = None,
    script: Annotated[
        Path | None,
        typer.Option("--script", help="Run nothing: write submit.sh and plain jobs of the profile's cluster."),
    ] = None,
    as_json: Json = False,
) -> None:
    """Run recipes from raw data to report; what is done already is not done again. Example: appssl run wearable/demo"""
    from appssl.plan import complete, make_plan
    from appssl.recipe import parse_overrides
    from appssl.runner import describe, run, write_jobs
    from appssl.sweep import read_sweep

    points = read_sweep(sweep) if sweep else None
    given: dict[str, Any] = {"seeds": seed or [0], "overrides": parse_overrides(set_ or []), "results": out}
    made = make_plan(recipes, **given, quick=quick, sweep=points, mirror=not dry_run)
    plan = complete(made)
    if script is not None:
        file = write_jobs(plan, profile, script)
        describe(plan)
        typer.echo(f"{file} written; 'bash {script}/submit.sh' submits it")
        return
    run(plan, results=out, profile=profile, cores=cores, dry_run=dry_run, summary=summary, as_json=as_json)
