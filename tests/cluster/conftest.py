"""A SLURM of its own with two nodes, for the tests of this folder; see `slurm.sh`."""

import os
import shutil
import subprocess
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parent / "slurm.sh"
NEEDED = ("munged", "slurmctld", "slurmd", "sbatch", "squeue", "scontrol")


@pytest.fixture(scope="session")
def slurm():
    path = f"{os.environ['PATH']}:/usr/sbin:/sbin"
    missing = [name for name in NEEDED if shutil.which(name, path=path) is None]
    if missing or os.geteuid() != 0:
        reason = f"missing: {', '.join(missing)}; apt-get install slurm-wlm munge" if missing else "not root"
        pytest.skip(f"NOT TESTED ON A SLURM CLUSTER: {reason}")
    started = subprocess.run([SCRIPT, "start"], env={**os.environ, "PATH": path}, capture_output=True, text=True)
    assert started.returncode == 0, started.stderr
    yield
    subprocess.run([SCRIPT, "stop"], env={**os.environ, "PATH": path}, check=True)
