"""`appssl trace`: where a number came from, back to the raw input."""

from pathlib import Path
from typing import Annotated, Any

import typer

from appssl.cli.options import Json


def command(result: Annotated[Path, typer.Argument(help="Folder of a stage or run.")], as_json: Json = False) -> None:
    """Show what a result was made from. Example: appssl trace results/wearable/demo/s0"""
    import json

    from appssl.stages.lineage import trace

    tree = trace(result)
    if as_json:
        typer.echo(json.dumps(tree, indent=1))
        return
    _print(tree, 0)


def _print(node: dict[str, Any], depth: int) -> None:
    state = "" if node.get("matches", True) else "  CHANGED since this was made"
    typer.echo(f"{'  ' * depth}{node['name']}: {node['digest'][:12]}  {node.get('folder', '')}{state}")
    for key in ("method", "version", "settings"):
        if key in node:
            typer.echo(f"{'  ' * depth}  {key} {node[key][:64]}")
    for inner in node.get("inputs", []):
        _print(inner, depth + 1)
