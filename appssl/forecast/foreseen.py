"""What a job will take, from what is known without running anything: input sizes, settings, earlier runs of it."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from appssl import outcome
from appssl.artifact import MANIFEST


def forecast(plan: Mapping[str, Any], name: str, folder: Path) -> dict[str, Any]:
    """`foreseen`: one line; `seconds` and `bytes` where they are known, from the last time this stage ran."""
    earlier = outcome.read_json(folder / "run.json") or {}
    seconds = earlier.get("seconds")
    size = _bytes(folder)
    known = []
    if seconds is not None:
        known.append(f"took {seconds:.0f} s last time")
    if size:
        known.append(f"{size / 1e6:.1f} MB on disk")
    if name.startswith("data/") and not known:
        known.append(_inputs(plan["data"][name.removeprefix("data/").split(" ")[0]]))
    elif not known:
        known.append(_limits(plan, name))
    return {"foreseen": ", ".join(known), "seconds": seconds, "bytes": size}


def _bytes(folder: Path) -> int | None:
    manifest = outcome.read_json(folder / MANIFEST)
    return sum(file["size"] for file in manifest["files"].values()) if manifest else None


def _inputs(data: Mapping[str, Any]) -> str:
    if data["synthetic"]:
        return f"from synthetic data ({data['settings']['make']['size']})"
    size = sum(Path(table).stat().st_size for table in data["tables"] if Path(table).is_file())
    return f"from {len(data['tables'])} table(s), {size / 1e6:.1f} MB"


def _limits(plan: Mapping[str, Any], name: str) -> str:
    run, seed, stage = name.split(" ")
    domain, recipe = run.split("/")
    need = plan["runs"][domain][recipe][seed]["stages"][stage]["needs"]
    return f"allowed {need['minutes']} minutes, {need['mem_gb']:g} GiB, {need['cpus']} CPU cores, {need['gpus']} GPUs"
