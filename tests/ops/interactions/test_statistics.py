import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from appssl.ops.interactions.statistics import counted, gini, padded_histories, popularity_slices, time_cuts


def test_events_of_one_second_are_never_divided():
    times = np.array([1, 1, 2, 2, 2, 2, 3, 3, 4, 5])
    first, second = time_cuts(times, 0.5, 0.2)
    assert (first, second) == (2, 3)
    assert (times < first).sum() == 2


@settings(max_examples=50, deadline=None)
@given(st.lists(st.integers(-(2**40), 2**40) | st.integers(0, 3), min_size=1, max_size=40), st.data())
def test_counting_finds_what_sorting_finds(values, data):
    position = data.draw(st.integers(0, len(values) - 1))
    blocks = np.array_split(np.array(values), 3)
    assert counted(lambda: blocks, [position, 0]) == [sorted(values)[position], min(values)]


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
