import json
import subprocess
import sys
import textwrap

import pytest

from appssl.artifact import Artifact
from appssl.errors import AppsslError, ArtifactError, DataError
from appssl.ops.journal import read_events
from appssl.plan import StageConfig
from appssl.recipe import Evaluate
from appssl.stages.frame import failure_noted, locked, read_run, run_stage, surroundings
from tests.commands import REPOSITORY, environment


def config(num_bootstrap=100, seed=0):
    return StageConfig("evaluate", "wsi", "tiny", seed, Evaluate(num_bootstrap=num_bootstrap))


def work(calls, fail=None):
    def do(inputs, writer, journal):
        calls.append(1)
        writer.json("metrics.json", {"calls": len(calls)})
        journal.metrics(1, {"eval/accuracy": 0.5})
        if fail:
            raise fail
        return {"num_evaluators": 1}

    return do


def run(out, calls, fail=None, inputs=None, **values):
    return run_stage(config(**values), out, inputs or {}, work(calls, fail), method="classification")


def statuses(out):
    return [(e["event"], e.get("status")) for e in read_events(out / "metrics.jsonl") if e["event"] != "metrics"]


def test_the_work_is_done_once(tmp_path):
    calls = []
    first = run(tmp_path, calls)
    assert run(tmp_path, calls).digest == first.digest
    assert len(calls) == 1
    assert read_run(tmp_path)["num_evaluators"] == 1
    assert read_run(tmp_path)["seconds"] >= 0
    assert statuses(tmp_path) == [("start", None), ("finish", "FINISHED")]
    assert not (tmp_path / "state").exists()


def test_other_settings_another_seed_or_a_damaged_file_are_done_again(tmp_path):
    calls = []
    run(tmp_path, calls)
    run(tmp_path, calls, num_bootstrap=200)
    run(tmp_path, calls, num_bootstrap=200, seed=1)
    (tmp_path / "metrics.json").write_text("{}")
    run(tmp_path, calls, num_bootstrap=200, seed=1)
    assert len(calls) == 4
    assert json.loads((tmp_path / "metrics.json").read_text()) == {"calls": 4}


def test_a_changed_input_is_noticed(tmp_path):
    calls = []
    for num_bootstrap in (100, 300):
        run(tmp_path / "in", [], num_bootstrap=num_bootstrap)
        run(tmp_path / "out", calls, inputs={"compare:other": tmp_path / "in"})
    assert len(calls) == 2


def test_a_damaged_input_is_noted_as_the_failure_of_the_stage_that_reads_it(tmp_path):
    run(tmp_path / "in", [])
    (tmp_path / "in" / "manifest.json").write_text("{")
    with pytest.raises(ArtifactError, match="damaged"):
        run(tmp_path / "out", [], inputs={"compare:other": tmp_path / "in"})
    noted = json.loads((tmp_path / "out" / "failed.json").read_text())
    assert noted["exit_code"] == 3
    assert "in/manifest.json: is damaged" in noted["message"]


def test_a_failure_is_noted_with_its_exit_code_and_forgotten_after_success(tmp_path):
    with pytest.raises(DataError):
        run(tmp_path, [], fail=DataError("the table is empty"))
    noted = json.loads((tmp_path / "failed.json").read_text())
    assert noted == {"stage": "evaluate", "message": "the table is empty", "exit_code": 3}
    assert statuses(tmp_path)[-1] == ("finish", "FAILED")
    assert not (tmp_path / "manifest.json").exists()
    run(tmp_path, [])
    assert not (tmp_path / "failed.json").exists()
    assert statuses(tmp_path) == [("start", None), ("finish", "FAILED"), ("resume", None), ("finish", "FINISHED")]


def test_an_unexpected_error_is_noted_too_even_without_words(tmp_path):
    with pytest.raises(KeyboardInterrupt), failure_noted(tmp_path, "finetune"):
        raise KeyboardInterrupt
    noted = json.loads((tmp_path / "failed.json").read_text())
    assert noted == {"stage": "finetune", "message": "KeyboardInterrupt", "exit_code": 1}


def test_state_is_kept_for_the_same_settings_and_thrown_away_for_others(tmp_path):
    def leave(inputs, writer, journal):
        (tmp_path / "state" / "checkpoint").write_text("x")
        raise DataError("stopped")

    def look(inputs, writer, journal):
        found.append((tmp_path / "state" / "checkpoint").exists())
        raise DataError("stopped")

    found = []
    for wanted, task in ((100, leave), (100, look), (200, look)):
        with pytest.raises(DataError):
            run_stage(config(wanted), tmp_path, {}, task, method="x")
    assert found == [True, False]


def test_a_kill_just_after_the_manifest_is_made_up_for(tmp_path):
    """What follows the manifest is the end of the journal and the removal of `state`."""
    artifact = run(tmp_path, [])
    lines = (tmp_path / "metrics.jsonl").read_text().splitlines(keepends=True)
    (tmp_path / "metrics.jsonl").write_text("".join(lines[:-1]))
    (tmp_path / "state").mkdir()
    run(tmp_path, [])
    assert statuses(tmp_path) == [("start", None), ("finish", "FINISHED")]
    assert list(read_events(tmp_path / "metrics.jsonl"))[-1]["artifact_digest"] == artifact.digest
    assert not (tmp_path / "state").exists()


WAITING = """
    import sys
    from pathlib import Path
    from appssl.stages.frame import locked
    with locked(Path(sys.argv[1])):
        print("mine", flush=True)
        sys.stdin.readline()
"""


def holder(folder):
    command = [sys.executable, "-c", textwrap.dedent(WAITING), str(folder)]
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    return subprocess.Popen(command, cwd=REPOSITORY, env=environment(), **pipes)


def test_a_second_process_waits_says_so_and_goes_on_when_the_first_is_killed(tmp_path):
    first = holder(tmp_path)
    assert first.stdout.readline() == "mine\n"
    second = holder(tmp_path)
    assert "another process works here; waiting for it" in second.stderr.readline()
    first.kill()
    first.communicate()
    assert second.stdout.readline() == "mine\n"
    second.communicate("done\n")
    assert second.returncode == 0


def test_a_folder_that_cannot_be_made_says_what_to_choose(tmp_path):
    (tmp_path / "file").write_text("")
    with (
        pytest.raises(AppsslError, match=r"file/out: cannot be written: .*Choose another --out"),
        locked(tmp_path / "file" / "out"),
    ):
        pass


def test_an_artifact_of_another_kind_is_not_taken_for_the_result(tmp_path):
    run(tmp_path, [])
    manifest = json.loads((tmp_path / "manifest.json").read_text())
    (tmp_path / "manifest.json").write_text(json.dumps({**manifest, "kind": "model"}))
    calls = []
    assert run(tmp_path, calls).kind == "evaluation"
    assert calls == [1]


def test_surroundings_name_versions_and_hardware_and_a_missing_record_is_empty(tmp_path):
    found = surroundings()
    assert found["packages"]["torch"]
    assert found["hardware"]["cpus"] >= 1
    assert read_run(tmp_path) == {}


def test_what_is_recorded_beside_is_not_in_the_manifest(tmp_path):
    assert list(run(tmp_path, []).manifest["files"]) == ["metrics.json"]
    assert {p.name for p in tmp_path.iterdir()} == {
        "manifest.json",
        "metrics.json",
        "metrics.jsonl",
        "run.json",
        ".lock",
    }
    Artifact.open(tmp_path, "evaluation")
