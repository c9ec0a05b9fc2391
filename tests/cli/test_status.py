"""`appssl status`, `logs`, `cancel` on folders of results as runs leave them."""

import json
import os
import subprocess
import sys

import pytest

from appssl.artifact import write_json
from appssl.ops.file_lock import take
from tests.bad_input.conftest import cli

__all__ = ["cli"]


@pytest.fixture
def results(tmp_path):
    """One stage in each state, data and a quick run among them."""
    folder = tmp_path / "results"
    whole = ["data/d-1", "wsi/a/s0/pretrain", "wsi/a/s0/finetune", "wsi/a/s1/pretrain"]
    for root, name in [*(("", name) for name in whole), ("quick", "data/d-2"), ("quick", "wsi/a/s0/pretrain")]:
        (folder / root / name).mkdir(parents=True)
        (folder / root / name / "config.yaml").touch()
        log = folder / root / "logs" / f"{name}{'/prepare' if name.startswith('data') else ''}.log"
        log.parent.mkdir(parents=True, exist_ok=True)
        log.write_text(f"starts\n{root} {name} step 3\n")
    for name in ("data/d-1", "quick/data/d-2", "quick/wsi/a/s0/pretrain"):
        write_json(folder / name / "manifest.json", {})
    write_json(folder / "wsi/a/s0/finetune/failed.json", {"message": "why it failed"})
    return folder


def test_states_of_all_stages_and_of_quick_runs(cli, results):
    lock = take(results / "wsi/a/s0/pretrain/.lock")
    said = json.loads(cli("status", str(results), "--json").out)
    os.close(lock)
    assert said == {
        "running": False,
        "stages": [
            {"stage": "data/d-1", "state": "done", "detail": ""},
            {"stage": "wsi/a/s0/finetune", "state": "failed", "detail": "why it failed"},
            {"stage": "wsi/a/s0/pretrain", "state": "running", "detail": "wsi/a/s0/pretrain step 3"},
            {"stage": "wsi/a/s1/pretrain", "state": "waiting", "detail": ""},
            {"stage": "quick/data/d-2", "state": "done", "detail": ""},
            {"stage": "quick/wsi/a/s0/pretrain", "state": "done", "detail": ""},
        ],
    }
    text = cli("status", str(results)).out
    assert "failed   wsi/a/s0/finetune  why it failed" in text
    assert text.endswith("no run is active\n")


@pytest.mark.parametrize("stage", ["data/d-1", "wsi/a/s0/pretrain", "quick/data/d-2", "quick/wsi/a/s0/pretrain"])
def test_the_log_of_a_stage_as_status_names_it(cli, results, stage):
    said = cli("logs", stage, "--out", str(results))
    assert said.out.splitlines()[1].split(" step ")[0].replace(" ", "/").strip("/") == stage


def test_a_stage_that_has_no_log_is_named_with_the_nearest(cli, results):
    said = cli("logs", "wsi/a/s0/pretrian", "--out", str(results))
    assert (said.code, "Did you mean wsi/a/s0/pretrain?" in said.err) == (3, True)


def test_cancel_asks_the_run_that_holds_the_folder(cli, results):
    assert cli("cancel", str(results)).code == 3
    program = (
        "import sys, time; from pathlib import Path; from appssl.runner import only_run\n"
        "with only_run(Path(sys.argv[1])): print('runs', flush=True); time.sleep(60)"
    )
    run = subprocess.Popen([sys.executable, "-c", program, str(results)], stdout=subprocess.PIPE, text=True)
    assert run.stdout.readline() == "runs\n"
    assert cli("status", str(results)).out.endswith("a run is active\n")
    said = cli("cancel", str(results))
    assert (said.code, str(run.pid) in said.out) == (0, True)
    assert run.wait(10) == -15
