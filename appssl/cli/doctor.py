"""`appssl doctor`: what works here and what does not; with `--drill`, whether runs survive what can happen to them."""

from pathlib import Path
from typing import Annotated, Any

import typer

from appssl.cli.options import Json

_PACKAGES = {  # the least versions, as in pyproject.toml
    "torch": (2, 6), "torchvision": (0, 21), "timm": (1, 0), "albumentations": (2, 0), "polars": (1, 34),
    "scikit-learn": (1, 5), "mlflow": (3, 7), "snakemake": (9, 0),
}  # fmt: skip
_LEAST_DISK_GB, _LEAST_MEMORY_GIB = 1, 2


def command(
    drill: Annotated[
        bool,
        typer.Option("--drill", help="Kill tiny runs, damage their files, fill their disk; are the results equal?"),
    ] = False,
    kills: Annotated[int, typer.Option("--kills", min=0, help="Drill: runs to kill at a random moment.")] = 20,
    jobs: Annotated[int, typer.Option("--jobs", min=1, help="Drill: runs to kill beside each other.")] = 1,
    seed: Annotated[
        int | None,
        typer.Option("--seed", min=0, help="Drill: seed of targets, signals and moments; default: a new one."),
    ] = None,
    domain: Annotated[
        list[str] | None, typer.Option("--domain", help="Drill: domain to run; may be repeated. Default all.")
    ] = None,
    out: Annotated[Path, typer.Option("--out", help="Drill: folder to work in, on a disk that all nodes see.")] = Path(
        "drill"
    ),
    profile: Annotated[str, typer.Option("--profile", help="Drill: local, slurm, or a folder.")] = "local",
    write: Annotated[Path | None, typer.Option("--write", help="Drill: page to write, docs/drill.md.")] = None,
    as_json: Json = False,
) -> None:
    """Check versions, devices, disk, cluster and store; or drill faults. Example: appssl doctor --drill --kills 5"""
    import json

    from appssl.errors import AppsslError

    if drill:
        _drill(kills, jobs, seed, domain or [], out, profile, write, as_json)
        return
    rows = [
        _python(), *_packages(), _openslide(), *_vulnerabilities(), _devices(), _folder(), _disk(), _memory(),
        _quiet(), _cluster(), _store(),
    ]  # fmt: skip
    if as_json:
        typer.echo(json.dumps(rows, indent=1))
    else:
        for row in rows:
            typer.echo(f"{row['state']:8s} {row['what']:20s} {row['detail']}")
    if any(row["state"] == "MISSING" for row in rows):
        raise AppsslError("something that appssl needs is missing; the lines above say what to do.")


def _drill(
    kills: int,
    jobs: int,
    seed: int | None,
    domains: list[str],
    out: Path,
    profile: str,
    write: Path | None,
    as_json: bool,
) -> None:
    import datetime
    import json
    import os

    from appssl import bundle
    from appssl.artifact import write_bytes
    from appssl.drill import harness
    from appssl.drill.page import page, table
    from appssl.errors import AppsslError
    from appssl.runner import profile_folder

    folder = profile_folder(profile)
    place = profile if profile in bundle.profiles() else str(folder.resolve())  # runs are given from other folders
    seed = int.from_bytes(os.urandom(4), "big") if seed is None else seed
    typer.echo(f"seed {seed}", err=True)
    found = harness.drill(
        out, domains=harness.known(domains), kills=kills, jobs=jobs, seed=seed, profile=place,
        say=lambda line: typer.echo(line, err=True),
    )  # fmt: skip
    typer.echo(json.dumps(found.plain(), indent=1) if as_json else table(found))
    if write is not None:
        write_bytes(write, page(found, date=datetime.date.today().isoformat()).encode())
    if found.unexpected:
        raise AppsslError(
            f"{len(found.unexpected)} row(s) were not as expected: a fault of appssl or of this machine. Report the "
            f"rows above with the seed {seed}, and 'appssl doctor --json'; what was left lies in {out}."
        )


def _row(what: str, state: str, detail: str) -> dict[str, Any]:
    """State: ok, none (not there, not needed for the base), MISSING."""
    return {"what": what, "state": state, "detail": detail}


def _parts(version: str) -> tuple[int, ...]:
    """`4.0.1-rc2` -> (4, 0, 1)."""
    import re

    return tuple(int(part) for part in re.findall(r"\d+", version)[:3])


def _python() -> dict[str, Any]:
    import platform
    import sys

    good = sys.version_info >= (3, 11)
    detail = platform.python_version() + ("" if good else "; 3.11 is needed: make a virtual environment with it")
    return _row("python", "ok" if good else "MISSING", detail)


def _packages() -> list[dict[str, Any]]:
    from importlib import metadata

    rows = []
    for name, least in _PACKAGES.items():
        wanted = f"pip install '{name}>={'.'.join(map(str, least))}'"
        try:
            version = metadata.version(name)
        except metadata.PackageNotFoundError:
            rows.append(_row(name, "MISSING", f"not installed; {wanted}"))
            continue
        good = _parts(version) >= least
        rows.append(_row(name, "ok" if good else "MISSING", version if good else f"{version} is too old; {wanted}"))
    return rows


def _openslide() -> dict[str, Any]:
    try:
        import openslide
    except (ImportError, OSError) as error:
        return _row("openslide", "MISSING", f"{error}; pip install openslide-python openslide-bin")
    version = openslide.__library_version__
    if _parts(version) < (4, 0, 1):
        detail = f"{version} has two known vulnerabilities; pip install -U 'openslide-bin>=4.0.1'"
        return _row("openslide", "MISSING", detail)
    return _row("openslide", "ok", version)


def _vulnerabilities() -> list[dict[str, Any]]:
    from appssl.vulnerabilities import REPAIRED, installed_with_vulnerabilities

    rows = [
        _row(
            f"safety of {old.package}",
            "MISSING",
            f"{version}: {old.what} ({old.advisory}); pip install -U '{old.package}>={old.since}'",
        )
        for old, version in installed_with_vulnerabilities()
    ]
    return rows or [_row("known weaknesses", "ok", f"none of the {len(REPAIRED)} that appssl knows of its packages")]


def _devices() -> dict[str, Any]:
    import os

    try:
        import torch
    except (ImportError, OSError) as error:
        return _row("cuda", "MISSING", f"torch does not import: {error}; pip install --force-reinstall torch")
    if not torch.cuda.is_available():
        return _row("cuda", "none", f"no CUDA device; {os.cpu_count()} CPU cores are used")
    names = [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())]
    bf16 = "works" if torch.cuda.is_bf16_supported() else "does not work"
    return _row("cuda", "ok", f"{', '.join(names)}; bf16 {bf16}")


def _folder() -> dict[str, Any]:
    import tempfile
    from pathlib import Path

    try:
        with tempfile.TemporaryFile(dir="."):
            return _row("folder", "ok", f"{Path.cwd()} can be written")
    except OSError as error:
        return _row("folder", "MISSING", f"{Path.cwd()} cannot be written ({error.strerror}); change to another one")


def _disk() -> dict[str, Any]:
    import shutil

    free = shutil.disk_usage(".").free / 1e9
    if free < _LEAST_DISK_GB:
        return _row(
            "disk", "MISSING", f"{free:.1f} GB free here, {_LEAST_DISK_GB} is needed; free space or change disk"
        )
    return _row("disk", "ok", f"{free:.0f} GB free here")


def _memory() -> dict[str, Any]:
    from pathlib import Path

    try:
        lines = dict(line.split(":", 1) for line in Path("/proc/meminfo").read_text().splitlines())
        free = int(lines["MemAvailable"].split()[0]) / 2**20
    except (OSError, ValueError, KeyError):
        return _row("memory", "none", "cannot be read on this system")
    if free < _LEAST_MEMORY_GIB:
        return _row("memory", "MISSING", f"{free:.1f} GiB available, {_LEAST_MEMORY_GIB} is needed; end other programs")
    return _row("memory", "ok", f"{free:.1f} GiB available")


def _quiet() -> dict[str, Any]:
    import os

    wanted = {"NO_ALBUMENTATIONS_UPDATE": ("1", "true"), "MLFLOW_DISABLE_TELEMETRY": ("1", "true")}
    loud = [name for name, values in wanted.items() if os.environ.get(name, "").lower() not in values]
    if loud:
        return _row("phoning home", "none", f"on, by your environment; unset {' and '.join(loud)}")
    return _row("phoning home", "ok", "off: albumentations' version check, MLflow's telemetry")


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
    if problem:
        detail = f"{masked(uri)}: {problem}; start it or unset MLFLOW_TRACKING_URI. Metrics wait beside the results"
        return _row("mlflow store", "none", detail)
    return _row("mlflow store", "ok", masked(uri))
