"""`appssl reproduce`: run a result again and compare."""

from pathlib import Path
from typing import Annotated

import typer

from appssl.cli.options import Json


def command(result: Annotated[Path, typer.Argument(help="Folder of a run or stage.")], as_json: Json = False) -> None:
    """Run a result again from its recorded settings and compare. Example: appssl reproduce results/wearable/demo/s0"""
    import json
    import sys

    from appssl.errors import ArtifactError
    from appssl.stages.reproduce import reproduce

    rows = reproduce(result, say=lambda text: print(text, file=sys.stderr))
    if as_json:
        typer.echo(json.dumps(rows, indent=1))
    else:
        for row in rows:
            state = "equal bytes" if row["equal"] else f"DIFFERS in {', '.join(row['differing']) or 'inputs'}"
            versions = "; ".join(f"{name}: {text}" for name, text in row["versions"].items())
            typer.echo(f"{row['stage']}: {state}{'  (' + versions + ')' if versions else ''}")
    if not all(row["equal"] for row in rows):
        raise ArtifactError(
            "the result was not reproduced bit for bit; versions, device or thread settings above may explain it."
        )
