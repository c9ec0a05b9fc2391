import io

import pytest
import torch

from appssl.engine import meter as module
from appssl.engine.meter import Clock, Meter


def scalar(value):
    return torch.tensor(value, requires_grad=True) * 1.0


def test_means_are_those_since_the_last_reading():
    meter = Meter(torch.device("cpu"))
    for step, value in enumerate((1.0, 2.0, 6.0)):
        meter.add(step, scalar(value), {"accuracy": torch.tensor(value / 10)})
    means, bad = meter.read()
    assert means == pytest.approx({"loss": 3.0, "accuracy": 0.3})
    assert bad is None
    meter.add(3, scalar(5.0), {})
    assert meter.read() == ({"loss": 5.0}, None)


def test_a_metric_that_some_steps_lack_is_the_mean_over_those_that_have_it():
    meter = Meter(torch.device("cpu"))
    meter.add(0, scalar(1.0), {})
    meter.add(1, scalar(1.0), {"late": torch.tensor(4.0)})
    assert meter.read()[0]["late"] == 4.0


def test_a_metric_named_loss_does_not_hide_the_loss():
    meter = Meter(torch.device("cpu"))
    meter.add(0, scalar(1.0), {"loss": torch.tensor(9.0)})
    assert meter.read()[0] == {"loss": 1.0}


def test_half_precision_is_added_in_float32():
    meter = Meter(torch.device("cpu"))
    for step in range(300):
        meter.add(step, torch.tensor(300.0, dtype=torch.float16), {})
    assert meter.read()[0]["loss"] == 300.0


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf")])
def test_the_first_step_without_a_finite_loss_is_named(bad):
    meter = Meter(torch.device("cpu"))
    for step, value in enumerate((1.0, bad, 2.0, bad)):
        meter.add(10 + step, scalar(value), {})
    assert meter.read()[1] == 11


def test_a_metric_that_is_not_finite_does_not_stop_training():
    meter = Meter(torch.device("cpu"))
    meter.add(0, scalar(1.0), {"ratio": torch.tensor(float("nan"))})
    assert meter.read()[1] is None


def test_without_steps_there_is_nothing():
    assert Meter(torch.device("cpu")).read() == ({}, None)


class Time:
    """A clock that a test moves."""

    def __init__(self, monkeypatch):
        self.now = 100.0
        monkeypatch.setattr(module.time, "perf_counter", lambda: self.now)


def test_rates_of_an_interval_and_of_the_whole(monkeypatch):
    time = Time(monkeypatch)
    clock = Clock("x", start=10, stop=30, batch_size=4, shown=False)
    time.now += 2
    clock.waited(0.5)
    assert clock.interval(5) == pytest.approx(
        {"time/step_seconds": 0.4, "time/samples_per_second": 10.0, "time/data_wait_share": 0.25}
    )
    time.now += 2
    assert clock.interval(5)["time/data_wait_share"] == 0
    clock.probed(0.25)
    assert clock.total(20) == pytest.approx((10.0, 0.125, 0.0625))


def test_the_line_says_rate_time_left_and_waiting_and_the_last_one_always_comes(monkeypatch, capsys):
    time = Time(monkeypatch)
    clock = Clock("pretraining", start=0, stop=100, batch_size=8, shown=True)
    time.now += 10
    clock.waited(1)
    clock.say(10, 0.5)
    clock.say(11, 0.5)  # too soon for another line
    clock.say(100, 0.25)
    lines = capsys.readouterr().err.splitlines()
    assert lines[0] == "pretraining step 10/100  loss 0.5000  8 samples/s  1:30 left  waiting for data 10%"
    assert lines[1].startswith("pretraining step 100/100  loss 0.2500  80 samples/s  0:00 left")
    assert len(lines) == 2


def test_only_the_first_process_speaks(capsys):
    Clock("x", 0, 10, 1, shown=False).say(10, 1.0)
    assert capsys.readouterr().err == ""


class Terminal(io.StringIO):
    def isatty(self):
        return True


def test_on_a_terminal_it_is_one_line_with_a_bar(monkeypatch):
    terminal = Terminal()
    monkeypatch.setattr(module.sys, "stderr", terminal)
    clock = Clock("x", 0, 4, 1, shown=True)
    for step in range(1, 5):
        clock.say(step, 1.0)
    text = terminal.getvalue()
    assert text.count("\r") == 4
    assert text.count("\n") == 1
    assert "[" + "█" * 12 + "·" * 12 + "] x step 2/4" in text
