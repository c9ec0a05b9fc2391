"""A stage on several devices: one process for each, one of them writes."""

import json
import os
import subprocess
import sys

import pytest

from appssl.artifact import Artifact
from appssl.ops.journal import read_events
from tests.commands import environment
from tests.workflows.test_run import RUN

pytestmark = pytest.mark.slow  # every test runs whole commands

TORCHRUN = ("-m", "torch.distributed.run", "--nproc-per-node", "2", "--standalone", "-m", "appssl")
# What sbatch sets for a job of one task, as the workflow asks for it.
BATCH_JOB = {"SLURM_JOB_ID": "1", "SLURM_JOB_NAME": "x", "SLURM_NTASKS": "1", "SLURM_PROCID": "0", "SLURM_LOCALID": "0",
             "SLURM_NODEID": "0"}  # fmt: skip


def pretrain(project, out, *launcher, **extra):
    """Runs the stage of the finished project again into `out`; two threads would starve two processes on two cores."""
    config, data = project / RUN / "pretrain" / "config.yaml", next(project.glob("results/data/*"))
    arguments = ["pretrain", "--config", config, "--data", data, "--out", out, "--accelerator", "cpu"]
    command = [sys.executable, *(launcher or ("-m", "appssl")), *map(str, arguments), *extra.pop("options", ())]
    return subprocess.run(
        command, env=environment(OMP_NUM_THREADS="1", **extra), capture_output=True, text=True, timeout=300, check=False
    )


@pytest.mark.parametrize(
    ("launcher", "options", "variables"),
    [
        ((), (), {}),
        ((), ("--strategy", "fsdp"), {}),
        (TORCHRUN, (), {}),
        ((), (), BATCH_JOB),
        (TORCHRUN, (), BATCH_JOB),
    ],
    ids=["ddp", "fsdp", "torchrun", "slurm", "torchrun_in_slurm"],
)
def test_two_processes_leave_one_result(finished, tmp_path, launcher, options, variables):
    done = pretrain(finished, tmp_path / "out", *launcher, options=(*options, "--devices", "2"), **variables)
    assert done.returncode == 0, done.stderr
    assert "Starting with 2 processes" in done.stderr
    Artifact.open(tmp_path / "out", "encoder").check()
    events = list(read_events(tmp_path / "out" / "metrics.jsonl"))
    assert [e["event"] for e in events if e["event"] != "metrics"] == ["start", "finish"]
    steps = [e["step"] for e in events if e["event"] == "metrics"]
    assert steps == sorted(set(steps))
    assert json.loads((tmp_path / "out" / "run.json").read_text())["num_steps"] == 12
    assert done.stdout.split() == [str(tmp_path / "out" / "manifest.json")]
    assert not os.path.exists(tmp_path / "out" / "state")


def test_two_processes_of_a_finished_stage_end_at_once(finished, tmp_path):
    out = tmp_path / "out"
    for _ in range(2):
        done = pretrain(finished, out, options=("--devices", "2"))
        assert done.returncode == 0, done.stderr
    assert [e["event"] for e in read_events(out / "metrics.jsonl")].count("start") == 1
