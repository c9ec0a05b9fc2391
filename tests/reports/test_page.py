import json
import re
from pathlib import Path

import polars as pl
import pytest
from sklearn.metrics import f1_score

from appssl.artifact import Artifact, ArtifactWriter, sha256_file, write_json
from appssl.errors import ArtifactError
from appssl.reports import inputs
from appssl.reports.page import write_page
from tests.reports.conftest import EVIL, png, report, scored, write_labels


@pytest.fixture(scope="module")
def page(built: Path) -> str:
    return (built / "wearable/tiny/s0/report/report.html").read_text()


def html(results: Path, run: str = "wearable/tiny/s0", data: str = "wearable-1") -> str:
    return (report(results, run, data).folder / "report.html").read_text()


def words(page: str) -> str:
    return " ".join(re.sub(r"<style.*?</style>|<[^>]*>", " ", page, flags=re.S).split())


def test_has_every_section_of_a_complete_run(page):
    titles = re.findall(r"<h2[^>]*>(.*?)</h2>", page)
    assert titles == [
        "Metrics", "Comparisons", "On the test part", "Labels", "What became of the inputs", "The data", "Quarantine",
        "Training", "Settings", "Lineage",
    ]  # fmt: skip
    assert page.count("data:image/svg+xml") == 5  # confusion, reliability, map, two stages of training
    assert page.count("data:image/png") == 1


def test_result_says_value_interval_groups_and_verdicts_in_words(built, page):
    found = json.loads((built / "wearable/tiny/s0/evaluate/metrics.json").read_text())["classification"]["macro_f1"]
    page = words(page)
    assert f"On 240 test samples, macro F1 is {found['value']:.4f}" in page
    assert f"(95 % interval {found['low']:.4f} to {found['high']:.4f}, over 12 subjects)" in page
    assert "Better than scratch" in page
    assert "No difference shown against twin" in page
    assert "Two subjects wore the device on the other wrist." in page


def test_ranking_shows_slices_and_a_tie(built):
    page = (built / "recsys/tiny_rank/s0/report/report.html").read_text()
    text = words(page)
    assert "recall@20 is 0.3000 (95 % interval 0.2700 to 0.3300, over 610 users)" in text
    assert "No difference shown against popularity : +0.0200 (−0.0100 to +0.0500) recall@20" in text
    assert "By popularity of the item." in page
    assert "Confusion matrix" not in page


def test_deciles_of_items_have_a_figure_and_a_table_of_their_own(built):
    page = (built / "recsys/tiny_rank/s0/report/report.html").read_text()
    assert "By decile of training events." in page
    before, folded, after = page.partition("By decile of items (3)")
    assert folded
    assert "recall@20 decile" not in words(before)
    assert [f"recall@20 decile {number}" in words(after) for number in ("01", "02", "10")] == [True] * 3
    shown, folded, hidden = page.partition("By decile of items (1)")
    assert folded
    assert "+0.0300" not in words(shown)
    assert "+0.0300" in words(hidden)
    assert "rest on 7" not in words(page)  # seven users of a decile are no reason to doubt the whole


def test_data_only_run_has_a_page_too(results):
    run = results / "wearable" / "unfinished" / "s0"
    run.mkdir(parents=True)
    assert "Nothing was evaluated in this run." in html(results, "wearable/unfinished/s0")


def test_text_from_data_is_never_markup(page):
    assert "<script" not in page
    assert page.count("&lt;script&gt;") >= 4  # reason, label id, figure caption, quarantine
    assert "A tiny run &lt;for tests&gt;." in page


def test_page_needs_nothing_from_outside(page):
    assert not re.search(r"(src|href)=\"(?!data:|#|times\.html)", page)
    assert "url(" not in page
    assert "default-src 'none'" in page


def test_account_sums_visibly_and_a_wrong_one_is_warned_of(results, page):
    page = words(page)
    assert "prepare in = kept + left out + failed" in page
    assert "windows 1,000 940 55 5 too short 45 blank 10 truncated 5" in page
    assert "does not sum" not in page
    account = results / "data/wearable-1/account.json"
    values = json.loads(account.read_text())
    values["windows"]["kept"] = 900
    write_json(account, values)
    assert "The account of windows does not sum: 1,000 came in, 960 are explained." in words(html(results))


def test_quarantine_shows_the_first_rows_and_names_the_table(results, page):
    page = words(page)
    assert "50 of 60 inputs that were not kept. All of them are in quarantine.parquet" in page
    assert "w049" in page
    assert "w050" not in page
    out = ArtifactWriter(results / "short", "report", settings_digest="0" * 64, inputs={})
    write_page(results / "wearable/tiny/s0", results / "data/wearable-1", out, max_quarantine_rows=3)
    assert "3 of 60 inputs" in words((out.folder / "report.html").read_text())


def test_settings_are_complete_but_hold_no_place(page):
    page = words(page)
    assert "learner.objective.temperature 0.1" in page
    assert "num_bootstrap 100" in page
    assert "budget 0.005" in page
    assert "/somewhere" not in page


def test_lineage_names_stages_by_their_digests(built, page):
    digest = sha256_file(built / "data/wearable-1/manifest.json")
    assert page.count(f'title="{digest}"') >= 4  # the data itself, and as input of the stages
    assert "table:recordings.csv" in page
    assert "(prepare)" in page


def test_labels_show_kinds_examples_ledger_and_truth(page):
    page = words(page)
    assert "clean 70 70.0% 70" in page
    assert "out-of-distribution noise 10 10.0% 0" in page
    assert "all 100 100.0% 90" in page
    assert "noise AUROC 0.9100 0.8800 to 0.9400" in page
    assert "1 999999999999 41 0.85" in page
    assert "share clean" not in page


def test_labels_judged_in_training_show_too(results, page):
    assert "Judged before training." in words(page)
    assert "Judged in training." not in words(page)
    write_labels(results / "wearable/tiny/s0/finetune", Artifact.open(results / "data/wearable-1", "data"))
    text = words(html(results))
    assert text.count("noise AUROC 0.9100 0.8800 to 0.9400") == 2
    assert text.index("Judged before training.") < text.index("Judged in training.")


def test_same_content_is_same_bytes_whatever_clock_and_place(results):
    first = Artifact.open(results / "wearable/tiny/s0/report", "report")
    digest, times = first.digest, (first.folder / "times.html").read_bytes()
    for stage in ("pretrain", "finetune", "evaluate"):
        folder = results / "wearable/tiny/s0" / stage
        run = json.loads((folder / "run.json").read_text())
        write_json(folder / "run.json", {**run, "seconds": 999.0, "hardware": "another machine"})
        journal = folder / "metrics.jsonl"
        if journal.exists():
            journal.write_text(
                journal.read_text().replace('"time_ms": 12345', '"time_ms": 77777').replace("0.1}", "0.7}")
            )
    config = json.loads((results / "data/wearable-1/config.yaml").read_text())
    config["settings"] |= {"root": "/elsewhere", "shards": 7}
    write_json(results / "data/wearable-1/config.yaml", config)
    moved = results.rename(results.parent / "moved")
    second = report(moved, "wearable/tiny/s0", "wearable-1")
    assert second.digest == digest
    assert (second.folder / "times.html").read_bytes() != times
    assert "times.html" not in second.manifest["files"]


def test_times_show_seconds_speed_waiting_and_machine(built):
    folder = built / "wearable/tiny/s0/report"
    page = words((folder / "times.html").read_text())
    assert "pretrain 60.5 1,234 3.1% 1.2%" in page
    assert "all 127.8" in page  # 3.25 + 60.5 + 1 + 60.5 + 2.5, rounded to even
    assert "torch 2.9.0" in page
    assert "/somewhere/on/this/machine" in page


def test_stays_small_with_large_figures(results, monkeypatch):
    monkeypatch.setattr(inputs, "MAX_FIGURE_BYTES", 300_000)
    folder = results / "data/wearable-1"
    (folder / "figures/windows.png").write_bytes(png(700, 700))
    page = html(results)
    assert "Windows: too large for this page, see figures/windows.png" in words(page)
    monkeypatch.undo()
    page = html(results)
    assert len(page) < 5_000_000
    assert "data:image/jpeg" in page


def test_few_groups_are_warned_of(results):
    path = results / "wearable/tiny/s0/evaluate/metrics.json"
    found = json.loads(path.read_text())
    found["classification"]["accuracy"]["num_groups"] = 2
    write_json(path, found)
    assert "The intervals rest on 2 subjects only" in words(html(results))


def test_missing_data_is_an_error(results):
    out = ArtifactWriter(results / "r", "report", settings_digest="0" * 64, inputs={})
    with pytest.raises(ArtifactError, match="no finished result here"):
        write_page(results / "wearable/tiny/s0", results / "data/nothing", out)


def test_evil_ids_are_really_in_the_data(built):
    table = pl.read_parquet(built / "data/wearable-1/quarantine.parquet")
    assert table["item"][0] == EVIL


def test_what_the_encoder_was_worth_on_the_way_is_in_the_training_section(results):
    folder = results / "wearable" / "tiny" / "s0" / "pretrain"
    with (folder / "metrics.jsonl").open("a") as file:
        for step, rank in ((150, 7.5), (300, 12.25)):
            values = {"probe/rank_me": rank, "probe/knn_accuracy": rank / 20, "time/probe_seconds": 1.0}
            file.write("\n" + json.dumps({"event": "metrics", "step": step, "values": values}))
    report(results, "wearable/tiny/s0", "wearable-1")
    page = (results / "wearable/tiny/s0/report/report.html").read_text()
    assert '<th class="n">RankMe</th>' in page
    assert "k-NN accuracy" in page
    assert "12.2500" in page
    assert "probe_seconds" not in page


def test_every_subject_of_the_test_part_has_its_own_metrics(page):
    ours = scored(0, 0.9)
    own = ours.groups == "p3"
    prediction = ours.probabilities.argmax(1)
    macro_f1 = f1_score(ours.target[own], prediction[own], average="macro", zero_division=0)
    text = words(page)
    assert "By subject (12) subject test samples accuracy balanced accuracy macro F1" in text
    row = text.split(" p3 ")[1].split(" p4 ")[0].split()
    assert row[0] == str(own.sum())
    assert float(row[1]) == pytest.approx((prediction == ours.target)[own].mean(), abs=5e-5)
    assert float(row[3]) == pytest.approx(macro_f1, abs=5e-5)


def test_samples_that_are_their_own_group_have_no_table_by_group(results):
    folder = results / "wearable" / "tiny" / "s0" / "evaluate"
    predictions = pl.read_parquet(folder / "predictions.parquet")
    predictions.with_columns(group=pl.col("id")).write_parquet(folder / "predictions.parquet")
    assert "By subject" not in html(results)


def test_accounts_by_device_and_subject_are_tables_that_sum(page):
    text = words(page)
    assert "Windows by device (2) device windows in = kept + left out reasons wrist 9 7 2 gap 2 hip 9 9 0" in text
    assert "without 4 4 0 walking 5 0 5 gap 5" in text
