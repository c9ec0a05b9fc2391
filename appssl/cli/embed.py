"""`appssl embed`: encoder features for new data, or the vectors of a ranking model."""

from pathlib import Path
from typing import Annotated

import typer

from appssl.cli.options import Accelerator, Loading
from appssl.cli.predict import report_left_out


def command(
    model: Annotated[Path, typer.Argument(help="Folder of a run, or of its pretrain or finetune stage.")],
    table: Annotated[
        Path | None,
        typer.Argument(
            help="New data, as the training table; labels are not needed. Without it: the vectors of users and items "
            "of a ranking model."
        ),
    ] = None,
    *,
    out: Annotated[
        Path,
        typer.Option(
            "--out",
            help="File to write, .parquet or .csv; or a folder: HDF5 of each slide, vectors of users and items.",
        ),
    ],
    index: Annotated[
        str | None, typer.Option("--index", help="faiss: also an index of the vectors of items, to search in.")
    ] = None,
    accelerator: Accelerator = "auto",
    workers: Loading = None,
) -> None:
    """Encoder features for new data. Example: appssl embed results/wsi/demo/s0 new.csv --out features.parquet"""
    from appssl.errors import SettingsError
    from appssl.stages.predict import embed_table, stage_folder
    from appssl.stages.vectors import export_vectors

    if table is None:
        export_vectors(stage_folder(model, "finetune"), out, index=index)
        typer.echo(str(out))
        return
    if index is not None:
        raise SettingsError(f"--index {index} is of the items of a ranking model: leave out the table {table}.")
    report_left_out(embed_table(model, table, out, accelerator=accelerator, workers=workers), out)
