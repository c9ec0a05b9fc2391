"""`appssl status`, `logs`, `cancel`: where runs stand, why jobs failed, stop a run."""

from pathlib import Path
from typing import Annotated

import typer

from appssl.cli.options import Json


def command(
    results: Annotated[Path, typer.Argument(help="Folder of results.")] = Path("results"), as_json: Json = False
) -> None:
    """Show where every stage stands. Example: appssl status results"""
    import json

    from appssl import outcome
    from appssl.progress import last_line

    rows = []
    for name, folder, log in _stages(results):
        failure = outcome.read_json(folder / "failed.json")
        if (folder / "manifest.json").exists():
            rows.append({"stage": name, "state": "done", "detail": ""})
        elif _is_held(folder / ".lock"):
            rows.append({"stage": name, "state": "running", "detail": last_line(log)})
        elif failure:
            rows.append({"stage": name, "state": "failed", "detail": failure["message"]})
        else:
            rows.append({"stage": name, "state": "waiting", "detail": ""})
    if as_json:
        typer.echo(json.dumps({"running": _is_held(results / ".run"), "stages": rows}, indent=1))
        return
    for row in rows:
        typer.echo(f"{row['state']:8s} {row['stage']}  {row['detail']}".rstrip())
    typer.echo("a run is active" if _is_held(results / ".run") else "no run is active")


def _stages(results: Path) -> list[tuple[str, Path, Path]]:
    """Name, folder and log of every stage that was planned: those that have a config.yaml."""
    from appssl.errors import DataError

    if not results.is_dir():
        raise DataError(f"{results}: no such folder. Give the folder that 'appssl run' wrote with --out.")
    found = []
    for root in (results, results / "quick"):
        for config in sorted([*root.glob("data/*/config.yaml"), *root.glob("*/*/s*/*/config.yaml")]):
            name = config.parent.relative_to(root).as_posix()
            log = f"{name}/prepare" if name.startswith("data/") else name
            shown = config.parent.relative_to(results).as_posix()
            found.append((shown, config.parent, root / "logs" / f"{log}.log"))
    return found


def _is_held(lock: Path) -> bool:
    import fcntl
    import os

    try:
        handle = os.open(lock, os.O_RDWR)
    except OSError:
        return False
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    finally:
        os.close(handle)
    return False


def logs(
    stage: Annotated[str, typer.Argument(help="A stage as 'appssl status' names it.")],
    results: Annotated[Path, typer.Option("--out", help="Folder of results.")] = Path("results"),
) -> None:
    """Print the log of a stage. Example: appssl logs wearable/demo/s0/pretrain"""
    from appssl.errors import DataError
    from appssl.settings import nearest

    known = {name: log for name, _, log in _stages(results)}
    if stage not in known or not known[stage].exists():
        raise DataError(f"{stage}: no log in {results}.{nearest(stage, known)}")
    typer.echo(known[stage].read_text(encoding="utf-8", errors="replace"))


def cancel(results: Annotated[Path, typer.Argument(help="Folder of results.")] = Path("results")) -> None:
    """Stop the run that works in a results folder, and its batch jobs; it can go on later. Example: appssl cancel"""
    import os
    import signal

    from appssl.errors import DataError

    if not _is_held(results / ".run"):
        raise DataError(f"{results}: no run is active there.")
    pid = int((results / ".run").read_text())
    os.kill(pid, signal.SIGTERM)
    typer.echo(f"asked process {pid} to stop")
