import math

import polars as pl
import pytest

from appssl.ops.triage import triage

COLUMNS = ("id", "label", "confidence", "weight", "kind", "reason")
SAMPLES = pl.DataFrame({"id": list("abcdefg"), "label": ["x", "x", "x", "x", None, None, "y"]})
ROWS = [
    ("a", "x", 0.75, 1.0, "clean", "r"),  # believes in x with 3/4
    ("b", "x", 0.75, 0.5, "hard_clean", "r"),
    ("c", "y", 0.9, 0.9, "id_noise", "r"),  # x is believed with 1/10
    ("d", "x", 0.2, 0.0, "ood_noise", "r"),
    ("e", "y", 0.6, 0.6, "pseudo", "r"),
    ("f", None, 0.3, 0.0, "novel", "r"),
]


def judged(rows=ROWS, **extra):
    return pl.DataFrame(rows, schema=list(COLUMNS), orient="row").with_columns(**extra)


def literally(given, suggested, confidence, kind):
    belief = confidence if suggested == given else 1 - confidence
    if kind in ("pseudo", "novel"):
        return 1 - confidence
    return (1 - belief) / 2 + (0.5 if kind in ("id_noise", "ood_noise") else 0)


def test_suspicion_is_as_stated_by_kind_and_confidence():
    found = triage(judged(), SAMPLES)
    given = dict(SAMPLES.iter_rows())
    for name, suggested, confidence, _, kind, _ in ROWS:
        value = found.filter(id=name)["suspicion"].item()
        assert value == pytest.approx(literally(given[name], suggested, confidence, kind))
    worked = dict(found.select("id", "suspicion").iter_rows())
    assert worked == pytest.approx({"a": 0.125, "b": 0.125, "c": 0.95, "d": 0.9, "e": 0.4, "f": 0.7})
    assert found["id"].to_list() == ["c", "d", "f", "e", "a", "b"]


def test_p_clean_goes_first_where_there_is_one():
    found = triage(judged(p_clean=pl.Series([0.01, 0.5, 0.6, None, None, None], dtype=pl.Float64)), SAMPLES)
    worked = dict(found.select("id", "suspicion").iter_rows())
    assert worked == pytest.approx({"a": 0.99, "b": 0.5, "c": 0.4, "d": 0.9, "e": 0.4, "f": 0.7})
    assert found["id"].to_list() == ["a", "d", "f", "b", "c", "e"]
    assert found.filter(id="d")["p_clean"].item() is None


@pytest.mark.parametrize("kind", ["clean", "hard_clean", "id_noise", "ood_noise", "pseudo", "novel"])
@pytest.mark.parametrize("label", ["x", "y", None])
@pytest.mark.parametrize("confidence", [0.0, 1.0])
def test_suspicion_lies_in_0_to_1_and_doubt_above_trust(kind, label, confidence):
    value = triage(judged([("a", label, confidence, 1.0, kind, "")]), SAMPLES)["suspicion"].item()
    assert 0 <= value <= 1
    assert math.isfinite(value)
    if kind.endswith("clean"):
        assert value <= 0.5
    elif kind.endswith("noise"):
        assert value >= 0.5


def test_columns_are_those_stated_and_the_given_label_is_kept_apart():
    found = triage(judged(p_clean=0.5), SAMPLES.with_columns(url=pl.lit("https://e.org")))
    assert found.columns == [
        "id", "label", "suggested_label", "kind", "confidence", "weight", "p_clean", "suspicion", "reason",
        "source_url",
    ]  # fmt: skip
    assert found.filter(id="c").select("label", "suggested_label", "source_url").row(0) == ("x", "y", "https://e.org")
    assert found.filter(id="d")["suggested_label"].item() is None  # out-of-distribution: no class is suggested
    without = triage(judged(), SAMPLES)
    assert "p_clean" not in without.columns
    assert without["source_url"].null_count() == len(without)


def test_what_was_reviewed_is_beyond_suspicion():
    found = triage(judged(p_clean=0.5), SAMPLES.with_columns(reviewed=pl.col("id") == "c"))
    last = found.row(-1, named=True)
    assert (last["id"], last["suspicion"], last["kind"], last["suggested_label"]) == ("c", 0.0, "clean", "x")
