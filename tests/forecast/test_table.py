import shutil
from types import SimpleNamespace

import pytest

from appssl.errors import SettingsError
from appssl.forecast import table as tables
from appssl.forecast.measuring import Cost
from appssl.forecast.table import Forecast, Row, as_text, clock, refuse_what_cannot_fit, seconds_on, totals

NEEDS = {"cpus": 2, "gpus": 0, "mem_gb": 4, "minutes": 10}
GIB = 2**30


def row(job, seconds=60.0, *, count=1, done=False, memory=GIB, size=1000, after=(), **needs):
    return Row(job, count, done, "probed", seconds, 2 * seconds, memory, size, tuple(after), {**NEEDS, **needs})


@pytest.fixture
def plan(tmp_path):
    runs = {"wsi": {"mine": {"s0": {"data": "wsi-1", "file": "mine.yaml"}}}}
    return {"results": str(tmp_path / "not" / "there"), "runs": runs}


def forecast(*rows):
    return Forecast(rows, totals(rows, cores=2, resolve=None, workflow=None))


def refused(plan, *rows):
    with pytest.raises(SettingsError) as error:
        refuse_what_cannot_fit(plan, forecast(*rows))
    assert error.value.exit_code == 2
    return [str(problem) for problem in error.value.problems]


def test_what_fits_is_not_refused(plan):
    limits = row("wsi/mine/s0/pretrain", 600.0, memory=4 * GIB)
    refuse_what_cannot_fit(plan, forecast(limits, row("data/wsi-1"), row("wsi/mine/s0/report", 99_999.0)))


def test_all_that_takes_too_long_is_named_with_its_setting(plan):
    assert refused(plan, row("wsi/mine/s0/pretrain", 1200.0), row("wsi-1-shards", 1800.0, count=3)) == [
        "mine.yaml: needs.pretrain.minutes allows 10, and wsi/mine/s0/pretrain would take 20. Raise it to 25.",
        "mine.yaml: needs.prepare.minutes allows 10, and wsi-1-shards would take 30. Raise it to 38 or data.shards.",
    ]


def test_more_memory_than_is_allowed_is_refused(plan):
    assert refused(plan, row("wsi/mine/s0/finetune", memory=6 * GIB)) == [
        "mine.yaml: needs.finetune.mem_gb allows 4 GiB, and wsi/mine/s0/finetune would take 6.0. Raise it to 8."
    ]


def test_more_memory_than_the_machine_has_is_refused(plan, monkeypatch):
    monkeypatch.setattr(tables, "memory_here", lambda: 2 * GIB)
    (said,) = refused(plan, row("wsi/mine/s0/evaluate", memory=3 * GIB))
    assert "would take 3.0 GiB of memory, and this machine has 2.0" in said


def test_more_than_the_disk_holds_is_refused(plan, tmp_path, monkeypatch):
    asked = []
    monkeypatch.setattr(
        shutil, "disk_usage", lambda folder: asked.append(folder) or SimpleNamespace(free=2_000_000_000)
    )
    refuse_what_cannot_fit(plan, forecast(row("data/wsi-1", size=2_000_000_000)))
    (said,) = refused(plan, row("wsi-1-shards", size=1_000_000_000, count=3))
    assert "would take 3.0 GB, and 2.0 GB are free there" in said
    assert set(asked) == {tmp_path}  # the nearest folder that is there


def test_what_is_done_is_never_refused_and_not_summed(plan):
    done = row("wsi/mine/s0/pretrain", 9e9, memory=999 * GIB, size=10**18, done=True)
    refuse_what_cannot_fit(plan, forecast(done))
    sums = forecast(done).totals
    assert (sums.jobs, sums.seconds, sums.bytes, sums.memory, sums.cpu_seconds) == (0, 0, 0, 0, 0)


def test_jobs_run_beside_each_other_where_cores_are_free():
    shards = row("shards", 10.0, count=4, cpus=1)
    merge = row("data", 5.0, after=["shards"], cpus=1)
    train = row("train", 7.0, after=["data"], cpus=2)
    also = row("also", 7.0, after=["data"], cpus=2)
    rows = [shards, merge, train, also]
    assert seconds_on(rows, 1) == 4 * 10 + 5 + 7 + 7
    assert seconds_on(rows, 2) == 2 * 10 + 5 + 7 + 7
    assert seconds_on(rows, 4) == 10 + 5 + 7
    assert seconds_on(rows, None) == 10 + 5 + 7


def test_a_job_waits_only_for_what_is_to_do():
    assert seconds_on([row("train", 7.0, after=["data"])], 2) == 7.0
    assert seconds_on([], 2) == 0.0


def test_sums_hold_the_workflow_and_every_start():
    light, workflow = Cost(1.0, 0.5, 0, 0, 0, 0.0), Cost(10.0, 8.0, 0, 0, 0, 0.0)
    rows = [row("x-shards", 4.0, count=2, cpus=1), row("data/x", 6.0, after=["x-shards"]), row("a", 30.0, gpus=2)]
    sums = totals(rows, cores=2, resolve=light, workflow=workflow, upload=Cost(99.0, 7.0, 0, 0, 0, 0.0))
    assert sums.seconds == 10 + 1 + seconds_on(rows, 2)
    assert sums.cpu_seconds == 8 + 7 + 2 * 0.5 + 2 * (2 * 4 + 6 + 30)
    assert (sums.jobs, sums.bytes, sums.memory) == (4, 4000, GIB)
    assert sums.gpu_hours == pytest.approx(30 * 2 / 3600)


def test_the_table_says_where_gpu_hours_come_from():
    rows = [row("wsi/mine/s0/pretrain", 3600.0, gpus=1), row("data/wsi-1", done=True)]
    text = as_text(Forecast(rows, totals(rows, cores=2, resolve=None, workflow=None), on_cpu=True))
    assert "1.00 GPU-hours (measured on CPU: there is no GPU here)" in text
    assert "done, probed" in text


@pytest.mark.parametrize(
    ("seconds", "said"), [(5.12, "5.1 s"), (200, "3:20 min"), (3599.4, "59:59 min"), (45_000, "12:30 h")]
)
def test_times_are_read_easily(seconds, said):
    assert clock(seconds) == said
