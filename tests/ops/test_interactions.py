import numpy as np
import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from appssl.ops.interactions import gini, k_core, padded_histories, popularity_slices, time_cuts

PAIRS = st.lists(st.tuples(st.integers(0, 6), st.integers(0, 6)), min_size=1, max_size=60)


@settings(max_examples=50, deadline=None)
@given(PAIRS, st.integers(1, 4), st.integers(1, 4))
def test_k_core_equals_removing_one_offender_at_a_time(pairs, min_user, min_item):
    rows = list(pairs)
    while True:
        users = [u for u, _ in rows]
        items = [i for _, i in rows]
        bad = next((r for r in rows if users.count(r[0]) < min_user or items.count(r[1]) < min_item), None)
        if bad is None:
            break
        rows = [
            r
            for r in rows
            if not (r[0] == bad[0] and users.count(bad[0]) < min_user)
            and not (r[1] == bad[1] and items.count(bad[1]) < min_item)
        ]
    events = pl.DataFrame({"user": [p[0] for p in pairs], "item": [p[1] for p in pairs]})
    assert k_core(events, min_user, min_item).rows() == rows


def test_events_of_one_second_are_never_divided():
    times = np.array([1, 1, 2, 2, 2, 2, 3, 3, 4, 5])
    first, second = time_cuts(times, 0.5, 0.2)
    assert (first, second) == (2, 3)
    assert (times < first).sum() == 2


def test_slices_cover_the_stated_shares_and_unseen_items_are_cold():
    counts = np.array([50, 30, 10, 5, 5, 0])
    assert popularity_slices(counts, 0.5, 0.3).tolist() == ["head", "middle", "tail", "tail", "tail", "cold"]


@pytest.mark.parametrize(("counts", "value"), [([1, 1, 1, 1], 0.0), ([0, 0, 0, 8], 0.75), ([1, 3], 0.25)])
def test_gini_of_known_distributions(counts, value):
    assert gini(np.array(counts)) == pytest.approx(value)


def test_gini_equals_the_mean_absolute_difference():
    counts = np.random.default_rng(0).integers(0, 50, 40)
    literal = sum(abs(int(a) - int(b)) for a in counts for b in counts) / (2 * len(counts) ** 2 * counts.mean())
    assert gini(counts) == pytest.approx(literal)


def test_histories_hold_the_latest_items_in_order():
    users, items = np.array([0, 1, 0, 0, 1, 0]), np.array([5, 6, 7, 8, 9, 4])
    assert padded_histories(users, items, 3, 3).tolist() == [[7, 8, 4], [6, 9, -1], [-1, -1, -1]]
    assert padded_histories(users, items, 3, 0).shape == (3, 0)
