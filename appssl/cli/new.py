"""`appssl new`: a recipe for the user's own data."""

from pathlib import Path
from typing import Annotated

import typer


def command(
    domain: Annotated[str, typer.Argument(help="wsi, wearable, webnoisy or recsys.")],
    recipe: Annotated[Path, typer.Argument(help="Recipe to write, such as my.yaml.")],
    table: Annotated[Path, typer.Option("--table", help="Your table, or a folder of files.")],
    force: Annotated[bool, typer.Option("--force", help="Replace an existing recipe.")] = False,
) -> None:
    """Write a recipe, filled in from what the table holds. Example: appssl new wsi my.yaml --table slides.csv"""
    import yaml

    from appssl import registry
    from appssl.artifact import write_bytes
    from appssl.errors import DataError, SettingsError
    from appssl.settings import nearest

    if domain not in registry.names("sources"):
        raise SettingsError(f"{domain} is not a domain.{nearest(domain, registry.names('sources'))}")
    if recipe.suffix not in (".yaml", ".yml"):
        raise SettingsError(f"{recipe}: give a file name that ends in .yaml.")
    if recipe.exists() and not force:
        raise SettingsError(f"{recipe} exists. Give another name, or --force to replace it.")
    if not table.exists():
        raise DataError(f"{table}: no such table or folder.")
    values = registry.load("sources", domain).draft(table)
    values["data"] = {"root": str(table.resolve().parent), **values["data"]}
    write_bytes(recipe, yaml.safe_dump(values, sort_keys=False, allow_unicode=True).encode())
    typer.echo(f"{recipe}\ncheck it with: appssl check {recipe}\nrun it with:   appssl run {recipe}")
