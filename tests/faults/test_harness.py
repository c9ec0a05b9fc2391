"""The drill itself: it finds its targets, it tells equal from different, and it can fail."""

import random
import subprocess
import sys
import time
from pathlib import Path

import pytest

from appssl.drill import harness, page
from appssl.drill.expecting import NOT_TRIED, UNEXPECTED, Case, Fault, NotTried, attempt, expect
from appssl.drill.kills import DIFFERENT, EQUAL, SIGNALS, TARGETS, UNFINISHED, Kill, Reference, Shot, random_shot, trial
from appssl.drill.project import SETTINGS, Project, differing
from appssl.drill.targets import _stage, jobs, processes, stage_now
from appssl.errors import SettingsError
from tests.commands import environment

# A stage of two files, the first of which is kept, as a command that is quick to start.
QUICK = """
import sys, time
from pathlib import Path
from appssl.artifact import ArtifactWriter
time.sleep(0.7)
writer = ArtifactWriter(Path("results/x"), "data", settings_digest="s", inputs={})
writer.bytes("a", b"1")
writer.finish()
"""


class Quick(Project):
    """A project whose command takes a second."""

    script = QUICK

    def command(self, *options):
        return [sys.executable, "-c", self.script, *options]


class Broken(Quick):
    script = "import sys; print('it is broken', file=sys.stderr); sys.exit(3)"


@pytest.fixture
def reference(tmp_path):
    project = Quick(tmp_path / "undisturbed", "wearable")
    assert project.run().is_done
    return Reference(1.0, project.digests(), {})


@pytest.mark.parametrize(
    ("words", "stage"),
    [
        (["python", "/venv/bin/appssl", "pretrain", "--config", "c"], "pretrain"),
        (["python", "-m", "appssl", "finetune"], "finetune"),
        (["python", "/venv/bin/appssl", "data", "make", "wsi"], "make"),
        (["python", "-m", "appssl", "run", "demo.yaml"], ""),
        (["bash", "-c", "set -e; appssl pretrain --config c"], ""),
        (["python", "-m", "snakemake", "--snakefile", "Snakefile"], ""),
        (["python", "-m", "appssl"], ""),
    ],
)
def test_a_stage_is_known_by_its_command_line(words, stage):
    assert _stage(words) == stage


def test_stages_and_their_workers_are_found_by_the_folder_they_work_in(tmp_path):
    code = "import os, time; os.fork(); os.write(1, b'here\\n'); time.sleep(60)"
    process = subprocess.Popen(
        [sys.executable, "-c", code, "appssl", "pretrain"], cwd=tmp_path, stdout=subprocess.PIPE, start_new_session=True
    )
    try:
        assert [process.stdout.readline() for _ in range(2)] == [b"here\n"] * 2
        found = {target.kind: target for target in processes(tmp_path.resolve())}
        assert found.keys() == {"stage", "worker"}
        assert found["stage"].number == str(process.pid)
        assert stage_now(list(found.values())) == "pretrain"
        assert processes(tmp_path.parent.resolve()) == []
        with subprocess.Popen([sys.executable, "-c", "input()"], cwd=tmp_path, stdin=subprocess.PIPE) as somebodys:
            assert str(somebodys.pid) not in {target.number for target in processes(tmp_path.resolve())}
        assert found["worker"].send("SIGKILL")
        assert found["stage"].send("SIGKILL")
        process.wait(timeout=10)
        assert not found["stage"].send("SIGKILL")
    finally:
        process.kill()
        process.wait()


def test_jobs_of_a_cluster_are_those_submitted_from_the_folder_and_get_their_signal(tmp_path, monkeypatch):
    """A stand-in for the two commands; `tests/cluster` has a real SLURM."""
    lines = [f"7_1|{tmp_path}|rule_prepare_shard_wildcards_k,0|id", f"8|{tmp_path}|(null)|mine", "9|/elsewhere|c|n"]
    (tmp_path / "squeue").write_text(f"#!/bin/sh\ncat <<EOF\n{chr(10).join(lines)}\nEOF\n")
    (tmp_path / "scancel").write_text(f'#!/bin/sh\necho "$@" > {tmp_path}/sent\n[ "$3" = 7_1 ]\n')
    for name in ("squeue", "scancel"):
        (tmp_path / name).chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=":")
    first, second = jobs(tmp_path.resolve())
    assert (first.kind, first.stage, first.number) == ("stage", "prepare", "7_1")
    assert (second.stage, second.number) == ("mine", "8")
    assert first.send("SIGUSR1")
    assert (tmp_path / "sent").read_text() == "--signal=USR1 --full 7_1\n"
    assert not second.send("SIGKILL")


def test_a_killed_run_is_started_again_until_it_is_done(reference, tmp_path):
    shots = [Shot("group", "SIGKILL", 0.1), Shot("parent", "SIGTERM", 0.2)]
    rows = trial(Quick(tmp_path / "p", "wearable"), reference, shots)
    assert [(row.target, row.signal, row.attempts, row.outcome) for row in rows] == [
        ("group", "SIGKILL", 3, EQUAL),
        ("parent", "SIGTERM", 3, EQUAL),
    ]
    assert all(row.moment >= shot.moment for row, shot in zip(rows, shots, strict=True))


def test_a_run_that_ends_before_the_signal_is_a_row_without_a_moment(reference, tmp_path):
    (row,) = trial(Quick(tmp_path / "p", "wearable"), reference, [Shot("parent", "SIGKILL", 60.0)])
    assert (row.moment, row.attempts, row.outcome) == (None, 1, EQUAL)


def test_another_digest_is_different_and_a_run_that_never_ends_well_did_not_finish(reference, tmp_path):
    wrong = Reference(1.0, reference.digests | {"y": "0"}, {})
    (row,) = trial(Quick(tmp_path / "p", "wearable"), wrong, [Shot("parent", "SIGKILL", 0.1)])
    assert (row.outcome, row.detail, row.as_expected) == (DIFFERENT, "y", False)
    (row,) = trial(Broken(tmp_path / "q", "wearable"), reference, [Shot("parent", "SIGKILL", 60.0)])
    assert (row.outcome, row.attempts) == (UNFINISHED, 4)
    assert "it is broken" in row.detail


def test_damage_that_the_manifest_does_not_show_is_a_different_digest(reference, tmp_path):
    project = Quick(tmp_path / "p", "wearable")
    project.run()
    (project.folder / "results/x/a").write_bytes(b"2")
    assert differing(project.digests(), reference.digests) == ["x"]


def test_targets_signals_and_moments_are_those_of_the_seed_and_all_occur():
    reference = Reference(100.0, {}, {"stage": [20.0, 40.0], "worker": [50.0]})
    shots = [random_shot(reference, random.Random(number)) for number in range(200)]
    assert shots == [random_shot(reference, random.Random(number)) for number in range(200)]
    assert {(shot.target, shot.signal) for shot in shots} == {(t, s) for t in TARGETS for s in SIGNALS}
    assert {shot.moment for shot in shots if shot.target == "stage"} == {20.0, 40.0}
    parent = [shot.moment for shot in shots if shot.target == "parent"]
    assert 0 <= min(parent) < 20
    assert 80 < max(parent) <= 100


def test_the_settings_are_those_of_the_demos():
    assert set(SETTINGS) == {"wsi", "wearable", "webnoisy", "recsys"}


def test_a_case_that_breaks_is_unexpected_and_one_that_cannot_be_made_is_not(tmp_path):
    project = Quick(tmp_path / "undisturbed", "wearable")

    def outcome(happen):
        name = str(time.monotonic_ns())
        return attempt(Case("c", "e", happen), project, {}, tmp_path / name)

    assert outcome(lambda project, wanted: None).as_expected
    broken = outcome(lambda project, wanted: 1 / 0)
    assert (broken.outcome, broken.detail) == (UNEXPECTED, "ZeroDivisionError: division by zero")
    assert outcome(lambda project, wanted: expect(False, "other")).detail == "other"

    def refuse(project, wanted):
        raise NotTried("no root")

    assert (outcome(refuse).outcome, outcome(refuse).as_expected) == (NOT_TRIED, True)


def test_names_of_cases_are_unique_and_every_one_says_what_is_expected():
    names = [case.name for case in harness.CASES]
    assert len(set(names)) == len(names)
    assert all(len(case.expected) > 20 for case in harness.CASES)


@pytest.fixture
def drilled():
    kills = [
        Kill("wsi", "parent", "SIGKILL", 3.25, "pretrain", 2, EQUAL, trial=1),
        Kill("recsys", "worker", "SIGTERM", None, "ended before", 1, EQUAL, trial=2),
        Kill("wsi", "stage", "SIGUSR1", 9.0, "evaluate", 2, DIFFERENT, "a/evaluate, a/report", trial=3),
    ]
    faults = [Fault("disk | full", "exit code 1", "as expected", "", 2.0), Fault("r", "e", NOT_TRIED, "no root", 0.1)]
    return harness.Drill(7, "local", kills, faults)


def test_the_table_has_every_row_and_the_summary_counts(drilled):
    text = page.table(drilled)
    assert text.splitlines()[1].split() == ["1", "wsi", "parent", "SIGKILL", "3.2", "s", "pretrain", "2", "equal"]
    assert text.splitlines()[-1] == (
        "2 of 3 kills ended with equal digests; 1 of these came after the run had ended; 1 of 2 faults as expected; "
        "1 not tried here (seed 7)"
    )


def test_the_page_has_counts_and_tells_what_was_not_as_expected(drilled):
    text = page.page(drilled, date="2026-01-02")
    assert "2026-01-02, appssl " in text
    assert "| wsi | 2 | 1 |" in text
    assert "| worker | 1 | 1 |" in text
    assert "| disk / full | exit code 1 | as expected |" in text
    assert "not tried: no root" in text
    told = text.split("## Not as expected")[1]
    assert "target stage, signal SIGUSR1" in told
    assert "a/evaluate, a/report" in told
    assert "SIGKILL" not in told


def test_a_folder_with_something_in_it_and_an_unknown_domain_are_refused(tmp_path):
    (tmp_path / "mine").write_text("")
    with pytest.raises(SettingsError, match="is not empty"):
        harness.drill(tmp_path, domains=["wsi"], kills=1, seed=0, profile="local", say=print)
    with pytest.raises(SettingsError, match="There are: wsi, wearable, webnoisy, recsys"):
        harness.known(["wearabel"])
    assert harness.known(["recsys", "recsys"]) == ["recsys"]
    assert harness.known([]) == list(SETTINGS)


def test_what_a_drill_starts_does_not_reach_the_users_store(monkeypatch, tmp_path):
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://example.org")
    project = Quick(tmp_path, "wearable")
    code = "import os, sys; sys.exit('MLFLOW_TRACKING_URI' in os.environ)"
    assert project.ended(project.start([sys.executable, "-c", code])).code == 0
    assert "MLFLOW_TRACKING_URI" not in environment()


def test_a_drill_that_is_killed_leaves_nothing_going(tmp_path):
    sleeps = [sys.executable, "-c", "import time; time.sleep(100)"]
    starts = "import pathlib, time; from appssl.drill.project import Project\n"
    starts += f"print(Project(pathlib.Path({str(tmp_path)!r}), 'wearable').start({sleeps!r}).pid, flush=True)\n"
    starts += "time.sleep(100)"
    drill = [sys.executable, "-c", starts]
    with subprocess.Popen(drill, env=environment(), stdout=subprocess.PIPE, text=True) as process:
        run = int(process.stdout.readline())
        assert is_going(run)
        process.kill()
    deadline = time.monotonic() + 20
    while is_going(run):
        assert time.monotonic() < deadline
        time.sleep(0.05)


def is_going(pid):
    """Not so for one that has ended and that nobody has asked for its end."""
    try:
        return bool(Path(f"/proc/{pid}/cmdline").read_bytes())
    except OSError:
        return False
