"""One command per stage: parse, call, say where the result is."""

import json
from pathlib import Path
from typing import Annotated, Any

import typer

from appssl.cli.options import Accelerator, Config, Data, Devices, Encoder, Out, Strategy, Workers


def _done(folder: Path) -> None:
    from appssl.stages.frame import is_first_process

    if is_first_process():
        typer.echo(str(folder / "manifest.json"))


def resolve(
    settings: Annotated[str, typer.Option("--settings", help="Complete settings of a stage as JSON, from the plan.")],
    out: Annotated[Path, typer.Option("--out", help="File to write.")],
) -> None:
    """Write a stage's complete settings. Example: appssl resolve --settings '{...}' --out config.yaml"""
    import yaml

    from appssl.artifact import write_bytes
    from appssl.errors import SettingsError

    try:
        values = json.loads(settings)
    except ValueError as error:
        raise SettingsError(f"--settings is not JSON: {error}.") from None
    write_bytes(out, yaml.safe_dump(values, sort_keys=False, allow_unicode=True).encode())


def prepare(
    config: Config,
    out: Out,
    shard: Annotated[int | None, typer.Option("--shard", min=0, help="Prepare one shard into --out.")] = None,
    merge: Annotated[bool, typer.Option("--merge", help="Merge the shards below --out.")] = False,
) -> None:
    """Raw inputs to prepared data. Example: appssl prepare --config c.yaml --out data"""
    from appssl.plan import read_config
    from appssl.stages.prepare import prepare as merge_shards
    from appssl.stages.prepare import prepare_shard

    wanted = read_config(config, "prepare")
    if shard is not None:
        _done(prepare_shard(wanted, shard, out).folder)
        return
    folders = [out / "shards" / str(number) for number in range(wanted.settings.shards)]
    if not merge:
        for number, folder in enumerate(folders):
            prepare_shard(wanted, number, folder)
    _done(merge_shards(wanted, out, folders).folder)


def pretrain(
    config: Config,
    data: Data,
    out: Out,
    start: Annotated[Path | None, typer.Option("--start", help="Folder of the pretraining to go on from.")] = None,
    accelerator: Accelerator = "auto",
    devices: Devices = 0,
    strategy: Strategy = "auto",
    workers: Workers = 0,
) -> None:
    """Train an encoder without labels. Example: appssl pretrain --config c.yaml --data data --out pretrain"""
    from appssl.plan import read_config
    from appssl.stages.pretrain import pretrain as stage

    wanted = read_config(config, "pretrain")
    machine: dict[str, Any] = {"accelerator": accelerator, "devices": max(1, devices), "strategy": strategy}
    _done(stage(wanted, data, out, start_dir=start, **machine, workers=workers).folder)


def pseudolabel(
    config: Config, data: Data, encoder: Encoder, out: Out, accelerator: Accelerator = "auto", workers: Workers = 0
) -> None:
    """Clean or invent labels. Example: appssl pseudolabel --config c.yaml --data data --encoder enc --out labels"""
    from appssl.errors import SettingsError
    from appssl.plan import read_config
    from appssl.stages.pseudolabel import pseudolabel as stage

    if encoder is None:
        raise SettingsError("--encoder is needed: labels are judged on the encoder's features.")
    wanted = read_config(config, "pseudolabel")
    _done(stage(wanted, data, encoder, out, accelerator=accelerator, workers=workers).folder)


def finetune(
    config: Config,
    data: Data,
    out: Out,
    encoder: Encoder = None,
    labels: Annotated[Path | None, typer.Option("--labels", help="Folder of labels from pseudolabel.")] = None,
    accelerator: Accelerator = "auto",
    devices: Devices = 0,
    strategy: Strategy = "auto",
    workers: Workers = 0,
) -> None:
    """Train a model for the task. Example: appssl finetune --config c.yaml --data data --encoder enc --out model"""
    from appssl.plan import read_config
    from appssl.stages.finetune import finetune as stage

    wanted = read_config(config, "finetune")
    artifact = stage(
        wanted,
        data,
        out,
        encoder_dir=encoder,
        labels_dir=labels,
        accelerator=accelerator,
        devices=max(1, devices),
        strategy=strategy,
        workers=workers,
    )
    _done(artifact.folder)


def evaluate(
    config: Config,
    data: Data,
    out: Out,
    encoder: Encoder = None,
    model: Annotated[Path | None, typer.Option("--model", help="Folder of the fine-tuned model.")] = None,
    compare: Annotated[list[str] | None, typer.Option("--compare", help="NAME=FOLDER of another evaluation.")] = None,
    accelerator: Accelerator = "auto",
    workers: Workers = 0,
) -> None:
    """Measure on the test part. Example: appssl evaluate --config c.yaml --data data --model model --out evaluate"""
    from appssl.plan import read_config
    from appssl.stages.evaluate import evaluate as stage

    others = {name: Path(folder) for name, _, folder in (pair.partition("=") for pair in compare or [])}
    wanted = read_config(config, "evaluate")
    inputs: dict[str, Any] = {"encoder_dir": encoder, "model_dir": model, "compare": others}
    _done(stage(wanted, data, out, **inputs, accelerator=accelerator, workers=workers).folder)


def report(
    config: Config,
    data: Data,
    out: Out,
    pretrain: Annotated[Path | None, typer.Option("--pretrain", help="Folder of the stage.")] = None,
    pseudolabel: Annotated[Path | None, typer.Option("--pseudolabel", help="Folder of the stage.")] = None,
    finetune: Annotated[Path | None, typer.Option("--finetune", help="Folder of the stage.")] = None,
    evaluate: Annotated[Path | None, typer.Option("--evaluate", help="Folder of the stage.")] = None,
) -> None:
    """Write the page of a run. Example: appssl report --config c.yaml --data data --evaluate evaluate --out report"""
    from appssl.plan import read_config
    from appssl.stages.report import report as stage

    given = {"pretrain": pretrain, "pseudolabel": pseudolabel, "finetune": finetune, "evaluate": evaluate}
    folders = {name: folder for name, folder in given.items() if folder is not None}
    _done(stage(read_config(config, "report"), data, folders, out).folder)
