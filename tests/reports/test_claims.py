"""Verdicts, and a table that keeps what is not run again."""

import json

import pytest

from appssl.artifact import write_json
from appssl.errors import DataError, SettingsError
from appssl.recipe import Claim
from appssl.reports import claims, claims_page

ROW = {
    **Claim(says="It is better.", metric="accuracy", against="plain", by=0.01).plain(),
    "method": "bench/one", "domain": "webnoisy", "value": 0.03, "low": 0.02, "high": 0.04, "paired": True,
    "by_seed": {"0": 0.025, "1": 0.035}, "verdict": "shown", "seconds": 90.0, "date": "2026-11-26", "version": "0.1.0",
}  # fmt: skip


def row(method="bench/one", **changes):
    return {**ROW, "method": method, **changes}


@pytest.mark.parametrize(
    ("low", "high", "by", "expected"),
    [
        (0.01, 0.05, 0.0, "shown"),
        (0.0, 0.05, 0.0, "not shown"),  # the end is no more than the margin
        (-0.01, 0.05, 0.0, "not shown"),
        (-0.05, -0.01, 0.0, "opposite"),
        (-0.05, 0.0, 0.0, "not shown"),
        (0.03, 0.05, 0.02, "shown"),
        (0.01, 0.05, 0.02, "not shown"),  # better, but perhaps by less than counts
        (0.01, 0.015, 0.02, "not shown"),
        (-0.05, -0.01, 0.02, "opposite"),
        (-0.01, 0.01, -0.02, "shown"),  # no loss that counts
        (-0.03, 0.01, -0.02, "not shown"),
        (-0.015, -0.01, -0.02, "shown"),
        (-0.05, -0.01, -0.02, "not shown"),  # worse, perhaps by less than counts
        (-0.05, -0.03, -0.02, "opposite"),
        (None, None, 0.0, "not shown"),
    ],
)
def test_the_verdict_is_where_the_interval_lies(low, high, by, expected):
    assert claims.verdict_of(low, high, by=by, more=True) == expected
    mirrored = (None, None) if low is None else (-high, -low)
    assert claims.verdict_of(*mirrored, by=by, more=False) == expected


@pytest.mark.parametrize(
    ("by", "more", "said"),
    [
        (0.02, True, "higher by 0.02"),
        (0.0, True, "higher"),
        (0.1, False, "lower by 0.1"),
        (-0.005, True, "at most 0.005 lower"),
        (-0.005, False, "at most 0.005 higher"),
    ],
)
def test_the_direction_is_said_in_words(by, more, said):
    assert claims_page.direction({"by": by, "more": more}) == said


def test_a_row_says_all_there_is(tmp_path):
    claims_page.write_claims(tmp_path / "claims.md", [row(note="twice the rate")])
    text = (tmp_path / "claims.md").read_text()
    assert "1 claim of 1 method: 1 shown, 0 not shown, 0 opposite." in text
    assert (
        "| one | It is better. | plain | accuracy | higher by 0.01 | +0.0300 (+0.0200 to +0.0400) | shown | 2 | "
        "+0.0250 to +0.0350 | 1.5 min | 2026-11-26 | 0.1.0 | twice the rate |" in text
    )
    unpaired = claims_page.table([row(paired=False, low=None, high=None)])
    assert "| +0.0300 (–, unpaired) |" in unpaired
    assert "tried" not in unpaired


def test_rows_of_methods_that_were_not_run_are_kept_and_those_of_others_replaced(tmp_path):
    page = tmp_path / "docs" / "claims.md"
    claims_page.write_claims(
        page, [row("bench/two"), row("bench/one", says="First."), row("bench/one", says="Second.")]
    )
    before = json.loads(page.with_suffix(".json").read_text())["claims"]
    assert [(r["method"], r["says"]) for r in before] == [
        ("bench/one", "First."), ("bench/one", "Second."), ("bench/two", "It is better."),
    ]  # fmt: skip
    claims_page.write_claims(page, [row("bench/one", says="Third.", verdict="not shown", value=0.0)])
    after = claims_page.read_claims(page)
    assert [r["says"] for r in after] == ["Third.", "It is better."]
    assert after[1] == before[2]
    text = page.read_text()
    assert "First." not in text
    assert "| Third. |" in text
    assert "2 claims of 2 methods: 1 shown, 1 not shown, 0 opposite." in text


def test_the_page_is_a_function_of_the_rows(tmp_path):
    page = tmp_path / "claims.md"
    claims_page.write_claims(page, [row("bench/two"), row()])
    text = page.read_text()
    page.write_text("edited by hand")
    claims_page.write_claims(page, [])
    assert page.read_text() == text == claims_page.page_of(claims_page.read_claims(page))


def test_what_is_no_table_of_claims_is_neither_read_nor_replaced(tmp_path):
    page = tmp_path / "README.md"
    page.write_text("mine")
    with pytest.raises(SettingsError, match=r"README.md: exists without README.json beside it"):
        claims_page.write_claims(page, [row()])
    assert page.read_text() == "mine"
    with pytest.raises(SettingsError, match=r"claims.csv: the table of claims is Markdown"):
        claims_page.read_claims(tmp_path / "claims.csv")
    for damaged in ({"format": 7, "claims": []}, [], {"format": 1}):
        write_json(tmp_path / "claims.json", damaged)
        with pytest.raises(DataError, match=r"claims.json: is damaged"):
            claims_page.read_claims(tmp_path / "claims.md")


def test_the_cost_counts_each_stage_once_and_nothing_that_is_only_compared_with(tmp_path):
    def stage(**inputs):
        return {"inputs": inputs}

    own = {"pretrain": stage(data="data/k"), "finetune": stage(data="data/k", encoder="d/a/s0/pretrain")}
    own["evaluate"] = stage(data="data/k", model="d/a/s0/finetune", **{"compare:c": "d/c/s0/evaluate"})
    other = {"evaluate": stage(data="data/k", encoder="d/a/s0/pretrain")}
    runs = {name: {"s0": {"stages": stages}} for name, stages in (("a", own), ("b", other), ("c", other))}
    plan = {"results": str(tmp_path), "runs": {"d": runs}}
    for folder, seconds in (
        ("data/k", 1), ("data/k/shards/0", 2), ("data/k/shards/1", 4), ("d/a/s0/pretrain", 8), ("d/a/s0/finetune", 16),
        ("d/a/s0/evaluate", 32), ("d/b/s0/evaluate", 64), ("d/c/s0/evaluate", 128),
    ):  # fmt: skip
        write_json(tmp_path / folder / "run.json", {"seconds": seconds})
    assert claims.seconds(plan, ["d/a/s0/evaluate", "d/b/s0/evaluate"]) == 127
    (tmp_path / "d/a/s0/finetune/run.json").unlink()
    assert claims.seconds(plan, ["d/a/s0/evaluate", "d/b/s0/evaluate"]) == 111


@pytest.mark.parametrize(
    ("name", "expected"), [("plain", "plain"), ("webnoisy/plain", "plain"), ("../x/plain.v2.yaml", "plain.v2")]
)
def test_a_recipe_is_called_by_its_last_name(name, expected):
    assert claims.run_name(name) == expected
