"""`appssl verify`: are the digests of a result, and of everything it was made from, right?"""

from pathlib import Path
from typing import Annotated, Any

import typer

from appssl.cli.options import Json


def command(
    result: Annotated[Path, typer.Argument(help="Folder of a stage, a run, or all results.")], as_json: Json = False
) -> None:
    """Check every file against its digest. Example: appssl verify results/wearable/demo/s0"""
    import json

    from appssl.artifact import Artifact
    from appssl.errors import ArtifactError
    from appssl.remote.notes import in_a_copy

    if not result.is_dir():
        raise ArtifactError(f"{result}: no such folder.")
    manifests = [path for path in sorted(result.rglob("manifest.json")) if not in_a_copy(path)]
    if not manifests:
        raise ArtifactError(f"{result}: no finished result below it.")
    found: list[dict[str, Any]] = []
    for manifest in manifests:
        try:
            artifact = Artifact.open(manifest.parent)
            found.append({"result": str(manifest.parent), "ok": True, "digest": artifact.digest})
        except ArtifactError as error:
            found.append({"result": str(manifest.parent), "ok": False, "problem": str(error)})
    if as_json:
        typer.echo(json.dumps(found, indent=1))
    else:
        for row in found:
            typer.echo(f"ok       {row['digest'][:12]}  {row['result']}" if row["ok"] else f"DAMAGED  {row['problem']}")
    if not all(row["ok"] for row in found):
        raise ArtifactError(f"{sum(not row['ok'] for row in found)} of {len(found)} results are damaged.")
