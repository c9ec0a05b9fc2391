"""What `--profile slurm` says where there is no SLURM; with one, see tests/cluster."""

import base64
import json
import os
import shlex
import subprocess
import sys
import time
import zlib
from types import SimpleNamespace

import pytest

from appssl import bundle, slurm, slurm_job
from appssl.errors import AppsslError
from appssl.slurm_workflow import Changes, is_mere_command, wait
from tests.commands import appssl


def test_other_profiles_need_nothing(tmp_path):
    assert slurm.options(bundle.profile("local")) == []
    assert slurm.options(tmp_path) == []  # a profile of another version's file name


def test_without_slurm_it_is_said_what_to_do(monkeypatch):
    monkeypatch.setenv("PATH", "")
    with pytest.raises(AppsslError, match=r"no SLURM on this machine .* leave --profile slurm out"):
        slurm.options(bundle.profile("slurm"))


@pytest.mark.parametrize(
    ("kind", "expected"),
    [("accounting_storage/slurmdbd", True), ("accounting_storage/none", False), ("(null)", False), ("", False)],
)
def test_accounting_is_what_the_controller_says(kind, expected):
    assert slurm._is_accounted({"AccountingStorageType  ": f" {kind}"}) is expected
    assert not slurm._is_accounted({})


def test_the_wait_between_looks_is_a_share_of_the_time_in_which_nothing_changed():
    assert [wait(quiet, 2.0) for quiet in (0, 39, 200, 1200, 1e6)] == [2, 2, 10, 60, 60]
    assert wait(10, 90.0) == 90  # a profile that asks seldom is not overruled


def test_a_change_is_a_job_that_was_submitted_or_has_ended(monkeypatch):
    now = 100.0
    monkeypatch.setattr(time, "monotonic", lambda: now)
    changes = Changes()
    assert changes.seconds({"1"}, {"1"}) == 0
    now += 30
    assert changes.seconds({"1"}, {"1"}) == 30
    assert changes.seconds({"1", "2"}, {"1", "2"}) == 0
    now += 5
    assert changes.seconds({"1", "2"}, {"2"}) == 0
    now += 7
    assert changes.seconds({"2"}, {"2"}) == 7


def test_a_script_is_for_a_cluster(tmp_path):
    done = appssl("run", "wearable/demo", "--script", "jobs", cwd=tmp_path)
    assert done.code == 2
    assert "--script writes jobs for SLURM or Kubernetes: give --profile slurm or kubernetes with it" in done.err


def job(command, **other):
    paths = {"inputs": [], "outputs": [], "logs": []}
    return {"command": command, "threads": 3, "patience": 5, **paths, **other}


def run(words, **variables):
    return subprocess.run(shlex.split(words), env=os.environ | variables, capture_output=True, text=True)


def test_a_job_runs_its_command_as_snakemake_would(tmp_path):
    log, made, given = tmp_path / "logs/deep/a.log", tmp_path / "made/manifest.json", tmp_path / "in put"
    made.parent.mkdir()
    made.write_text("of an earlier attempt")
    given.touch()
    command = f'test ! -e {made}; echo $OMP_NUM_THREADS "it\'s" 2> {log}'
    paths = {"inputs": [str(given)], "outputs": [str(made)], "logs": [str(log)]}
    words = slurm_job.words(sys.executable, job(command, **paths))
    assert not set(words.removeprefix(sys.executable)) & set(
        "\"'$`\\;|&<>(){}*?!"
    )  # sbatch and shells leave it as it is
    done = run(words)
    assert (done.returncode, done.stdout) == (0, "3 it's\n"), done.stderr
    assert log.exists()
    assert not made.exists()


@pytest.mark.parametrize(("command", "code"), [("exit 7; true", 7), ("false | true", 1), ("false; true", 1)])
def test_a_job_ends_as_its_command(tmp_path, command, code):
    assert run(slurm_job.words(sys.executable, job(command))).returncode == code


def test_a_job_waits_until_its_inputs_are_seen(tmp_path):
    late, packed = tmp_path / "late", job("true", inputs=[str(tmp_path / "late")], patience=1)
    done = run(slurm_job.words(sys.executable, packed))
    assert done.returncode == 1
    assert done.stderr == f"not seen on this node within 1 s: {late}\n"
    with subprocess.Popen(shlex.split(slurm_job.words(sys.executable, packed | {"patience": 60}))) as waiting:
        time.sleep(0.5)
        assert waiting.poll() is None
        late.touch()
        assert waiting.wait(timeout=30) == 0


@pytest.mark.parametrize(("task", "said"), [(None, "one"), ("4", "one"), ("5", "two"), ("6", "three")])
def test_a_task_of_an_array_does_its_own_job(task, said):
    """The first task is given its words alone, the others theirs in what Snakemake's plugin adds to them."""
    all_words = [slurm_job.words(sys.executable, job(f"echo {word}")) for word in ("one", "two", "three")]
    others = {str(n): zlib.compress(words.encode()).hex() for n, words in enumerate(all_words[1:], start=5)}
    added = "--slurm-jobstep-array-execs=" + base64.b64encode(json.dumps(others).encode()).decode()
    variables = {} if task is None else {"SLURM_ARRAY_TASK_ID": task}
    assert run(f"{all_words[0]} {shlex.quote(added)}", **variables).stdout == f"{said}\n"


@pytest.mark.parametrize(
    ("change", "is_mere"),
    [
        ({}, True),
        ({"job.is_group": lambda: True}, False),
        ({"job.rule": SimpleNamespace(shellcmd=None)}, False),
        ({"job.is_shadow": True}, False),
        ({"job.benchmark": "times.tsv"}, False),
        ({"job.output": [SimpleNamespace(flags={"temp": True})]}, False),
        ({"storage_settings.default_storage_provider": "s3"}, False),
        ({"remote_execution_settings.precommand": "module load python"}, False),
        ({"deployment_settings.deployment_method": {"conda"}}, False),
    ],
)
def test_what_snakemake_has_more_to_do_for_is_left_to_it(change, is_mere):
    plain = [SimpleNamespace(flags={})]
    made = SimpleNamespace(
        is_group=lambda: False, rule=SimpleNamespace(shellcmd="true"), is_shadow=False, benchmark=None,
        input=plain, output=plain,
    )  # fmt: skip
    workflow = SimpleNamespace(
        job=made,
        storage_settings=SimpleNamespace(default_storage_provider=None),
        remote_execution_settings=SimpleNamespace(precommand=None),
        deployment_settings=SimpleNamespace(deployment_method=set()),
    )
    for name, value in change.items():
        part, _, field = name.partition(".")
        setattr(getattr(workflow, part), field, value)
    assert is_mere_command(workflow, made) is is_mere
