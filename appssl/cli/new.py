"""`appssl new`: a recipe for the user's own data."""

import os
from pathlib import Path
from typing import Annotated, Any

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
    source = registry.load("sources", domain)
    if table.is_dir() and hasattr(source, "listed"):
        values = _of_folder(source, table, recipe.with_suffix(".csv"), force)
        typer.echo(f"{recipe.with_suffix('.csv')}   (patients and labels, where you have them, go in here)")
    else:
        values = source.draft(table)
        values["data"] = {"root": str(table.resolve().parent), **values["data"]}
    write_bytes(recipe, yaml.safe_dump(values, sort_keys=False, allow_unicode=True).encode())
    typer.echo(f"{recipe}\ncheck it with: appssl check {recipe}\nrun it with:   appssl run {recipe}")


def _of_folder(source: Any, folder: Path, table: Path, force: bool) -> dict[str, Any]:
    """Writes a table of the files in a folder, to be filled in, and gives a recipe for it."""
    from appssl.artifact import write_bytes
    from appssl.errors import SettingsError

    if table.exists() and not force:
        raise SettingsError(f"{table} exists. Give it as --table, or --force to replace it.")
    files, here = source.listed(folder.resolve()), table.resolve().parent
    is_below = folder.resolve().is_relative_to(here)
    if is_below:  # paths from the table on, so that table and slides can move together
        below = folder.resolve().relative_to(here).as_posix()
        files = files.with_columns(path=f"{below}/" + files["path"])
    write_bytes(table, files.write_csv().encode())
    values: dict[str, Any] = source.draft(table)
    root = Path(os.path.commonpath([here, folder.resolve()]))
    values["data"] = {"root": str(root), **values["data"]}
    if not is_below:
        places = {"table": table.resolve(), "slides_root": folder.resolve()}
        values["data"]["source"] |= {key: path.relative_to(root).as_posix() for key, path in places.items()}
    return values
