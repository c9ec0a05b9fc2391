"""From judged labels to a review, and from its decisions back into the data."""

import json
import re
import shutil

import polars as pl
import pytest

from appssl.artifact import Artifact, ArtifactWriter
from appssl.errors import ArtifactError, DataError
from appssl.stages.models import open_data
from appssl.stages.review import data_of, labels_of, review
from tests.judged import AWKWARD, DATA, EVIL, ROWS, RUN, prepare, settings, write_labels, write_results

ORDER = ["i1", AWKWARD, "i2", "i4", "i0", "i5"]  # by falling 1 - p_clean


@pytest.fixture(scope="module")
def built(tmp_path_factory):
    return write_results(tmp_path_factory.mktemp("built"))


@pytest.fixture
def results(built, tmp_path):
    return shutil.copytree(built, tmp_path / "results")


def shown(page):
    text = page.read_text(encoding="utf-8")
    return json.loads(re.search(r'id="data">(.*?)</script>', text, re.DOTALL)[1])


def test_the_triage_table_is_sorted_by_suspicion_in_both_forms(results, tmp_path):
    made = review(results / RUN, tmp_path / "review")
    table = pl.read_parquet(tmp_path / "review/triage.parquet")
    assert table["id"].to_list() == ORDER
    assert table["suspicion"].to_list() == pytest.approx([0.95, 0.9, 0.8, 0.4, 0.1, 0.05])
    first = table.row(0, named=True)
    assert (first["label"], first["suggested_label"], first["kind"]) == ("red", "blue", "id_noise")
    assert table.filter(id="i0")["source_url"].item() == "https://example.org/0?a=1&b=2"
    assert pl.read_csv(made.triage, schema=table.schema).equals(table)
    assert (made.num_rows, made.num_shown) == (6, 6)


def test_the_page_shows_every_image_with_its_picture(results, tmp_path):
    data = shown(review(results / RUN / "pseudolabel", tmp_path).page)
    assert data["labels"] == ORDER
    assert data["classes"] == sorted(["red", "blue", EVIL])
    assert all(one["image"] for one in data["items"])
    assert {one["id"] for one in data["items"]} == set(ORDER)  # the test part was not judged


def test_the_same_result_is_the_same_review(results, tmp_path):
    pages = [review(results / RUN, tmp_path / name).page.read_bytes() for name in ("a", "b")]
    assert pages[0] == pages[1]


def test_a_limit_counts_what_is_open_and_keeps_what_is_decided(results, tmp_path):
    made = review(results / RUN, tmp_path, limit=2)
    assert shown(made.page)["labels"] == ORDER[:2]
    made.decisions.decide("i1", "irrelevant", None)
    made.decisions.decide("i5", "keep", None)
    data = shown(review(results / RUN, tmp_path, limit=2).page)
    assert data["labels"] == ["i1", AWKWARD, "i2", "i5"]
    assert data["decisions"] == [["i1", "irrelevant", None], ["i5", "keep", "blue"]]


def test_decisions_are_taken_in_by_the_next_preparation(results, tmp_path, built):
    crawl = shutil.copytree(built.parent / "crawl", tmp_path / "crawl")
    made = review(results / RUN, crawl / "review")
    for words in (
        ("i1", "relabel", "blue"),
        (AWKWARD, "keep", None),
        ("i2", "irrelevant", None),
        ("i5", "duplicate", None),
    ):
        made.decisions.decide(*words)
    artifact = prepare(crawl, tmp_path / "again" / DATA, settings(decisions="review/decisions.csv"))
    samples = open_data(artifact).samples
    labels = {row["id"]: (row["label"], row["true_label"], row["reviewed"]) for row in samples.to_dicts()}
    assert labels["i1"] == ("blue", "blue", True)
    assert labels[AWKWARD] == ("blue", "blue", True)
    assert labels["i0"] == ("red", None, False)
    assert artifact.accounts()["images"].left_out == {"reviewed_irrelevant": 1, "reviewed_duplicate": 1}
    # The next review in the same folder goes on: reviewed images are last, those left out stay decided.
    rows = [row for row in ROWS if row[0] not in ("i2", "i5")]
    write_labels(tmp_path / "again" / RUN / "pseudolabel", artifact, rows)
    again = review(tmp_path / "again" / RUN, crawl / "review")
    assert pl.read_csv(again.triage)["id"].to_list() == ["i4", "i0", AWKWARD, "i1"]
    assert (len(again.decisions), again.decisions.num_here) == (4, 2)


def test_labels_of_a_model_are_reviewed_too(results, tmp_path):
    shutil.move(results / RUN / "pseudolabel", results / RUN / "finetune")
    assert labels_of(results / RUN).folder.name == "finetune"
    assert review(results / RUN, tmp_path).num_rows == 6


def test_a_run_without_labels_or_data_says_so(results, tmp_path):
    with pytest.raises(ArtifactError, match="no judged labels here"):
        review(results / DATA, tmp_path)
    with pytest.raises(ArtifactError, match="no judged labels here"):
        review(tmp_path / "nowhere", tmp_path)
    moved = shutil.move(results / DATA, tmp_path / "elsewhere")
    with pytest.raises(ArtifactError, match=r"are not in its results folder. Give --data"):
        review(results / RUN, tmp_path)
    assert review(results / RUN, tmp_path, data_dir=moved).num_rows == 6


def test_other_data_than_the_labels_were_made_from_are_refused(results, tmp_path, built):
    other = prepare(built.parent / "crawl", tmp_path / "other", settings(size=24))
    with pytest.raises(ArtifactError, match="is not the data that"):
        data_of(labels_of(results / RUN), other.folder)


def test_labels_of_another_domain_are_not_images(tmp_path):
    from tests.reports.conftest import write_data

    data = write_data(tmp_path / "results" / "data" / "w")
    writer = ArtifactWriter(
        tmp_path / "results/wearable/tiny/s0/pseudolabel", "labels", settings_digest="", inputs={"data": data.digest}
    )
    writer.table("labels.parquet", pl.DataFrame({"id": ["w0"]}))
    writer.finish()
    with pytest.raises(DataError, match="the domain wearable; images of webnoisy are reviewed"):
        review(tmp_path / "results/wearable/tiny/s0", tmp_path / "review")


def near(folder, *rows):
    names = {"group": pl.Int64, "id": pl.String, "split": pl.String, "label": pl.String, "similarity": pl.Float64,
             "nearest": pl.String, "leak": pl.Boolean}  # fmt: skip
    folder.mkdir(exist_ok=True)
    pl.DataFrame(list(rows), schema=names, orient="row").write_parquet(folder / "semantic_duplicates.parquet")


def test_near_duplicates_are_groups_with_leaks_marked(results, tmp_path):
    out = tmp_path / "review"
    near(
        out,
        (1, "i0", "train", "red", 0.99, "t0", True),
        (1, "t0", "test", "red", 0.99, "i0", True),
        (2, "i2", "train", "blue", 0.98, "i5", False),
        (2, "i5", "train", "blue", 0.98, "i2", False),
    )
    data = shown(review(results / RUN, out).page)
    assert data["groups"] == [
        {"number": 1, "splits": ["train", "test"], "similarity": 0.99, "leak": True, "ids": ["i0", "t0"]},
        {"number": 2, "splits": ["train"], "similarity": 0.98, "leak": False, "ids": ["i2", "i5"]},
    ]
    items = {one["id"]: one for one in data["items"]}
    assert (items["i0"]["leak"], items["i0"]["nearest"], items["i0"]["nearestSplit"]) == (True, "t0", "test")
    assert (items["t0"]["label"], items["t0"]["split"], items["t0"]["kind"]) == ("red", "test", None)
    assert "leak" not in items["i4"]


def test_near_duplicates_of_other_data_are_refused(results, tmp_path):
    near(tmp_path, (1, "gone", "train", "red", 0.99, "i0", False), (1, "i0", "train", "red", 0.99, "gone", False))
    with pytest.raises(DataError, match="Run 'appssl duplicates' again"):
        review(results / RUN, tmp_path)


def test_damaged_labels_are_refused(results, tmp_path):
    path = results / RUN / "pseudolabel/labels.parquet"
    path.write_bytes(path.read_bytes()[:-1] + b"x")
    with pytest.raises(ArtifactError, match=r"labels\.parquet has changed"):
        review(results / RUN, tmp_path)
    assert Artifact.open(results / DATA, "data")
