import pytest

from appssl.schedules.constant import Config, build


def test_it_is_one_throughout():
    factor = build(Config())
    assert {factor(step, 9) for step in range(9)} == {1.0}


def test_warmup_rises_linearly_to_one():
    factor = build(Config(warmup=0.4))
    assert [factor(step, 10) for step in range(6)] == pytest.approx([0.25, 0.5, 0.75, 1, 1, 1])


def test_a_training_too_short_to_warm_up_begins_at_one():
    assert build(Config(warmup=0.5))(0, 1) == 1
