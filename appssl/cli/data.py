"""`appssl data`: public data sets, copies of remote data, and synthetic data."""

from pathlib import Path
from typing import Annotated

import typer

from appssl.cli.options import Json


def list_(as_json: Json = False) -> None:
    """List public data sets with licence, size and checksum. Example: appssl data list"""
    import json
    from dataclasses import asdict

    from appssl.datasets import PUBLIC

    if as_json:
        typer.echo(json.dumps([asdict(entry) for entry in PUBLIC], indent=1))
        return
    for entry in PUBLIC:
        typer.echo(f"{entry.name}  {entry.domain}  {entry.size / 1e6:.1f} MB  sha256 {entry.sha256[:12]}")
        typer.echo(f"    {entry.about}\n    licence: {entry.licence}\n    {entry.url}")


def get(
    name: Annotated[str, typer.Argument(help="A set that 'appssl data list' names.")],
    out: Annotated[Path, typer.Option("--out", help="Folder to put it in.")] = Path("data"),
) -> None:
    """Fetch a public data set, resumed and verified. Example: appssl data get cmu-1-small-region"""
    import sys

    from appssl.datasets import find
    from appssl.datasets import get as fetch

    entry = find(name)
    print(f"{entry.name}: {entry.size / 1e6:.1f} MB, licence: {entry.licence}", file=sys.stderr)
    typer.echo(str(fetch(entry, out, progress=_show if sys.stderr.isatty() else None)))


def _show(done: int, size: int) -> None:
    import sys

    print(f"\r{done / 1e6:.1f} of {size / 1e6:.1f} MB", end="\n" if done == size else "", file=sys.stderr, flush=True)


def mirror(
    address: Annotated[str, typer.Argument(help="Address of a folder of a store: s3://bucket/folder, gs://...")],
    folder: Annotated[Path, typer.Argument(help="Folder to put the copy in: a new one, or one to go on with.")],
    match: Annotated[
        list[str] | None,
        typer.Option("--match", help="Only paths below the address that fit, such as '*.svs'; may be repeated."),
    ] = None,
    max_gb: Annotated[float | None, typer.Option("--max-gb", min=0, help="Refuse more than so many GB.")] = None,
    jobs: Annotated[int, typer.Option("--jobs", min=1, max=64, help="Files fetched at the same time.")] = 4,
) -> None:
    """Copy remote data into a folder, checked and gone on with. Example: appssl data mirror s3://bucket/slides data"""
    import sys

    from appssl.remote.mirror import mirror as fetch

    told = {"told": _show} if sys.stderr.isatty() else {}
    done = fetch(address, folder, match=match or (), max_gb=max_gb, jobs=jobs, **told)
    counts = f"{done.files} files, {done.bytes / 1e6:.1f} MB: {done.fetched} fetched, {done.kept} kept"
    typer.echo(f"{counts}. --set data.root={done.root}")


def make(
    domain: Annotated[str, typer.Argument(help="wsi, wearable, webnoisy or recsys.")],
    out: Annotated[Path, typer.Option("--out", help="Folder to write.")],
    size: Annotated[str, typer.Option("--size", help="tiny, small or large.")] = "small",
    seed: Annotated[int, typer.Option("--seed", min=0, help="Seed; the same seed gives the same bytes.")] = 0,
    events: Annotated[
        int | None,
        typer.Option("--events", min=1000, help="recsys: so many events in Parquet files, instead of a size."),
    ] = None,
) -> None:
    """Make synthetic data with known truth. Example: appssl data make wearable --out synthetic"""
    from appssl.errors import SettingsError
    from appssl.stages.make import make as write

    if size not in ("tiny", "small", "large"):
        raise SettingsError(f"--size {size}: choose tiny, small or large.")
    if events is not None and domain != "recsys":
        raise SettingsError(f"--events {events}: only recsys can be made of so many events; give {domain} a --size.")
    typer.echo(str(write(domain, size if events is None else str(events), seed, out).folder))
