"""`appssl predict`: apply a finished model to new data."""

from pathlib import Path
from typing import Annotated, Any

import typer

from appssl.cli.options import Accelerator


def command(
    model: Annotated[Path, typer.Argument(help="Folder of a run, or of its finetune stage.")],
    table: Annotated[Path, typer.Argument(help="New data, as the training table; labels are not needed.")],
    out: Annotated[Path, typer.Option("--out", help="File to write, .parquet or .csv.")],
    top_k: Annotated[int, typer.Option("--top-k", min=1, help="Items per user, for ranking.")] = 20,
    accelerator: Accelerator = "auto",
) -> None:
    """Apply a finished model to new data. Example: appssl predict results/wsi/demo/s0 new.csv --out scores.csv"""
    from appssl.stages.predict import predict

    report_left_out(predict(model, table, out, top_k=top_k, accelerator=accelerator), out)


def report_left_out(left: list[Any], out: Path) -> None:
    """Says where the result is, and raises LeftOutError with the list of inputs that could not be used."""
    from appssl.errors import LeftOutError

    typer.echo(str(out))
    if left:
        shown = "\n  ".join(f"{q.item} ({q.where}): {q.reason}: {q.detail}" for q in left[:20])
        raise LeftOutError(f"done, but {len(left)} input(s) could not be used:\n  {shown}")
