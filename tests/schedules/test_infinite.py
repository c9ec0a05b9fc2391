import math
from itertools import pairwise

import pytest

from appssl.errors import SettingsError
from appssl.schedules.infinite import Config, build, infinite_factor
from appssl.settings import validate

PEAK, CONSTANT, LEAST = 1.5e-4, 3.75e-5, 1.5e-5
BOUNDARIES = (50, 300, 800, 1000)
CARD = {"warmup": 0.05, "cooldown_end": 0.3, "constant_end": 0.8, "constant": 0.25, "final": 0.1}


def rate(n, boundaries=BOUNDARIES, cooldown="cosine"):
    share = {"constant": CONSTANT / PEAK, "final": LEAST / PEAK}
    return PEAK * infinite_factor(n, boundaries, cooldown=cooldown, **share)


def literal(n, cooldown, warmup, cooled, annealing, steps):
    """Rates in absolute numbers, as the equations have them."""
    if n < warmup:
        return PEAK * n / warmup
    if n < cooled:
        r = (n - warmup) / (cooled - warmup)
        if cooldown == "cosine":
            return CONSTANT + (PEAK - CONSTANT) / 2 * (1 + math.cos(math.pi * r))
        if cooldown == "linear":
            return PEAK + (CONSTANT - PEAK) * r
        h, whole = (1 / math.sqrt(1 + 10 * x) - 1 for x in (r, 1))
        return PEAK + (CONSTANT - PEAK) * h / whole
    if n < annealing:
        return CONSTANT
    return math.exp(math.log(CONSTANT) + (math.log(LEAST) - math.log(CONSTANT)) * (n - annealing) / (steps - annealing))


@pytest.mark.parametrize("cooldown", ["cosine", "linear", "inverse_sqrt"])
def test_equals_the_equations_written_out(cooldown):
    factor = build(Config(**CARD, cooldown=cooldown))
    for n in range(1, 1001):
        expected = literal(n, cooldown, *BOUNDARIES)
        assert rate(n, cooldown=cooldown) == pytest.approx(expected, rel=1e-12)
        assert PEAK * factor(n - 1, 1000) == pytest.approx(expected, rel=1e-12)


def test_the_worked_numbers_of_the_card():
    expected = {10: 3e-5, 50: 1.5e-4, 55: 1.498890e-4, 100: 1.392572e-4, 150: 1.111322e-4, 300: 3.75e-5, 800: 3.75e-5}
    expected |= {850: 2.982265e-5, 900: 2.371708e-5, 1000: 1.5e-5}
    for n, value in expected.items():
        assert rate(n) == pytest.approx(value, rel=1e-6)
    assert rate(900) == pytest.approx(math.sqrt(CONSTANT * LEAST), rel=1e-12)
    assert rate(175, cooldown="inverse_sqrt") == pytest.approx(5.469127e-5, rel=1e-6)


@pytest.mark.parametrize("cooldown", ["cosine", "linear", "inverse_sqrt"])
def test_it_is_continuous_positive_and_falls_after_the_warmup(cooldown):
    fine = tuple(1000 * boundary for boundary in BOUNDARIES)
    for boundary in fine[:3]:
        assert rate(boundary - 1, fine, cooldown) == pytest.approx(rate(boundary, fine, cooldown), rel=1e-3)
    values = [rate(n, cooldown=cooldown) for n in range(1, 1001)]
    assert min(values) > 0
    assert values[49:] == sorted(values[49:], reverse=True)
    steps = [math.log(b / a) for a, b in pairwise(values[800:])]
    assert max(steps) == pytest.approx(min(steps), rel=1e-9)  # the logarithm falls linearly


def test_a_longer_constant_phase_changes_no_earlier_value_and_no_form_of_the_annealing():
    longer = (50, 300, 2800, 3000)
    assert [rate(n) for n in range(800)] == [rate(n, longer) for n in range(800)]
    for n in range(201):
        assert rate(800 + n) == pytest.approx(rate(2800 + n, longer), rel=1e-12)


def test_without_cooldown_and_at_the_base_rate_it_is_warmup_stable_decay():
    factor = build(Config(warmup=0.1, cooldown_end=0.1, constant_end=0.8, constant=1.0, final=0.01))
    values = [factor(step, 100) for step in range(100)]
    assert values[:10] == pytest.approx([(n + 1) / 10 for n in range(10)])
    assert set(values[9:79]) == {1.0}
    assert values[89] == pytest.approx(0.1)
    assert values[-1] == pytest.approx(0.01)


def test_a_later_stage_begins_at_the_constant_rate_and_never_exceeds_it():
    first, later = build(Config(**CARD)), build(Config(**CARD, first_stage=False))
    values = [later(step, 1000) for step in range(1000)]
    assert set(values[:799]) == {0.25}
    assert max(values) == 0.25
    assert values[799:] == [first(step, 1000) for step in range(799, 1000)]


def test_the_largest_factor_is_reached_once_and_short_trainings_have_positive_ones():
    values = [build(Config())(step, 1000) for step in range(1000)]
    assert max(values) == values[49] == 1
    assert values[-1] == pytest.approx(0.1)
    for num_steps in (1, 2, 3):
        for first_stage in (True, False):
            factor = build(Config(first_stage=first_stage))
            assert all(0 < factor(step, num_steps) <= 1 for step in range(num_steps))


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"warmup": 0.6}, "needs warmup <= cooldown_end <= constant_end"),
        ({"cooldown_end": 0.9}, "needs warmup <= cooldown_end <= constant_end"),
        ({"constant": 0.05}, "needs final <= constant"),
        ({"final": 0.0}, r"final is not valid: Input should be greater than 0 \(got 0.0\)"),
    ],
)
def test_phases_out_of_order_are_refused(values, message):
    with pytest.raises(SettingsError, match=message):
        validate(Config, values, file="r.yaml", owner="schedules/infinite")
