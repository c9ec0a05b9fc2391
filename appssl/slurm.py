"""What Snakemake's SLURM plugin has to be told of this cluster: how jobs are asked for, and who pays for them."""

import importlib.util
import os
import shutil
import subprocess
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

from appssl.errors import AppsslError


def options(profile: Path) -> list[str]:
    """Options for a profile folder whose executor is slurm; none for other profiles.

    Without accounting, jobs are asked for with `squeue` and have no account. SBATCH_ACCOUNT and SBATCH_PARTITION are
    honoured, as sbatch itself does: the plugin alone would put its own guesses before them.

    Raises:
        AppsslError: if there is no SLURM here, or no plugin for it.
    """
    values = read(profile)
    if values.get("executor") != "slurm":
        return []
    if shutil.which("sbatch") is None or shutil.which("scontrol") is None:
        raise AppsslError(
            "there is no SLURM on this machine (no sbatch or scontrol). Run this on a node that submits jobs, or leave "
            "--profile slurm out."
        )
    if importlib.util.find_spec("snakemake_executor_plugin_slurm") is None:
        raise AppsslError("Snakemake's plugin for SLURM is not installed. Run pip install 'appssl[cluster]'.")
    accounted = has_accounting()
    found = [] if accounted else ["--slurm-status-command", "squeue"]
    if not accounted or "SBATCH_ACCOUNT" in os.environ:
        found.append("--slurm-no-account")
    if partition := os.environ.get("SBATCH_PARTITION"):
        usual = {**(values.get("default-resources") or {}), "slurm_partition": partition}
        found += ["--default-resources", *(f"{name}={value}" for name, value in usual.items())]
    return found


def read(profile: Path) -> dict[str, Any]:
    """A profile's `config.yaml`; empty where it is named otherwise."""
    file = profile / "config.yaml"
    values = yaml.safe_load(file.read_text(encoding="utf-8")) if file.is_file() else {}
    return values if isinstance(values, dict) else {}


def has_accounting() -> bool:
    """Whether `sacct` can say how jobs ended.

    Raises:
        AppsslError: if the controller does not answer.
    """
    asked = subprocess.run(["scontrol", "show", "config"], capture_output=True, text=True, check=False)
    if asked.returncode:
        raise AppsslError(f"the SLURM controller does not answer: {asked.stderr.strip()}. 'sinfo' shows its state.")
    return _is_accounted(dict(line.split("=", 1) for line in asked.stdout.splitlines() if "=" in line))


def _is_accounted(config: Mapping[str, str]) -> bool:
    kinds = {key.strip(): value.strip() for key, value in config.items()}
    return kinds.get("AccountingStorageType", "") not in ("", "(null)", "accounting_storage/none")
