import numpy as np
import polars as pl

from appssl.ops.interactions.numbers import Seen, joined, numbers_of


def test_what_is_unknown_has_the_number_after_the_last():
    assert numbers_of(pl.Series(["b", "x", None, "a"]), pl.Series(["a", "b", "c"])).tolist() == [1, 3, 3, 0]
    assert numbers_of(pl.Series([], dtype=pl.String), pl.Series(["a"])).tolist() == []


def test_tables_are_joined_in_the_order_of_the_ids_and_keep_what_is_nobody():
    ids, numbers = joined([pl.Series(["b", "d"]), pl.Series(["a", "d", "e"]), pl.Series([], dtype=pl.String)])
    assert ids.to_list() == ["a", "b", "d", "e"]
    assert [of.tolist() for of in numbers] == [[1, 2, 4], [0, 2, 3, 4], [4]]


def test_numbers_of_categories_follow_the_ids_whatever_order_they_came_in():
    blocks = [["z", "", "m"], ["a", "m", "z", "k"], []]
    seen = Seen()
    codes = [seen.codes(pl.Series(block, dtype=pl.String).cast(seen.categories)) for block in blocks]
    ids, numbers = seen.sorted()
    assert ids.to_list() == ["a", "k", "m", "z"]
    assert numbers[np.concatenate(codes)].tolist() == [3, 4, 2, 0, 2, 3, 1]
