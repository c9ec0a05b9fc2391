"""`appssl duplicates`: images that show the same though their pixels differ."""

from pathlib import Path
from typing import Annotated

import typer

from appssl.cli.options import Accelerator, Data, Json, Loading


def command(
    encoder: Annotated[Path, typer.Argument(help="Folder of a run, or of its pretrain or finetune stage.")],
    data: Data,
    threshold: Annotated[
        float, typer.Option("--threshold", min=0.0, max=1.0, help="Cosine from which two images are near-duplicates.")
    ] = 0.97,
    out: Annotated[Path, typer.Option("--out", help="Folder of the review.")] = Path("review"),
    refuse_leak: Annotated[
        bool, typer.Option("--refuse-leak", help="Exit code 3 if near-duplicates are in different parts.")
    ] = False,
    accelerator: Accelerator = "auto",
    workers: Loading = None,
    as_json: Json = False,
) -> None:
    """Find near-duplicate images. Example: appssl duplicates results/webnoisy/demo/s0 --data results/data/KEY"""
    import json

    from appssl.errors import DataError
    from appssl.stages.duplicates import duplicates

    found = duplicates(encoder, data, out, threshold=threshold, accelerator=accelerator, workers=workers)
    leaks, size = found.leaks, len(found.table)
    if as_json:
        counts = {"images": found.num_images, "near_duplicates": size, "groups": found.num_groups}
        typer.echo(json.dumps({"table": str(found.path), **counts, "leaks": len(leaks)}))
    else:
        typer.echo(f"{found.path}   ({size:,} of {found.num_images:,} images in {found.num_groups:,} groups)")
    if len(leaks) == 0:
        return
    group = found.table.filter(found.table["group"] == leaks["group"][0]).unique(
        "split", keep="first", maintain_order=True
    )
    shown = " and ".join(f"{name} ({split})" for name, split in group.select("id", "split").iter_rows())
    message = (
        f"LEAK: {len(leaks):,} image(s) have a near-duplicate in another part; the first group has {shown}. "
        f"'appssl review' shows all of them with --out {out}."
    )
    if refuse_leak:
        raise DataError(message)
    typer.echo(message, err=True)
