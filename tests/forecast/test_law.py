import pytest

from appssl.forecast.law import Point, extrapolate
from appssl.forecast.measuring import Cost


def cost(seconds, *, cpu=None, memory=100, own=50, size=0, start=0.0):
    return Cost(seconds, seconds if cpu is None else cpu, memory, own, size, start)


def law(share, steps):
    """3 s, 40 s for all inputs, 0.5 s a step; other figures are multiples of it."""
    seconds = 3 + 40 * share + 0.5 * steps
    own = round(1000 + 2000 * share)
    return cost(seconds, cpu=2 * seconds, memory=own + 700, own=own, size=round(100 * seconds))


def test_a_cost_that_keeps_the_law_is_found_exactly():
    points = [Point(0.1, 4, law(0.1, 4)), Point(0.4, 4, law(0.4, 4)), Point(0.4, 24, law(0.4, 24))]
    found, wanted = extrapolate(points, share=1.0, steps=1000), law(1.0, 1000)
    assert found.seconds == pytest.approx(wanted.seconds)
    assert found.cpu_seconds == pytest.approx(wanted.cpu_seconds)
    assert found.size == pytest.approx(wanted.size)
    assert found.memory == pytest.approx(wanted.memory)
    assert wanted.seconds == 543.0


@pytest.mark.parametrize("share", [0.0, 0.25, 0.5])
def test_a_smaller_share_than_was_measured_is_foreseen_too(share):
    points = [Point(0.0, 0, law(0.0, 0)), Point(1.0, 0, law(1.0, 0))]
    assert extrapolate(points, share=share).seconds == pytest.approx(law(share, 0).seconds)


def test_the_base_itself_is_what_was_measured():
    points = [Point(0.1, 0, cost(5.0, size=10)), Point(0.5, 0, cost(4.0, size=7))]
    found = extrapolate(points, share=0.5)
    assert (found.seconds, found.size, found.memory) == (4.0, 7, 100)


def test_with_one_share_all_but_the_start_grows_with_the_data():
    found = extrapolate([Point(0.25, 0, cost(5.0, size=100, start=3.0))], share=1.0)
    assert (found.seconds, found.cpu_seconds) == (3.0 + 4 * 2.0, 3.0 + 4 * 2.0)
    assert found.size == 400


def test_weights_do_not_grow_with_the_data():
    points = [Point(0.25, 4, cost(5.0, size=100, start=5.0)), Point(0.25, 8, cost(5.0, size=100, start=5.0))]
    assert extrapolate(points, share=1.0, steps=500).size == 100


def test_noise_never_makes_more_data_or_steps_cheaper():
    points = [Point(0.1, 4, cost(6.0)), Point(0.4, 4, cost(5.0)), Point(0.4, 20, cost(4.9))]
    assert extrapolate(points, share=1.0, steps=1000).seconds == 4.9


@pytest.mark.parametrize(("own", "grows"), [(102, False), (150, True)])
def test_memory_grows_by_what_is_no_noise_and_not_mapped_from_files(own, grows):
    points = [Point(0.1, 0, cost(1.0, memory=900, own=100)), Point(0.3, 0, cost(1.0, memory=5000, own=own))]
    found = extrapolate(points, share=1.0).memory
    assert found == pytest.approx(5000 + (50 / 0.2) * 0.7 if grows else 5000)


def test_memory_of_one_share_is_given_as_it_is():
    assert extrapolate([Point(0.01, 0, cost(1.0, memory=900, own=800))], share=1.0).memory == 900


def test_a_share_of_nothing_tells_time_but_not_memory():
    points = [Point(0.0, 0, cost(2.0, memory=10, own=10)), Point(0.1, 0, cost(3.0, memory=900, own=800))]
    found = extrapolate(points, share=1.0)
    assert (found.seconds, found.memory) == (12.0, 900)
