"""The same recipe on a real SLURM with two nodes: the same bytes, whoever submits, and after a job was put back."""

import os
import signal
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path

import pytest
from safetensors.torch import load_file

from appssl import bundle
from appssl import slurm as slurm_options
from appssl.ops.journal import read_events
from tests.commands import appssl, environment

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("slurm")]  # every test runs whole commands

CHAIN = """\
description: a short chain
domain: wearable
data:
  make: {size: tiny}
  source: {name: wearable, table: recordings.csv, labels: labels.csv, split: {test: 0.4}}
  shards: 3
  budget: 1
pretrain: {backbone: cnn1d, views: signal, fit: {epochs: 1, batch_size: 32, threads: 1}}
finetune: {finetuner: linear_probe, fit: {epochs: 1, batch_size: 16, threads: 1}}
evaluate: {evaluators: [classification]}
"""
LONG = """\
description: long enough to be stopped while it is pretrained
domain: wearable
data: chain
pretrain:
  backbone: cnn1d
  views: signal
  fit: {steps: 200, batch_size: 32, checkpoint_steps: 10, optimizer: sgd, lr: 0.02, threads: 1, log_every: 1}
"""
STAGES = ("pretrain", "finetune", "evaluate", "report")


def run(folder, *options, recipe="chain"):
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "chain.yaml").write_text(CHAIN)
    (folder / "long.yaml").write_text(LONG)
    done = appssl("run", f"{recipe}.yaml", "--out", "results", *options, cwd=folder)
    assert done.code in (0, 5), done.err  # 5: done, and the made data has damaged recordings
    return folder / "results" / "wearable" / recipe / "s0"


def manifests(place, stages=STAGES):
    return {stage: (place / stage / "manifest.json").read_text() for stage in stages}


def lines(*options):
    shown = subprocess.run(["squeue", "--noheader", *options], capture_output=True, text=True, check=True)
    return shown.stdout.splitlines()


def queue(*options):
    return " ".join(lines(*options)).split()


def wait(is_done, what, seconds=240):
    deadline = time.monotonic() + seconds
    while not is_done():
        assert time.monotonic() < deadline, f"{what}: not within {seconds} s; {queue('--format=%j %T %r')}"
        time.sleep(0.5)


def submit(folder):
    subprocess.run(["bash", folder / "jobs" / "submit.sh"], check=True, capture_output=True)


@pytest.fixture(scope="module")
def local(tmp_path_factory):
    """The short chain, done without a cluster."""
    return manifests(run(tmp_path_factory.mktemp("local")))


def test_the_cluster_is_asked_as_it_can_answer(monkeypatch):
    monkeypatch.setenv("SBATCH_PARTITION", "main")
    found = slurm_options.options(bundle.profile("slurm"))
    assert found[:3] == ["--slurm-status-command", "squeue", "--slurm-no-account"]  # it has no accounting
    assert found[3] == "--default-resources"
    assert found[-1] == "slurm_partition=main"
    both = subprocess.run(
        ["srun", "-N2", "-n2", "printenv", "SLURMD_NODENAME"], capture_output=True, text=True, check=True
    )
    assert sorted(both.stdout.split()) == ["n1", "n2"]


def test_the_workflow_over_slurm_gives_the_same_bytes(local, tmp_path):
    place = run(tmp_path, "--profile", "slurm")
    assert manifests(place) == local
    log = (tmp_path / "results" / ".appssl" / "snakemake.log").read_text()
    assert "Submitted array job" in log  # the shards
    again = appssl("run", "chain.yaml", "--out", "results", "--profile", "slurm", "--dry-run", cwd=tmp_path)
    assert "Nothing to be done" in again.out + again.err  # Snakemake has its records of what jobs did without it


def test_a_job_that_fails_is_named_and_done_again(tmp_path):
    run(tmp_path, "--dry-run")
    changed = CHAIN.replace("batch_size: 16", "batch_size: 16, lr: 1.0e+30")
    (tmp_path / "chain.yaml").write_text(changed)
    options = ["run", "chain.yaml", "--out", "results", "--profile", "slurm"]
    done = appssl(*options, cwd=tmp_path)
    assert done.code == 4, done.err  # diverged
    assert "wearable/chain/s0/finetune/state/diverged" in done.err
    said = [path.read_text() for path in tmp_path.glob(".snakemake/slurm_logs/rule_finetune/**/*.log")]
    assert said  # kept, because it failed
    assert "Building DAG" not in "".join(said)  # the job is the command alone
    (tmp_path / "chain.yaml").write_text(CHAIN)
    assert appssl(*options, cwd=tmp_path).code in (0, 5)


def test_plain_jobs_do_the_same_without_a_workflow_manager(local, tmp_path):
    place = run(tmp_path, "--profile", "slurm", "--script", "jobs")
    assert not (place / "pretrain" / "manifest.json").exists()
    submit(tmp_path)
    assert len(set(queue("--array", "--format=%i"))) >= 7  # synthetic data, three shards, their merging, stages
    wait(lambda: not queue(), "the chain")
    assert manifests(place) == local


def test_a_job_that_is_put_back_in_the_queue_goes_on_and_gives_the_same_bytes(tmp_path):
    expected = manifests(run(tmp_path / "whole", recipe="long"), ("pretrain",))
    place = run(tmp_path / "stopped", "--profile", "slurm", "--script", "jobs", recipe="long")
    submit(tmp_path / "stopped")
    checkpoints = place / "pretrain" / "state" / "checkpoints"
    wait(lambda: list(checkpoints.glob("step-*")), "the first checkpoint")
    (job,) = queue("--name=wearable/long/s0/pretrain", "--format=%i")
    subprocess.run(["scontrol", "requeue", job], check=True)
    log = tmp_path / "stopped/results/logs/wearable/long/s0/pretrain.log"
    wait(lambda: "stopped on request" in log.read_text(), "its end on the node")
    wait(lambda: queue(f"--jobs={job}", "--states=PENDING", "--format=%T") == ["PENDING"], "putting it back")
    assert not (place / "pretrain" / "manifest.json").exists()
    # Not in two minutes, as a cluster would; but not before the node has forgotten the first attempt either.
    subprocess.run(["scontrol", "update", f"JobId={job}", "StartTime=now+10"], check=True)
    wait(lambda: not queue(), "the rest")
    assert manifests(place, ("pretrain",)) == expected
    assert "going on after step" in log.read_text()


def lose(node, job):
    """As without power: nothing on the node says a last word, neither its daemon nor what watches over the job."""
    for marks in ([f"-N {node}", f"slurmstepd: [{job}."], [f"SLURMD_NODENAME={node}"]):
        for place in Path("/proc").glob("[0-9]*"):
            with suppress(OSError):
                words = (place / "cmdline").read_bytes() + b" " + (place / "environ").read_bytes()
                if any(mark in words.decode(errors="replace").replace("\0", " ") for mark in marks):
                    os.kill(int(place.name), signal.SIGKILL)
    subprocess.run(["scontrol", "update", f"NodeName={node}", "State=DOWN", "Reason=lost"], check=True)


@pytest.fixture
def node_that_comes_back():
    lost = []
    yield lost
    for node in lost:
        subprocess.run(["slurmd", "-N", node], check=True)
        wait(lambda node=node: is_back(node), f"{node} being back")


def is_back(node):
    """Asks for the node until it is there: one that is not down yet, or not registered yet, refuses to be resumed."""
    subprocess.run(["scontrol", "update", f"NodeName={node}", "State=RESUME"], capture_output=True)
    shown = subprocess.run(["sinfo", "--noheader", f"--nodes={node}", "--format=%T"], capture_output=True, text=True)
    return shown.stdout.strip() == "idle"


def test_a_job_whose_node_is_lost_goes_on_elsewhere_and_gives_the_same_bytes(tmp_path, node_that_comes_back):
    expected = manifests(run(tmp_path / "whole", recipe="long"), ("pretrain",))
    run(tmp_path / "lost", "--dry-run", recipe="long")
    command = ["appssl", "run", "long.yaml", "--out", "results", "--profile", "slurm"]
    place = tmp_path / "lost/results/wearable/long/s0"
    with subprocess.Popen(
        command, cwd=tmp_path / "lost", env=environment(), stderr=subprocess.PIPE, text=True
    ) as workflow:
        wait(lambda: list((place / "pretrain/state/checkpoints").glob("step-*")), "the first checkpoint")
        ((job, node),) = [line.split() for line in lines("--states=RUNNING", "--format=%i %N")]
        node_that_comes_back.append(node)
        lose(node, job)
        wait(lambda: queue(f"--jobs={job}", "--states=PENDING", "--format=%T") == ["PENDING"], "putting it back", 60)
        subprocess.run(["scontrol", "update", f"JobId={job}", "StartTime=now"], check=True)  # a cluster waits longer
        said = workflow.communicate(timeout=300)[1]
    assert workflow.returncode in (0, 5), said
    assert manifests(place, ("pretrain",)) == expected
    log = (tmp_path / "lost/results/logs/wearable/long/s0/pretrain.log").read_text()
    assert log.count("going on after step") == 1  # by one job, on the other node


def test_a_training_on_two_nodes_is_that_of_one_process(tmp_path):
    place = run(tmp_path, recipe="long")
    data = next((tmp_path / "results" / "data").glob("wearable-*"))
    task = ["srun", "--nodes=2", "--ntasks-per-node=1", "--mem=2000M", sys.executable, "-m", "appssl", "pretrain"]
    options = ["--config", place / "pretrain" / "config.yaml", "--data", data, "--out", tmp_path / "two"]
    command = [*task, *map(str, options), "--accelerator", "cpu", "--devices", "1"]
    env = environment(MASTER_ADDR="127.0.0.1")  # the names of these nodes are not known to the network
    done = subprocess.run(command, cwd=tmp_path, env=env, capture_output=True, text=True, timeout=200)
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == [str(tmp_path / "two" / "manifest.json")]  # one of them writes
    one, two = (load_file(folder / "encoder.safetensors") for folder in (place / "pretrain", tmp_path / "two"))
    losses = [
        [
            e["values"]["train/loss"]
            for e in read_events(folder / "metrics.jsonl")
            if "train/loss" in e.get("values", {})
        ]
        for folder in (place / "pretrain", tmp_path / "two")
    ]
    # Sums in another order. After 30 steps even two runs of one process, 1e-7 apart at the start, differ by 1e-3.
    assert losses[1][:10] == pytest.approx(losses[0][:10], rel=1e-5)
    assert one.keys() == two.keys()


def test_cancel_ends_the_jobs_of_a_run(tmp_path):
    run(tmp_path, "--dry-run")
    process = subprocess.Popen(
        ["appssl", "run", "long.yaml", "--out", "results", "--profile", "slurm"], cwd=tmp_path, env=environment()
    )
    try:
        wait(lambda: queue("--format=%i"), "the first job")
        appssl("cancel", "results", cwd=tmp_path)
        assert process.wait(timeout=120) != 0
        wait(lambda: not queue(), "the end of its jobs", seconds=60)
    finally:
        process.kill()
