"""Journals of stages: append-only, resumed, never doubled, never lost."""

import errno
import json
import math
import os

import pytest

from appssl.ops.journal import (
    JOURNAL,
    Journal,
    cursor_path,
    ended_without_a_word,
    is_pending,
    journals,
    read_cursor,
    read_events,
)
from appssl.version import __version__
from tests.test_tracking import journal


def events(folder):
    return list(read_events(folder / JOURNAL))


def steps(folder):
    return [e["step"] for e in events(folder) if e["event"] == "metrics"]


def sent(folder, offset=None):
    """A cursor that says how far the journal was sent; by default all of it."""
    path = folder / JOURNAL
    size = path.stat().st_size if offset is None else offset
    cursor_path(path).write_text(json.dumps({"key": events(folder)[0]["key"], "run_id": "r", "offset": size}))


def test_a_torn_last_line_is_dropped_and_the_file_goes_on_whole(tmp_path):
    first = journal(tmp_path)
    first.metrics(10, {"train/loss": 1.0})
    with (tmp_path / JOURNAL).open("a") as file:
        file.write('{"event": "metrics", "step": 20, "val')
    again = Journal(tmp_path)
    assert again.last_step == 10
    again.metrics(20, {"train/loss": 0.5})
    assert steps(tmp_path) == [10, 20]


def test_a_garbled_line_costs_only_itself(tmp_path):
    journal(tmp_path).metrics(1, {"a": 1.0})
    with (tmp_path / JOURNAL).open("a") as file:
        file.write('{"event": "met{"event"\n')
    Journal(tmp_path).metrics(2, {"a": 2.0})
    assert steps(tmp_path) == [1, 2]


def test_a_resume_continues_the_run_and_doubles_no_step(tmp_path):
    first = journal(tmp_path)
    for step in (10, 20, 30):
        first.metrics(step, {"train/loss": float(step)})
    again = journal(tmp_path)
    for step in (20, 30, 40):
        again.metrics(step, {"train/loss": float(step)})
    assert [e["event"] for e in events(tmp_path)].count("start") == 1
    assert steps(tmp_path) == [10, 20, 30, 40]


@pytest.mark.parametrize("change", [{"settings_digest": "other"}, {"datasets": []}])
def test_other_settings_or_data_begin_a_new_run(tmp_path, change):
    journal(tmp_path).metrics(10, {"a": 1.0})
    sent(tmp_path)
    other = journal(tmp_path, **change)
    assert other.last_step == 0
    assert [e["event"] for e in events(tmp_path)] == ["start"]
    assert other.is_open


def test_a_finished_stage_begins_a_new_run_and_a_failed_one_goes_on(tmp_path):
    first = journal(tmp_path)
    key = events(tmp_path)[0]["key"]
    first.finish("FAILED", artifact_digest=None, error="it broke")
    assert Journal(tmp_path).is_open
    again = journal(tmp_path)
    assert events(tmp_path)[0]["key"] == key
    again.finish("FINISHED", artifact_digest="x")
    assert not again.is_open
    assert not Journal(tmp_path).is_open
    journal(tmp_path)
    assert events(tmp_path)[0]["key"] != key


def test_a_run_that_was_not_sent_is_kept_when_a_new_one_begins(tmp_path):
    journal(tmp_path).metrics(1, {"a": 1.0})
    key = events(tmp_path)[0]["key"]
    sent(tmp_path, offset=10)
    journal(tmp_path, settings_digest="other")
    aside = tmp_path / f"metrics.{key[:8]}.jsonl"
    assert [e.get("step") for e in read_events(aside)] == [None, 1]
    assert cursor_path(aside) != cursor_path(tmp_path / JOURNAL)
    assert journals(tmp_path) == [aside, tmp_path / JOURNAL]


def test_a_run_that_was_sent_is_replaced(tmp_path):
    journal(tmp_path).metrics(1, {"a": 1.0})
    sent(tmp_path)
    journal(tmp_path, settings_digest="other")
    assert sorted(p.name for p in tmp_path.glob("metrics*")) == [JOURNAL]


def test_values_that_are_not_finite_survive(tmp_path):
    journal(tmp_path).metrics(1, {"a": math.nan, "b": math.inf, "c": 1.5})
    values = events(tmp_path)[-1]["values"]
    assert math.isnan(float(values["a"]))
    assert float(values["b"]) == math.inf
    assert values["c"] == 1.5
    for line in (tmp_path / JOURNAL).read_text().splitlines():
        json.loads(line, parse_constant=pytest.fail)  # strict JSON, readable by anything


def test_a_full_disk_leaves_only_whole_lines(tmp_path, monkeypatch):
    written = journal(tmp_path)
    before = (tmp_path / JOURNAL).read_bytes()
    write, calls = os.write, []

    def full(handle, content):
        calls.append(content)
        if len(calls) == 1:
            return write(handle, content[:5])
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "write", full)
    with pytest.raises(OSError, match="No space"):
        written.metrics(1, {"a": 1.0})
    monkeypatch.undo()
    assert (tmp_path / JOURNAL).read_bytes() == before
    assert written.last_step == 0
    written.metrics(1, {"a": 1.0})
    assert steps(tmp_path) == [1]


def test_a_long_run_is_not_kept_in_memory(tmp_path):
    written = journal(tmp_path)
    for step in range(1, 200):
        written.metrics(step, {"a": 1.0})
    assert not [v for v in vars(written).values() if isinstance(v, list | dict) and len(v) > 50]


def test_the_version_that_wrote_it_is_noted(tmp_path):
    journal(tmp_path)
    assert events(tmp_path)[0]["version"] == __version__


def test_journals_are_found_by_age_and_not_inside_finished_stages(tmp_path):
    for name in ("b", "a"):
        journal(tmp_path / "wearable" / "demo" / "s0" / name)
        (tmp_path / "wearable" / "demo" / "s0" / name / JOURNAL).touch()
    inside = tmp_path / "data" / "k"
    (inside / "deep").mkdir(parents=True)
    (inside / "manifest.json").write_text("{}")
    (inside / "deep" / JOURNAL).write_text('{"event": "start", "time_ms": 1, "key": "k"}\n')
    found = [path.parent.name for path in journals(tmp_path)]
    assert sorted(found) == ["a", "b"]


def test_what_is_pending_follows_the_cursor(tmp_path):
    written = journal(tmp_path)
    path = tmp_path / JOURNAL
    assert is_pending(path, read_cursor(path))
    sent(tmp_path)
    assert not is_pending(path, read_cursor(path), "store")
    assert is_pending(path, {**read_cursor(path), "store": "other"}, "store")
    written.metrics(1, {"a": 1.0})
    assert is_pending(path, read_cursor(tmp_path))


def test_an_end_without_a_word_is_told_from_a_finish_and_a_resume(tmp_path):
    written = journal(tmp_path)
    written.metrics(3, {"a": 1.0})
    assert ended_without_a_word(tmp_path / JOURNAL)["step"] == 3
    written.finish("FAILED", artifact_digest=None, error="x")
    assert ended_without_a_word(tmp_path / JOURNAL) is None
    journal(tmp_path)
    assert ended_without_a_word(tmp_path / JOURNAL)["event"] == "resume"
