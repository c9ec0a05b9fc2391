"""`appssl predict`: apply a finished model to new data."""

from pathlib import Path
from typing import Annotated, Any

import typer

from appssl.cli.options import Accelerator, Loading


def command(
    model: Annotated[Path, typer.Argument(help="Folder of a run, or of its finetune stage.")],
    table: Annotated[Path, typer.Argument(help="New data, as the training table; labels are not needed.")],
    out: Annotated[Path, typer.Option("--out", help="File to write, .parquet or .csv.")],
    top_k: Annotated[int, typer.Option("--top-k", min=1, help="Items per user, for ranking; each with reasons.")] = 20,
    accelerator: Accelerator = "auto",
    workers: Loading = None,
) -> None:
    """Apply a finished model to new data. Example: appssl predict results/wsi/demo/s0 new.csv --out scores.csv"""
    from appssl.stages.predict import predict

    report_left_out(predict(model, table, out, top_k=top_k, accelerator=accelerator, workers=workers), out)


def report_left_out(left: list[Any], out: Path) -> None:
    """Says where the result is, and the list of what was not used; raises LeftOutError if inputs could not be read."""
    from appssl.errors import LeftOutError
    from appssl.stages.predict import write_left_out

    typer.echo(str(out))
    failed = [q for q in left if q.outcome == "failed"]
    listed = write_left_out(left, out)
    if listed and len(failed) < len(left):
        typer.echo(f"{len(left) - len(failed)} input(s) left out, with reasons in {listed}", err=True)
    if failed:
        shown = "\n  ".join(f"{q.item} ({q.where}): {q.reason}: {q.detail}" for q in failed[:20])
        raise LeftOutError(f"done, but {len(failed)} input(s) could not be used, all in {listed}:\n  {shown}")
