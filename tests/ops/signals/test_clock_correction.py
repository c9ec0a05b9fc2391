"""Clocks of a session's devices: compared, corrected where asked for, refused where unclear."""

from pathlib import Path

import numpy as np
import polars as pl
import pytest

from appssl.ops.signals import clock_correction
from appssl.ops.signals.clock_correction import CLOCKS, Clocks, Lengths, clocks_differ, measured_lengths
from appssl.ops.signals.recordings import Recording
from appssl.ops.signals.resample import Clean
from appssl.ops.signals.sample_store import Scratch
from appssl.ops.signals.sessions import Usable, clock_of, on_one_clock

HZ, MINUTES = 25.0, 20
HOW = {"hz": HZ, "max_gap": 0.25, "max_residual": 1.0}


def body(seed=0):
    """Acceleration of a body that moves now and then, as a function of time; its length varies."""
    rng = np.random.default_rng(seed)
    time = np.arange(0, MINUTES * 60 + 60, 0.01)
    bouts = np.repeat(rng.random(len(time) // 500 + 1), 500)[: len(time)] ** 3
    shake = np.convolve(rng.standard_normal(len(time)), np.ones(8) / 8, "same") * bouts * 10
    return lambda t: np.interp(t, time, shake)


def worn(device, moves, *, offset=0.0, drift=0.0, start=1000.0, seconds=MINUTES * 60):
    """A recording whose clock shows start + offset + (1 + drift) t."""
    true = np.arange(0, seconds, 1 / HZ)
    rng = np.random.default_rng(len(device))
    values = 0.05 * rng.standard_normal((len(true), 3))
    values[:, 2] += 9.81 + moves(true)
    shown = start + offset + (1 + drift) * true
    recording = Recording(id=f"r_{device}", subject="p", device=device, where="table row 1")
    return Usable(recording, Clean(shown, values), None, HZ)


def compared(part, devices, acceleration, settings, *, hz, max_gap, max_residual):
    with Scratch(Path()) as scratch:
        lengths = {}
        if acceleration:
            found = measured_lengths(clock_of(part, devices, hz), acceleration, scratch, max_gap)
            lengths = found.by_device(devices)
        return clock_correction.compared(part, lengths, settings, hz=hz, max_residual=max_residual)


def settings(**values):
    return Clocks(block_seconds=60.0, **values)


def test_a_drifting_clock_is_measured_and_left_alone_unless_asked():
    moves = body()
    part = [worn("hip", moves), worn("wrist", moves, offset=2.0, drift=200e-6)]
    result, (row,) = compared(part, ["hip", "wrist"], [0, 1, 2], settings(), **HOW)
    assert (row["device"], row["reference"], row["outcome"]) == ("wrist", "hip", "estimated")
    assert row["offset_seconds"] == pytest.approx(2.0, abs=0.02)
    assert row["drift_seconds_per_day"] == pytest.approx(200e-6 * 86_400, abs=2)
    assert all(u.clean is v.clean for u, v in zip(result, part, strict=True))


def test_a_corrected_clock_shows_the_time_of_the_reference():
    moves = body()
    part = [worn("hip", moves), worn("wrist", moves, offset=-3.0, drift=200e-6)]
    result, (row,) = compared(part, ["hip", "wrist"], [0, 1, 2], settings(correct=True), **HOW)
    assert row["outcome"] == "corrected"
    hip, wrist = (next(u for u in result if u.recording.device == d).clean.seconds[:] for d in ("hip", "wrist"))
    assert np.abs(hip - wrist).max() < 0.02
    assert (np.diff(wrist) > 0).all()


def test_the_reference_can_be_named():
    moves = body()
    part = [worn("hip", moves), worn("wrist", moves, offset=2.0)]
    _, (row,) = compared(part, ["hip", "wrist"], [0, 1, 2], settings(reference="wrist"), **HOW)
    assert (row["device"], row["reference"]) == ("hip", "wrist")
    assert row["offset_seconds"] == pytest.approx(-2.0, abs=0.02)


def test_what_cannot_be_told_is_said_so():
    moves = body()
    short = [worn("hip", moves, seconds=30), worn("wrist", moves, seconds=30)]
    assert compared(short, ["hip", "wrist"], [0, 1, 2], settings(), **HOW)[1][0]["outcome"] == "not_estimated"
    strangers = [worn("hip", moves), worn("wrist", body(seed=5))]
    result, (row,) = compared(strangers, ["hip", "wrist"], [0, 1, 2], settings(correct=True), **HOW)
    assert row["outcome"] in ("unclear", "not_estimated")
    assert result[1].clean is strangers[1].clean
    part = [worn("hip", moves), worn("wrist", moves)]
    assert compared(part, ["hip", "wrist"], [], settings(), **HOW) == (part, [])
    assert compared(part[:1], ["hip", "wrist"], [0, 1, 2], settings(), **HOW) == (part[:1], [])
    assert compared(part, ["hip", "wrist"], [0, 1, 2], settings(compare=False), **HOW) == (part, [])


def test_a_clock_that_no_line_describes_is_unclear_and_not_corrected():
    moves = body()
    wrist = worn("wrist", moves)
    jumps = np.repeat([0, 5.0, -4.0, 6.0], len(wrist.clean.seconds) // 4)
    shown = np.sort(wrist.clean.seconds + jumps)
    jumping = Usable(wrist.recording, Clean(shown, wrist.clean.values), None, HZ)
    result, (row,) = compared(
        [worn("hip", moves), jumping],
        ["hip", "wrist"],
        [0, 1, 2],
        settings(correct=True),
        **{**HOW, "max_residual": 0.1},
    )
    assert row["outcome"] in ("unclear", "not_estimated")
    assert result[1].clean is jumping.clean


def test_the_report_warns_of_clocks_that_were_not_corrected():
    def table(*rows):
        about = {"session": "p/0001", "subject": "p", "device": "wrist", "reference": "hip"}
        return pl.DataFrame([{**about, **row} for row in rows], schema=CLOCKS)

    near = {"outcome": "estimated", "offset_seconds": 0.0, "lag_seconds": [0.01, -0.05]}
    far = {"outcome": "estimated", "offset_seconds": 3.0, "lag_seconds": [3.0, -3.21], "session": "p/0002"}
    assert clocks_differ(table(near)) == ""
    assert clocks_differ(table({**far, "outcome": "corrected"})) == ""
    assert clocks_differ(table()) == ""
    assert "differ by up to 3.21 s in 1 of 2 compared sessions" in clocks_differ(table(near, far))


def test_lengths_met_in_passing_are_those_measured_by_themselves(tmp_path):
    moves = body()
    part = [worn("hip", moves, seconds=100), worn("wrist", moves, offset=20.0, seconds=50)]
    clock = clock_of(part, ["hip", "ankle", "wrist"], HZ)
    with Scratch(tmp_path) as scratch:
        passing = Lengths(clock, [0, 1, 2], scratch)
        for piece in on_one_clock(clock, [0, 1, 2], max_gap=0.25):
            passing.add(piece.values)
        measured = measured_lengths(clock, [0, 1, 2], scratch, 0.25)
        for found in (passing, measured):
            by_device = found.by_device(["hip", "ankle", "wrist"])
            assert list(by_device) == ["hip", "wrist"]
            assert [len(column) for column in by_device.values()] == [clock.length] * 2
            expected = np.linalg.norm(part[1].clean.values, axis=1)  # stamps are on the ticks
            first = np.flatnonzero(np.isfinite(by_device["wrist"][:]))[0]
            assert first == 500
            np.testing.assert_allclose(by_device["wrist"][500:1750], expected, rtol=1e-6)
            assert np.isnan(by_device["wrist"][1750:]).all()
