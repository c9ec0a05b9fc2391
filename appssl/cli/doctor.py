"""`appssl doctor`: what works here and what does not."""

from typing import Any

import typer

from appssl.cli.options import Json


def command(as_json: Json = False) -> None:
    """Check versions, devices, disk, cluster and store. Example: appssl doctor"""
    import json

    from appssl.errors import AppsslError

    rows = [_python(), *_packages(), _openslide(), _devices(), _disk(), _memory(), _cluster(), _store()]
    if as_json:
        typer.echo(json.dumps(rows, indent=1))
    else:
        for row in rows:
            typer.echo(f"{row['state']:8s} {row['what']:20s} {row['detail']}")
    if any(row["state"] == "MISSING" for row in rows):
        raise AppsslError("something that appssl needs is missing; the lines above say what to do.")


def _row(what: str, state: str, detail: str) -> dict[str, Any]:
    """State: ok, none (not there, not needed for the base), MISSING."""
    return {"what": what, "state": state, "detail": detail}


def _python() -> dict[str, Any]:
    import platform
    import sys

    good = sys.version_info >= (3, 11)
    return _row("python", "ok" if good else "MISSING", platform.python_version() + ("" if good else "; 3.11 is needed"))


def _packages() -> list[dict[str, Any]]:
    from importlib import metadata

    rows = []
    for name in ("torch", "torchvision", "timm", "albumentations", "polars", "scikit-learn", "mlflow", "snakemake"):
        try:
            rows.append(_row(name, "ok", metadata.version(name)))
        except metadata.PackageNotFoundError:
            rows.append(_row(name, "MISSING", f"pip install {name}"))
    return rows


def _openslide() -> dict[str, Any]:
    try:
        import openslide
    except (ImportError, OSError) as error:
        return _row("openslide", "MISSING", f"{error}; pip install openslide-python openslide-bin")
    version = openslide.__library_version__
    safe = tuple(int(part) for part in version.split(".")[:3]) >= (4, 0, 1)
    return _row(
        "openslide",
        "ok" if safe else "MISSING",
        version + ("" if safe else "; 4.0.1 closes two holes: pip install -U openslide-bin"),
    )


def _devices() -> dict[str, Any]:
    import os

    import torch

    if not torch.cuda.is_available():
        return _row("cuda", "none", f"no CUDA device; {os.cpu_count()} CPU cores are used")
    names = [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())]
    return _row(
        "cuda", "ok", f"{', '.join(names)}; bf16 {'works' if torch.cuda.is_bf16_supported() else 'does not work'}"
    )


def _disk() -> dict[str, Any]:
    import os
    import shutil

    free = shutil.disk_usage(".").free / 1e9
    if not os.access(".", os.W_OK):
        return _row("disk", "MISSING", "this folder cannot be written; change to another one")
    return _row("disk", "ok" if free > 1 else "MISSING", f"{free:.0f} GB free here")


def _memory() -> dict[str, Any]:
    from pathlib import Path

    try:
        lines = dict(line.split(":", 1) for line in Path("/proc/meminfo").read_text().splitlines())
    except OSError:
        return _row("memory", "none", "cannot be read on this system")
    free = int(lines["MemAvailable"].split()[0]) / 2**20
    return _row("memory", "ok" if free > 2 else "MISSING", f"{free:.1f} GiB available")


def _cluster() -> dict[str, Any]:
    import importlib.util
    import shutil

    if shutil.which("sbatch") is None:
        return _row("slurm", "none", "no sbatch here; --profile slurm needs it")
    if importlib.util.find_spec("snakemake_executor_plugin_slurm") is None:
        return _row("slurm", "none", "sbatch is here; pip install 'appssl[cluster]' to use it")
    return _row("slurm", "ok", "sbatch and the Snakemake plugin are here")


def _store() -> dict[str, Any]:
    from pathlib import Path

    from appssl.tracking import masked, reachable, store_uri

    uri = store_uri(Path.cwd())
    problem = reachable(uri)
    return _row(
        "mlflow store",
        "none" if problem else "ok",
        masked(uri) + (f"; {problem}; metrics wait beside the results" if problem else ""),
    )
