"""Decisions on the disk: whole after every change, and nothing of an earlier session lost."""

import os
import subprocess
import sys
import threading

import polars as pl
import pytest

from appssl.errors import DataError
from appssl.ops.images.decisions import read_decisions
from appssl.reports import review_decisions
from appssl.reports.review_decisions import Decisions
from tests.commands import environment
from tests.judged import AWKWARD, EVIL

GIVEN = {"b": "dog", "a": "cat", AWKWARD: "cat", "n": None}
CLASSES = ("cat", "dog", EVIL)


def opened(folder):
    return Decisions(folder / "decisions.csv", given=GIVEN, classes=CLASSES)


def test_the_file_is_sorted_and_is_what_the_source_reads(tmp_path):
    decisions = opened(tmp_path)
    decisions.decide("b", "relabel", EVIL)
    decisions.decide(AWKWARD, "irrelevant", None)
    decisions.decide("a", "keep", "dog")  # what is kept is the given label, whatever the page says
    assert decisions.rows() == [("a", "keep", "cat"), (AWKWARD, "irrelevant", None), ("b", "relabel", EVIL)]
    found = read_decisions(tmp_path / "decisions.csv", "d", classes=CLASSES, given=GIVEN, known=set(GIVEN))
    assert found.rows() == decisions.rows()
    assert opened(tmp_path).rows() == decisions.rows()


def test_equal_decisions_are_equal_bytes_whatever_the_way_to_them(tmp_path):
    one, other = opened(tmp_path / "one"), opened(tmp_path / "other")
    for name, decision in (("a", "keep"), ("b", "irrelevant")):
        one.decide(name, decision, None)
    for name, decision in (("b", "keep"), ("n", "duplicate"), ("b", "irrelevant"), ("n", None), ("a", "keep")):
        other.decide(name, decision, None)
    assert one.path.read_bytes() == other.path.read_bytes() == b"id,decision,label\na,keep,cat\nb,irrelevant,\n"


def test_decisions_about_images_that_are_gone_stay(tmp_path):
    (tmp_path / "decisions.csv").write_text("id,decision,label\ngone,irrelevant,\na,keep,cat\n")
    decisions = opened(tmp_path)
    assert (len(decisions), decisions.num_here) == (2, 1)
    decisions.decide("a", None, None)
    assert pl.read_csv(tmp_path / "decisions.csv").rows() == [("gone", "irrelevant", None)]


def test_decisions_of_other_images_are_not_touched(tmp_path):
    (tmp_path / "decisions.csv").write_text("id,decision,label\nx,irrelevant,\n")
    with pytest.raises(DataError, match=r"none of its 1 decisions is of these images. Choose another --out"):
        opened(tmp_path)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("x", "keep", None), "no image 'x'"),
        (("a", "maybe", None), "'maybe' is not one of"),
        (("a", "relabel", "cow"), "'cow' is no class"),
        (("a", "relabel", None), "None is no class"),
        (("n", "keep", None), "None is no class"),
    ],
)
def test_what_is_wrong_is_refused_and_changes_nothing(tmp_path, words, message):
    decisions = opened(tmp_path)
    decisions.decide("b", "keep", None)
    before = decisions.path.read_bytes()
    with pytest.raises(DataError, match=message):
        decisions.decide(*words)
    assert decisions.path.read_bytes() == before


def test_a_decision_that_cannot_be_written_is_not_noted(tmp_path, monkeypatch):
    decisions = opened(tmp_path)
    decisions.decide("b", "keep", None)

    def full(*arguments):
        raise OSError("no space left")

    monkeypatch.setattr(review_decisions, "write_table", full)
    with pytest.raises(Exception, match="no space left"):
        decisions.decide("a", "keep", None)
    assert decisions.rows() == [("b", "keep", "dog")]
    assert opened(tmp_path).rows() == decisions.rows()
    assert os.listdir(tmp_path) == ["decisions.csv"]


def test_threads_lose_nothing(tmp_path):
    given = {f"i{n:02}": "cat" for n in range(40)}
    decisions = Decisions(tmp_path / "decisions.csv", given=given, classes=CLASSES)
    threads = [threading.Thread(target=decisions.decide, args=(name, "keep", None)) for name in given]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert pl.read_csv(tmp_path / "decisions.csv")["id"].to_list() == sorted(given)


def test_a_kill_leaves_every_decision_that_was_answered(tmp_path):
    code = (
        "import sys, pathlib\n"
        "from appssl.reports.review_decisions import Decisions\n"
        "given = {f'i{n:05}': 'cat' for n in range(100000)}\n"
        "decisions = Decisions(pathlib.Path(sys.argv[1]), given=given, classes=('cat',))\n"
        "for name in given:\n"
        "    decisions.decide(name, 'keep', None)\n"
        "    print(name, flush=True)\n"
    )
    file = tmp_path / "decisions.csv"
    process = subprocess.Popen(
        [sys.executable, "-c", code, str(file)], env=environment(), stdout=subprocess.PIPE, text=True
    )
    answered = [process.stdout.readline().strip() for _ in range(25)]
    process.kill()
    process.wait()
    kept = pl.read_csv(file)["id"].to_list()
    assert kept[:25] == answered
