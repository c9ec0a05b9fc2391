import json
import shutil

from appssl.artifact import write_json
from appssl.reports.index import find_runs, write_index
from tests.reports.test_page import words


def test_lists_every_run_with_metric_state_and_link(results):
    page = write_index(results).read_text()
    value = json.loads((results / "wearable/tiny/s0/evaluate/metrics.json").read_text())["classification"]["macro_f1"]
    assert 'href="wearable/tiny/s0/report/report.html"' in page
    assert f"tiny 0 macro F1 {value['value']:.4f} {value['low']:.4f} to {value['high']:.4f} done" in words(page)
    assert "not finished, after evaluate" in page
    assert "3 runs of 2 recipes." in page


def test_gives_mean_and_range_over_seeds(results):
    values = [row.value["value"] for row in find_runs(results) if row.recipe == "tiny"]
    assert len(values) == 2
    mean = sum(values) / 2
    assert f"tiny macro F1 2 {mean:.4f} {min(values):.4f} to {max(values):.4f}" in words(
        write_index(results).read_text()
    )


def test_failed_stage_is_named_with_its_message_escaped(results):
    shutil.rmtree(results / "wearable/tiny/s1/evaluate")
    write_json(results / "wearable/tiny/s1/evaluate/failed.json", {"message": "bad <b>\nmore", "exit_code": 3})
    page = write_index(results).read_text()
    assert "failed in evaluate: bad &lt;b&gt;" in page
    assert "Over seeds" not in page


def test_other_folders_are_no_runs_and_an_empty_folder_has_an_index(results, tmp_path):
    (results / "quick/wearable/s0").mkdir(parents=True)
    (results / "wearable/tiny/state").mkdir()
    (results / "data/wearable-1/s0").mkdir()
    assert {(row.domain, row.recipe, row.seed) for row in find_runs(results)} == {
        ("recsys", "tiny_rank", 0),
        ("wearable", "tiny", 0),
        ("wearable", "tiny", 1),
    }
    empty = tmp_path / "empty"
    empty.mkdir()
    assert "No runs yet." in write_index(empty).read_text()
