import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from appssl.contracts import Meta
from appssl.errors import DataError
from appssl.stages.rows import class_numbers, evaluation_table, take_fraction


class Data:
    meta = Meta(source="x", domain="wsi", task="classification", classes=("a", "b"))

    def __init__(self, rows):
        names = ("split", "label", "true_label")
        columns = {name: pl.Series([row[n] for row in rows], dtype=pl.String) for n, name in enumerate(names)}
        self.samples = pl.DataFrame({"index": range(len(rows)), **columns})


def test_class_numbers_follow_the_class_list_and_minus_one_is_unknown():
    assert class_numbers(pl.Series(["b", None, "a", "b"]), ("b", "a")).tolist() == [0, -1, 1, 0]
    assert class_numbers(pl.Series([], dtype=pl.String), ("b", "a")).tolist() == []


def test_a_label_in_no_class_list_is_named():
    with pytest.raises(DataError, match=r"labels in no class list: c, d\. Classes: a, b\."):
        class_numbers(pl.Series(["a", "d", "c", "d"]), ("a", "b"))


def test_what_is_measured_on_is_the_truth_where_it_is_known_else_the_label():
    rows = [("test", "a", "b"), ("test", "a", None), ("test", None, "a"), ("test", None, None), ("train", "a", "a")]
    table = evaluation_table(Data(rows))
    assert table["index"].to_list() == [0, 1, 2]
    assert table["target_label"].to_list() == ["b", "a", "a"]


def test_a_truth_that_is_no_class_is_not_measured_on():
    assert evaluation_table(Data([("test", "a", "nothing"), ("test", "a", "a")]))["index"].to_list() == [1]


def test_nothing_to_measure_on_says_what_to_do():
    with pytest.raises(
        DataError, match=r"no labelled samples in the val part, nothing can be measured. Give labels or"
    ):
        evaluation_table(Data([("test", "a", "a")]), "val")


def table(counts):
    labels = [name for name, count in counts.items() for _ in range(count)]
    return pl.DataFrame({"index": range(len(labels)), "id": [f"s{n}" for n in range(len(labels))], "label": labels})


def test_every_class_gives_its_share_and_at_least_one():
    taken = take_fraction(table({"a": 100, "b": 50, "c": 2}), 0.1, seed=0)
    assert dict(taken.group_by("label").len().iter_rows()) == {"a": 10, "b": 5, "c": 1}
    assert taken["index"].is_sorted()


def test_all_is_all():
    whole = table({"a": 3, "b": 2})
    assert take_fraction(whole, 1.0, seed=0).equals(whole)


@settings(max_examples=40, deadline=None)
@given(
    small=st.floats(0.01, 0.99),
    large=st.floats(0.01, 1),
    seed=st.integers(0, 5),
    a=st.integers(1, 40),
    b=st.integers(1, 9),
)
def test_a_smaller_fraction_is_part_of_a_larger_one_whatever_the_order_of_rows(small, large, seed, a, b):
    whole = table({"a": a, "b": b})
    small, large = sorted((small, large))
    less = set(take_fraction(whole, small, seed)["id"])
    assert less <= set(take_fraction(whole, large, seed)["id"])
    assert less == set(take_fraction(whole.sample(fraction=1, shuffle=True, seed=1), small, seed)["id"])


def test_seeds_take_others():
    whole = table({"a": 200})
    assert set(take_fraction(whole, 0.1, 0)["id"]) != set(take_fraction(whole, 0.1, 1)["id"])


def test_many_classes_are_no_trouble():
    whole = table({f"c{n}": 5 for n in range(4000)})
    assert len(take_fraction(whole, 0.2, 0)) == 4000
