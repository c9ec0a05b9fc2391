"""The command line itself: quick to start, explained, the same everywhere."""

import json
import os
import re
import signal
import subprocess
import sys
import time

import polars as pl
import pytest
import typer

from appssl.cli.main import app
from tests.bad_input.conftest import cli
from tests.commands import appssl, environment
from tests.workflows.conftest import CHAIN

__all__ = ["cli"]
HEAVY = ("torch", "mlflow", "polars", "numpy", "pydantic", "snakemake", "sklearn")


def commands(group, prefix=()):
    for name, command in group.commands.items():
        if hasattr(command, "commands"):
            yield from commands(command, (*prefix, name))
        else:
            yield pytest.param((*prefix, name), command, id=" ".join((*prefix, name)))


ALL = list(commands(typer.main.get_command(app)))


def test_help_imports_nothing_heavy():
    code = (
        "import sys; sys.argv = ['appssl', '--help']\n"
        "from appssl.cli.main import main\n"
        "try:\n    main()\nexcept SystemExit:\n    pass\n"
        f"print('HEAVY', [name for name in {HEAVY} if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], env=environment(), capture_output=True, text=True, check=True)
    assert done.stdout.rstrip().endswith("HEAVY []")
    assert "predict" in done.stdout


@pytest.mark.parametrize(("words", "command"), ALL)
def test_every_command_explains_itself_with_an_example_and_every_option_a_meaning(cli, words, command):
    said = cli(*words, "--help")
    assert said.code == 0
    assert "Example: appssl " + " ".join(words) in " ".join(command.help.split())
    for parameter in command.params:
        if parameter.name != "help":
            assert parameter.help, f"{parameter.name} has no help"


def test_the_version_is_that_of_the_package(cli):
    from appssl.version import __version__

    assert cli("--version").out.strip() == f"appssl {__version__}"


def test_wrong_usage_has_exit_code_2(cli):
    assert cli("run").code == 2
    assert cli("rn").code == 2
    assert cli("run", "wearable/demo", "--sed", "1").code == 2


@pytest.mark.parametrize("words", [("list",), ("list", "objectives"), ("list", "recipes"), ("data", "list")])
def test_lists_are_json_for_machines(cli, words):
    said = cli(*words, "--json")
    assert said.code == 0
    assert json.loads(said.out)
    assert cli(*words).out


def test_show_names_settings_with_default_range_and_source(cli):
    text = cli("show", "objectives", "ntxent").out
    assert "temperature" in text
    assert "default 0.1" in text or "default 0.5" in text
    assert "Source" in text


@pytest.mark.parametrize(
    ("words", "code", "message"),
    [
        (("list", "objectivs"), 2, "Did you mean objectives?"),
        (("show", "objectives", "ntxnt"), 2, "Did you mean ntxent?"),
        (("status", "nowhere"), 3, "nowhere"),
        (("verify", "nowhere"), 3, "nowhere"),
        (("trace", "nowhere"), 3, "nowhere"),
        (("reproduce", "nowhere"), 3, "nowhere"),
        (("logs", "nowhere"), 3, "results: no such folder"),
        (("predict", "nowhere", "t.csv", "--out", "p.csv"), 3, "nowhere"),
        (("embed", "nowhere", "t.csv", "--out", "p.csv"), 3, "nowhere"),
        (("data", "get", "cmu-1-small-regoin"), 2, "Did you mean cmu-1-small-region?"),
        (("data", "make", "wearabel", "--out", "x"), 2, "Did you mean wearable?"),
        (("new", "wearabel", "x.yaml", "--table", "t.csv"), 2, "Did you mean wearable?"),
        (("new", "wearable", "x.yaml", "--table", "t.csv"), 3, "t.csv: no such table"),
        (("run", "wearable/demo", "--set", "pretrain.fit.lr"), 2, "write it as key=value"),
    ],
)
def test_what_is_not_there_is_told_with_what_to_do(cli, tmp_path, monkeypatch, words, code, message):
    monkeypatch.chdir(tmp_path)
    said = cli(*words)
    assert said.code == code, said
    assert message in said.err


@pytest.mark.parametrize("domain", ["wsi", "wearable", "webnoisy", "recsys"])
def test_a_new_recipe_is_sound_and_replaces_nothing(cli, tmp_path, monkeypatch, domain):
    monkeypatch.chdir(tmp_path)
    assert cli("data", "make", domain, "--size", "tiny", "--out", "d").code == 0
    table = {"wsi": "slides.csv", "wearable": "recordings.csv", "webnoisy": "table.csv", "recsys": "interactions.csv"}
    words = ("new", domain, "my.yaml", "--table", f"d/{table[domain]}")
    assert cli(*words).code == 0
    said = cli("check", "my.yaml")
    assert said.code == 0, said.err
    assert "no problems found" in said.out
    text = (tmp_path / "my.yaml").read_text()
    again = cli(*words)
    assert (again.code, "--force" in again.err) == (2, True)
    assert (tmp_path / "my.yaml").read_text() == text


@pytest.mark.parametrize(("recipe", "path"), [("my.yaml", "d/slides/empty.tif"), ("elsewhere/my.yaml", "empty.tif")])
def test_a_folder_of_slides_gives_a_table_to_fill_in_and_a_recipe_for_it(cli, tmp_path, monkeypatch, recipe, path):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "elsewhere").mkdir()
    assert cli("data", "make", "wsi", "--size", "tiny", "--out", "d").code == 0
    assert cli("new", "wsi", recipe, "--table", "d/slides").code == 0
    table = (tmp_path / recipe).with_suffix(".csv")
    lines = table.read_text().splitlines()
    assert lines[:2] == ["slide_id,path,patient_id,label,split,mpp,mask_path", f"empty,{path},,,,,"]
    said = cli("check", recipe)
    assert said.code == 0, said.err
    (tmp_path / recipe).unlink()
    kept = cli("new", "wsi", recipe, "--table", "d/slides")
    assert (kept.code, "my.csv exists" in kept.err) == (2, True)
    assert table.read_text().splitlines() == lines


def test_the_table_of_a_folder_filled_in_gives_a_classifier_of_slides(cli, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert cli("data", "make", "wsi", "--size", "tiny", "--out", "d").code == 0
    assert cli("new", "wsi", "my.yaml", "--table", "d/slides").code == 0
    assert "abmil" not in (tmp_path / "my.yaml").read_text()
    table = pl.read_csv(tmp_path / "my.csv")
    filled = table.with_columns(patient_id="P" + table["slide_id"], label=pl.lit("a"))
    filled.write_csv(tmp_path / "my.csv")
    assert cli("new", "wsi", "my.yaml", "--table", "my.csv", "--force").code == 0
    assert "abmil" in (tmp_path / "my.yaml").read_text()
    said = cli("check", "my.yaml")
    assert said.code == 0, said.err


@pytest.mark.slow
def test_a_run_that_is_cancelled_saves_the_training_and_ends_soon(tmp_path):
    (tmp_path / "long.yaml").write_text(
        CHAIN.replace("steps: 12, batch_size: 16", "steps: 1000000, batch_size: 16").replace(
            "_steps: 4", "_steps: 100000"
        )
    )
    command = [sys.executable, "-m", "appssl", "run", "long.yaml"]
    options = {"cwd": tmp_path, "env": environment(), "stderr": subprocess.PIPE, "text": True}
    log = tmp_path / "results/logs/wearable/long/s0/pretrain.log"
    with subprocess.Popen(command, start_new_session=True, **options) as run:
        while not (log.exists() and "training step" in log.read_text()):
            assert run.poll() is None
            time.sleep(0.1)
        assert appssl("cancel", "results", cwd=tmp_path).code == 0
        try:
            said = run.communicate(timeout=60)[1]
        except subprocess.TimeoutExpired:
            os.killpg(run.pid, signal.SIGKILL)  # or it would be waited for, a million steps
            raise
    assert run.returncode == 1, said
    assert re.search(r"stopped on request after step \d+ of 1000000; the same command goes on from here", said)
    assert list((tmp_path / "results/wearable/long/s0/pretrain/state/checkpoints").iterdir())
    states = json.loads(appssl("status", "results", "--json", cwd=tmp_path).out)
    assert not states["running"]
    assert "running" not in [stage["state"] for stage in states["stages"]]


def test_ctrl_c_while_the_workflow_starts_is_not_lost(tmp_path):
    """Python's hooks of a fork swallow what is raised in them."""
    program = (
        "import os, signal, sys, time; from appssl.runner import until_ended\n"
        "os.register_at_fork(after_in_parent=lambda: os.kill(os.getpid(), signal.SIGINT))\n"
        "try: until_ended([sys.executable, '-c', 'import time; time.sleep(100)'], open('log', 'wb'))\n"
        "except KeyboardInterrupt: sys.exit(130)"
    )
    done = subprocess.run([sys.executable, "-c", program], cwd=tmp_path, env=environment(), timeout=60, check=False)
    assert done.returncode == 130


@pytest.mark.slow
def test_ctrl_c_ends_a_run_with_a_word_on_how_it_goes_on(tmp_path):
    command = [sys.executable, "-m", "appssl", "run", "wearable/demo"]
    options = {"cwd": tmp_path, "env": environment(), "stderr": subprocess.PIPE, "text": True}
    with subprocess.Popen(command, start_new_session=True, **options) as run:
        while not (tmp_path / "results/.appssl/snakemake.log").exists():
            assert run.poll() is None
            time.sleep(0.1)
        os.killpg(run.pid, signal.SIGINT)  # as a terminal does
        said = run.communicate(timeout=300)[1]
    assert run.returncode == 130
    assert said.splitlines()[-1] == "stopped; the same command goes on from here"
