from pathlib import Path

import pytest

from appssl.artifact import write_json
from appssl.batch_jobs import Writing, batch_jobs
from appssl.forecast.law import Point
from appssl.forecast.measuring import Cost
from appssl.forecast.share import Units
from appssl.forecast.trial import Trial, Tried, keys_of, num_steps, probe_folder, representative, step_seconds, todo
from appssl.ops.journal import Journal
from appssl.plan import complete, make_plan

RECIPE = """\
description: nothing runs
domain: recsys
data: {make: {size: tiny}, shards: 3, source: {name: recsys, numeric: [price]}}
pretrain: {backbone: two_tower, views: item_features}
finetune: {finetuner: retrieval}
evaluate: {evaluators: [ranking]}
"""
WRITING = Writing(program="appssl", task="0", task_in_log="0")


@pytest.fixture
def plan(tmp_path):
    file = tmp_path / "mine.yaml"
    file.write_text(RECIPE)
    return make_plan([str(file)], seeds=[3, 5], overrides={}, results=tmp_path / "results", quick=False)


def test_every_seed_is_foreseen_from_the_first(plan):
    jobs = batch_jobs(complete(plan), WRITING)
    places = {representative(plan, job.name) for job in jobs}
    assert {place for place in places if place.startswith("recsys/")} == {
        f"recsys/mine/s3/{stage}" for stage in ("pretrain", "finetune", "evaluate", "report")
    }
    assert representative(plan, "recsys/mine/s5/finetune") == "recsys/mine/s3/finetune"
    for name in ("synthetic/recsys-tiny-0", *(f"data/{key}" for key in plan["data"])):
        assert representative(plan, name) == name


def test_folds_of_seeds_are_foreseen_from_the_first(plan):
    (key,) = plan["data"]
    plan["data"]["recsys-other"] = plan["data"][key]
    plan["runs"]["recsys"]["mine"]["s5"]["data"] = "recsys-other"
    assert representative(plan, "data/recsys-other") == f"data/{key}"
    assert representative(plan, "recsys-other-shards") == f"{key}-shards"


def test_only_what_is_not_done_is_tried(plan):
    assert todo(plan) == [("recsys", "mine", 3), ("recsys", "mine", 5)]
    results = Path(plan["results"])
    for job in batch_jobs(complete(plan), WRITING):
        if not job.shards and "/s5/" not in job.name:
            write_json(results / job.name / "manifest.json", {})
    assert todo(plan) == [("recsys", "mine", 5)]
    (results / "recsys/mine/s3/evaluate/manifest.json").unlink()
    assert len(todo(plan)) == 2


def test_a_job_stands_on_the_data_of_all_before_it(plan):
    (key,) = plan["data"]
    keys = keys_of(batch_jobs(complete(plan), WRITING))
    assert keys.pop("synthetic/recsys-tiny-0") == set()
    assert set(map(frozenset, keys.values())) == {frozenset({key})}


@pytest.mark.parametrize(
    ("fit", "examples", "steps"),
    [
        ({"steps": 70, "epochs": None, "batch_size": 8}, 1000, 70),
        ({"steps": None, "epochs": 3.0, "batch_size": 8}, 103.9, 36),  # an incomplete batch is dropped
        ({"steps": None, "epochs": 0.5, "batch_size": 10}, 70, 4),  # round half to even, as the loop does
        ({"steps": None, "epochs": 0.001, "batch_size": 10}, 100, 1),
    ],
)
def test_steps_are_counted_as_in_training(fit, examples, steps):
    assert num_steps(fit, examples) == steps


def test_the_first_step_does_not_tell_the_time_of_one(tmp_path):
    journal = Journal(tmp_path)
    names = ("domain", "recipe", "stage", "method", "settings_digest", "description")
    journal.start(**dict.fromkeys(names, "x"), seed=0, settings={}, upstream={}, datasets=[])
    for step, seconds in enumerate((0.1, 0.4, 0.3), start=1):
        journal.metrics(step, {"time/step_seconds": seconds})
        journal.metrics(step, {"time/probe_seconds": 0.001})
    assert step_seconds(tmp_path) == 0.3


@pytest.mark.parametrize(
    ("all_steps", "per_epoch", "steps"),
    [(40, 7, 40), (1000, 7, 6 + 98), (1000, 300, 6 + 100), (4, 7, 4)],
)
def test_a_training_is_measured_for_whole_epochs_of_the_time_it_has(
    plan, tmp_path, monkeypatch, all_steps, per_epoch, steps
):
    monkeypatch.setattr("appssl.forecast.trial.step_seconds", lambda folder: 0.1)
    assert Trial(plan, tmp_path, 40.0)._fitting_steps(tmp_path, per_epoch, all_steps) == steps


def test_a_larger_share_is_measured_where_the_time_allows(plan, tmp_path):
    (key,) = plan["data"]
    trial = Trial(plan, tmp_path, 30.0, units={key: Units(1000, 0.001)})
    jobs = [job.name for job in batch_jobs(complete(plan), WRITING)]
    worked = Cost(3.1, 3.0, 0, 0, 0, 3.0)  # a tenth of a second of work each
    trial.tried = {name: Tried([Point(0.01, 0, worked)]) for name in jobs}
    several = sum(key in own for own in keys_of(batch_jobs(complete(plan), WRITING)).values())
    assert trial._larger(key, plan, 0.01) == pytest.approx(0.01 * 10 / (0.1 * several), rel=0.2)
    assert trial._larger(key, plan, 1.0) is None
    slow = Cost(60.0, 3.0, 0, 0, 0, 3.0)
    trial.tried = {name: Tried([Point(0.01, 0, slow)]) for name in jobs}
    assert trial._larger(key, plan, 0.01) is None


def test_a_report_does_not_grow_with_the_data(plan, tmp_path):
    jobs = batch_jobs(complete(plan), WRITING)
    seen = Cost(3.1, 3.0, 0, 0, 1000, 2.0)
    trial = Trial(plan, tmp_path, 30.0, tried={job.name: Tried([Point(0.1, 0, seen)]) for job in jobs})
    rows = [trial.row(job) for job in jobs]
    assert {row.bytes for row in rows if row.job.endswith("/report")} == {1000}
    assert {row.bytes for row in rows if row.job.endswith("/evaluate")} == {10_000}


def test_the_folder_of_a_killed_probe_is_removed_by_the_next_one_and_that_of_a_running_one_is_not(tmp_path):
    left = tmp_path / ".appssl-probe-killed"
    left.mkdir()
    (left / "something").touch()
    with probe_folder(tmp_path) as first:
        assert not left.exists()
        with probe_folder(tmp_path) as second:
            assert first.is_dir()
            assert second.is_dir()
            assert first != second
    assert not list(tmp_path.glob(".appssl-probe-*"))
