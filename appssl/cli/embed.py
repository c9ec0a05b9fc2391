"""`appssl embed`: encoder features for new data."""

from pathlib import Path
from typing import Annotated

import typer

from appssl.cli.options import Accelerator
from appssl.cli.predict import report_left_out


def command(
    model: Annotated[Path, typer.Argument(help="Folder of a run, or of its pretrain or finetune stage.")],
    table: Annotated[Path, typer.Argument(help="New data, as the training table; labels are not needed.")],
    out: Annotated[
        Path, typer.Option("--out", help="File to write, .parquet or .csv; or a folder: HDF5 of each slide.")
    ],
    accelerator: Accelerator = "auto",
) -> None:
    """Encoder features for new data. Example: appssl embed results/wsi/demo/s0 new.csv --out features.parquet"""
    from appssl.stages.predict import embed_table

    report_left_out(embed_table(model, table, out, accelerator=accelerator), out)
