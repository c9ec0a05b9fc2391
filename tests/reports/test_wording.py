import pytest

from appssl.reports import wording


@pytest.mark.parametrize(
    ("low", "high", "direction", "expected"),
    [
        (0.01, 0.2, +1, "better"),
        (0.01, 0.2, -1, "worse"),
        (-0.2, -0.01, +1, "worse"),
        (-0.2, -0.01, -1, "better"),
        (-0.1, 0.1, +1, "no difference shown"),
        (0.0, 0.1, +1, "no difference shown"),
        (0.01, 0.2, None, "higher"),
        (-0.2, -0.1, None, "lower"),
        (None, None, +1, "no interval: fewer than two groups"),
    ],
)
def test_verdict_is_better_or_worse_only_if_the_interval_leaves_zero_out(low, high, direction, expected):
    assert wording.verdict({"value": 0.1, "low": low, "high": high}, direction) == expected


def test_numbers_are_written_with_a_true_minus_and_a_dash_for_none():
    assert wording.number(-0.5) == "−0.5000"
    assert wording.number(0.5, signed=True) == "+0.5000"
    assert wording.number(-0.00001, signed=True) == "+0.0000"
    assert wording.number(None) == wording.number(float("nan")) == "–"
    assert wording.number(12345.6) == "12,345.6"
    assert wording.interval({"low": None, "high": None}) == "–"


def test_names_are_readable():
    assert wording.readable("knn_macro_f1") == "k-NN macro F1"
    assert wording.readable("ndcg@20_tail") == "NDCG@20 tail"
    assert wording.count(1, "subject") == "1 subject"
    assert wording.count(1200, "query") == "1,200 queries"


def test_slices_are_found_wherever_they_are_named():
    assert wording.slice_of("recall@20_tail") == wording.slice_of("tail_recall@20") == ("recall@20", "tail")
    assert wording.slice_of("recall@20/cold") == ("recall@20", "cold")
    assert wording.slice_of("recall@20") is None
    assert wording.slice_of("headline") is None
    assert wording.slice_of("recall@20_decile_01_minus_popularity") == ("recall@20_minus_popularity", "decile_01")
    assert wording.slice_of("recall@20_decile_1") is None
    assert wording.is_decile("popularity_ndcg@20_decile_10")
    assert not wording.is_decile("recall@20_tail")


def test_main_metric_is_the_usual_one_or_else_the_first():
    assert wording.main_name({"knn": {"knn_macro_f1": 1}, "classification": {"macro_f1": 1}}) == (
        "classification",
        "macro_f1",
    )
    assert wording.main_name({"mine": {"score": 1}}) == ("mine", "score")
    assert wording.main_name({}) is None


def test_direction_of_a_slice_is_that_of_its_metric():
    known = {"recall@20": 1, "gini@20": -1}
    assert wording.direction_of("recall@20_tail", known) == 1
    assert wording.direction_of("gini@20", known) == -1
    assert wording.direction_of("unknown", known) is None


def test_direction_of_a_baseline_is_that_of_its_metric_and_not_of_one_with_its_name():
    known = wording.directions(["ranking"])
    names = ("popularity@20", "popularity_popularity@20", "popularity_mrr@20", "item_knn_recall@20_tail", "als_gini@20")
    assert [wording.direction_of(name, known) for name in names] == [-1, -1, 1, 1, -1]
    assert wording.direction_of("mrr@20_minus_popularity", known) == 1
    assert wording.direction_of("popularity_other@20_x", known) is None


def test_directions_of_a_plugin_that_is_not_installed_are_unknown():
    assert wording.directions(["classification", "elsewhere.metrics"])["calibration_error"] == -1
