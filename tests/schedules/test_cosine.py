import math

import pytest

from appssl.errors import SettingsError
from appssl.schedules.cosine import Config, build
from appssl.settings import validate


def test_equals_the_equation_written_out():
    factor = build(Config(warmup=0.1, final=0.2))
    for step in range(50):
        decay = 0.2 + 0.5 * (1 - 0.2) * (1 + math.cos(math.pi * (step - 5) / 45))
        expected = (step + 1) / 5 if step < 5 else decay  # the first 10 % of 50 steps rise
        assert factor(step, 50) == pytest.approx(expected, rel=1e-12)


def test_worked_numbers():
    factor = build(Config(warmup=0.0))
    cosine = math.sqrt(0.125)  # half of cos 45 degrees
    assert [factor(step, 4) for step in range(4)] == pytest.approx([1, 0.5 + cosine, 0.5, 0.5 - cosine])


def test_it_rises_to_one_then_falls_and_never_below_the_final_factor():
    factor = build(Config(warmup=0.25, final=0.1))
    values = [factor(step, 100) for step in range(100)]
    assert values[:25] == sorted(values[:25])
    assert max(values) == values[24] == values[25] == 1
    assert values[25:] == sorted(values[25:], reverse=True)
    assert 0.1 <= values[-1] < 0.101


def test_final_one_is_constant():
    factor = build(Config(warmup=0.0, final=1.0))
    assert {factor(step, 7) for step in range(7)} == {1.0}


@pytest.mark.parametrize("num_steps", [1, 2, 3])
def test_the_shortest_trainings_begin_with_a_positive_rate(num_steps):
    assert build(Config())(0, num_steps) == 1
    assert build(Config(warmup=0.9))(0, num_steps) > 0


def test_warmup_of_the_whole_training_is_refused():
    with pytest.raises(SettingsError, match=r"warmup is not valid: Input should be less than 1 \(got 1.0\)"):
        validate(Config, {"warmup": 1.0}, file="r.yaml", owner="schedules/cosine")
