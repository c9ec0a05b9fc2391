"""Options that mean the same everywhere."""

from pathlib import Path
from typing import Annotated

import typer

Config = Annotated[Path, typer.Option("--config", help="config.yaml of the stage, written by 'appssl resolve'.")]
Data = Annotated[Path, typer.Option("--data", help="Folder of the prepared data.")]
Encoder = Annotated[Path | None, typer.Option("--encoder", help="Folder of the pretrained encoder.")]
Out = Annotated[Path, typer.Option("--out", help="Folder of the result.")]
Results = Annotated[Path, typer.Option("--out", help="Folder of all results.")]
Json = Annotated[bool, typer.Option("--json", help="Print JSON for machines.")]
Accelerator = Annotated[str, typer.Option("--accelerator", help="auto, cpu or cuda.")]
Devices = Annotated[int, typer.Option("--devices", min=0, help="Devices to train on, a process for each; 0 as 1.")]
Strategy = Annotated[str, typer.Option("--strategy", help="On several devices: auto, ddp or fsdp.")]
Workers = Annotated[int, typer.Option("--workers", min=0, help="Processes that load data; never changes the result.")]
Loading = Annotated[
    int | None,
    typer.Option("--workers", min=0, help="Processes that load data; by default the CPUs beside a GPU, else none."),
]
Set = Annotated[list[str] | None, typer.Option("--set", help="Setting to override, key=value; may be repeated.")]
Seeds = Annotated[list[int] | None, typer.Option("--seed", min=0, help="Seed of a run; may be repeated. Default 0.")]
Quick = Annotated[bool, typer.Option("--quick", help="The whole chain on a small sample of the same data.")]
