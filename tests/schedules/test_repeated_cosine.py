import math

import pytest

from appssl.errors import SettingsError
from appssl.schedules import cosine
from appssl.schedules.repeated_cosine import Config, build, cosine_factor
from appssl.settings import validate

PEAK, LEAST = 1.5e-4, 1.5e-5


def test_equals_the_equation_written_out():
    factor = build(Config(stages=3, warmup=0.1, final=0.2))
    for step in range(60):
        n = step % 20 + 1
        decay = 0.2 + (1 - 0.2) / 2 * (1 + math.cos(math.pi * (n - 2) / 18))
        assert factor(step, 60) == pytest.approx(n / 2 if n < 2 else decay, rel=1e-12)


def test_the_worked_numbers_of_the_card():
    for n, expected in ((10, 3e-5), (50, PEAK), (300, 1.282165e-4), (800, 2.923302e-5), (1000, LEAST)):
        assert PEAK * cosine_factor(n, 50, 1000, final=0.1) == pytest.approx(expected, rel=1e-6)


def test_every_stage_returns_to_the_base_rate_and_ends_in_the_final_factor():
    factor = build(Config(stages=4, warmup=0.1))
    values = [factor(step, 400) for step in range(400)]
    assert [step for step, value in enumerate(values) if value == 1] == [9, 109, 209, 309]
    assert [values[step] for step in (99, 199, 299, 399)] == pytest.approx([0.1] * 4)
    assert values[:100] == values[100:200] == values[300:]


def test_one_stage_is_the_cosine_schedule_one_update_later():
    single = build(Config(stages=1, warmup=0.1, final=0.2))
    once = cosine.build(cosine.Config(warmup=0.1, final=0.2))
    assert [single(step - 1, 50) for step in range(5, 50)] == pytest.approx([once(step, 50) for step in range(5, 50)])


def test_steps_that_do_not_divide_evenly_are_in_one_stage_each():
    factor = build(Config(stages=3, warmup=0.0, final=0.1))
    ends = [step for step in range(11) if factor(step, 11) == pytest.approx(0.1)]
    assert ends == [3, 7, 10]  # stages of 4, 4 and 3 steps


@pytest.mark.parametrize("num_steps", [1, 2, 3])
def test_more_stages_than_steps_stay_in_their_range(num_steps):
    factor = build(Config(stages=5))
    assert all(0.1 <= factor(step, num_steps) <= 1 for step in range(num_steps))


def test_no_stage_is_refused():
    with pytest.raises(SettingsError, match=r"stages is not valid: .* \(got 0\)"):
        validate(Config, {"stages": 0}, file="r.yaml", owner="schedules/repeated_cosine")
