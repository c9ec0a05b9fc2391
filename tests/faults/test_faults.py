"""What can happen to a run, and its one expected outcome."""

import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time

import pytest

from tests.commands import appssl, environment, killed
from tests.workflows.conftest import CHAIN, finished

pytestmark = pytest.mark.slow  # every test runs whole commands

__all__ = ["finished"]
KILLS = int(os.environ.get("APPSSL_KILLS", "3"))


def digests(project):
    """Manifests of all results, by their folder."""
    root = project / "results"
    return {path.parent.relative_to(root).as_posix(): path.read_bytes() for path in root.rglob("manifest.json")}


@pytest.fixture
def project(finished, tmp_path):
    shutil.copytree(finished, tmp_path / "p", copy_function=shutil.copy2)
    return tmp_path / "p"


def test_killed_at_random_moments_the_same_command_ends_with_the_same_digests(finished, tmp_path):
    (tmp_path / "chain.yaml").write_text(CHAIN)
    chosen = random.Random(os.environ.get("APPSSL_KILL_SEED", "1"))
    for _ in range(KILLS):
        if killed("run", "chain.yaml", cwd=tmp_path, after=chosen.uniform(5, 45)) is not None:
            break
    done = appssl("run", "chain.yaml", cwd=tmp_path)
    assert done.code in (0, 5), done.err
    assert digests(tmp_path) == digests(finished)


@pytest.mark.parametrize("stage", ["prepare", "pretrain", "pseudolabel", "finetune", "evaluate", "report"])
def test_a_stage_killed_by_itself_is_repeated_with_the_same_bytes(project, stage):
    folder = (
        next(project.glob("results/data/*")) if stage == "prepare" else project / "results/wearable/chain/s0" / stage
    )
    before = (folder / "manifest.json").read_bytes()
    (folder / "manifest.json").unlink()
    command = [sys.executable, "-m", "appssl", "run", "chain.yaml"]
    process = subprocess.Popen(
        command, cwd=project, env=environment(), stderr=subprocess.DEVNULL, stdout=subprocess.DEVNULL
    )
    deadline = time.monotonic() + 120
    victim = None
    while victim is None and time.monotonic() < deadline and process.poll() is None:
        found = subprocess.run(
            ["pgrep", "-f", f"appssl {stage} .*{project}|appssl {stage} --config results"],
            capture_output=True,
            text=True,
            check=False,
        )
        mine = [
            int(pid) for pid in found.stdout.split() if os.path.realpath(f"/proc/{pid}/cwd") == str(project.resolve())
        ]
        victim = mine[-1] if mine else None
        time.sleep(0.05)
    assert victim is not None, f"no process of {stage} was seen"
    os.kill(victim, signal.SIGKILL)
    process.wait(timeout=120)
    done = appssl("run", "chain.yaml", cwd=project)
    assert done.code in (0, 5), done.err
    assert (folder / "manifest.json").read_bytes() == before


def test_a_second_run_in_the_same_folder_is_refused_with_the_process(project):
    holder = (
        "import sys, time; from pathlib import Path; from appssl.runner import only_run\n"
        "with only_run(Path('results')):\n    print('held', flush=True); time.sleep(60)\n"
    )
    first = subprocess.Popen([sys.executable, "-c", holder], cwd=project, env=environment(), stdout=subprocess.PIPE)
    try:
        assert first.stdout.readline() == b"held\n"
        done = appssl("run", "chain.yaml", cwd=project)
        assert done.code == 1
        assert f"another 'appssl run' (process {first.pid}) works here" in done.err
    finally:
        first.kill()
        first.wait()
    assert appssl("run", "chain.yaml", "--dry-run", cwd=project).code == 0


def test_a_store_that_is_away_warns_once_and_changes_no_result(finished, project):
    shutil.rmtree(project / "results/wearable/chain/s0/report")
    done = appssl("run", "chain.yaml", cwd=project, MLFLOW_TRACKING_URI="http://user:secret@127.0.0.1:9")
    assert done.code in (0, 5), done.err
    assert done.err.count("cannot be reached") == 1
    assert "secret" not in done.err
    assert digests(project) == digests(finished)


@pytest.mark.parametrize(
    ("name", "change"),
    [
        ("pretrain/manifest.json", lambda b: b[:50]),
        ("pretrain/encoder.safetensors", lambda b: b[:-1] + bytes([b[-1] ^ 1])),
        ("pseudolabel/labels.parquet", lambda b: b[: len(b) // 2]),
    ],
)
def test_a_damaged_input_stops_the_stage_that_reads_it_with_its_name(project, name, change):
    run = project / "results/wearable/chain/s0"
    stage = "pseudolabel" if name.startswith("pretrain") else "finetune"
    path = run / name
    times = path.stat()
    path.write_bytes(change(path.read_bytes()))
    os.utime(path, ns=(times.st_atime_ns, times.st_mtime_ns))
    (run / stage / "manifest.json").unlink()
    done = appssl("run", "chain.yaml", cwd=project)
    assert done.code == 3, done.err
    assert path.name in done.err
    assert "damaged" in done.err
    assert appssl("verify", "results", cwd=project).code == 3


def test_a_changed_raw_input_is_prepared_again_and_everything_after_it(project):
    table = next(project.glob("results/synthetic/*/labels.csv"))
    lines = table.read_text().splitlines()
    table.write_text("\n".join(lines[:-1]) + "\n")
    done = appssl("verify", "results", cwd=project)
    assert done.code == 3
    assert "labels.csv" in done.err + done.out


def test_a_failed_stage_leaves_its_reason_and_its_exit_code(tmp_path):
    (tmp_path / "chain.yaml").write_text(CHAIN.replace("batch_size: 16", "batch_size: 100000"))
    done = appssl("run", "chain.yaml", cwd=tmp_path)
    assert done.code == 3
    assert "wearable/chain s0 pretrain: fit.batch_size is 100000, but there are only" in done.err
    failed = json.loads((tmp_path / "results/wearable/chain/s0/pretrain/failed.json").read_text())
    assert failed["exit_code"] == 3
    status = appssl("status", "results", cwd=tmp_path)
    assert "failed   wearable/chain/s0/pretrain" in status.out
    repaired = appssl("run", "chain.yaml", "--set", "pretrain.fit.batch_size=16", cwd=tmp_path)
    assert repaired.code in (0, 5), repaired.err


def test_training_that_diverges_has_exit_code_4_and_saves_its_batch(project):
    done = appssl(
        "run", "chain.yaml", "--set", "pretrain.fit.lr=1e20", "--set", "pretrain.fit.schedule=constant", cwd=project
    )
    assert done.code == 4, done.err
    assert "the loss is not finite at step" in done.err
    assert list((project / "results/wearable/chain/s0/pretrain/state/diverged").glob("batch-*.safetensors"))
