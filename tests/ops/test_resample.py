"""Samples on a common clock: equal to a literal transcription, anti-aliased, never across gaps."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from appssl.ops.recordings import BadRecording
from appssl.ops.resample import GAP, NAN, OK, check_rate, estimated_hz, increasing, lowpass, nearest_samples, resample

ROWS = np.arange(1, 10_001)


def on_clock(seconds, values, *, hz=25.0, max_gap=0.25, recorded_hz=25.0):
    return resample(
        np.asarray(seconds, float), np.asarray(values, float), hz=hz, max_gap=max_gap, recorded_hz=recorded_hz
    )


def literal(seconds, values, hz, max_gap):
    """{tick: value} of one channel, tick by tick and pair by pair; the same rate, no filter."""
    found = {}
    for tick in range(int(seconds[-1] * hz) + 2):
        t = tick / hz
        for k in range(len(seconds) - 1):
            if seconds[k] <= t <= seconds[k + 1] and seconds[k + 1] - seconds[k] <= max_gap:
                share = (t - seconds[k]) / (seconds[k + 1] - seconds[k])
                value = values[k] * (1 - share) + values[k + 1] * share
                if np.isfinite(value):
                    found[tick] = value
    return found


@pytest.mark.parametrize("seed", range(5))
def test_equals_linear_interpolation_pair_by_pair(seed):
    rng = np.random.default_rng(seed)
    seconds = np.cumsum(rng.uniform(0.01, 0.09, 60)) + np.repeat([0.0, 1.3], 30)
    values = rng.standard_normal((60, 1))
    values[[10, 40, 41]] = np.nan
    first, found, codes = on_clock(seconds, values, hz=20.0, max_gap=0.2, recorded_hz=20.0)
    expected = literal(seconds, values[:, 0], 20.0, 0.2)
    assert {first + k for k in np.flatnonzero(codes == OK)} == set(expected)
    for tick, value in expected.items():
        assert found[tick - first, 0] == pytest.approx(value, abs=1e-5)
    assert np.isnan(found[codes != OK]).all()
    assert np.isfinite(found[codes == OK]).all()


def test_stamps_on_the_ticks_give_their_values_exactly():
    values = np.random.default_rng(0).standard_normal((125, 3)).astype(np.float32)
    first, found, codes = on_clock(np.arange(125) / 25, values)
    assert first == 0
    assert (codes == OK).all()
    np.testing.assert_array_equal(found, values)


def test_a_gap_stays_empty_and_its_edges_stay():
    seconds = np.concatenate([np.arange(50) / 25, 4 + np.arange(50) / 25])
    _, found, codes = on_clock(seconds, np.ones((100, 2)))
    assert (codes[:50] == OK).all()
    assert (codes[50:100] == GAP).all()
    assert (codes[100:] == OK).all()
    assert np.isnan(found[50:100]).all()


def test_ticks_beside_a_sample_without_number_say_so():
    values = np.ones((50, 2))
    values[20, 1] = np.nan
    _, found, codes = on_clock(np.arange(50) / 25, values)
    assert list(np.flatnonzero(codes == NAN)) == [20]
    assert np.isnan(found[20]).all()
    _, _, between = on_clock(np.arange(50) / 25 + 0.01, values)  # ticks lie between stamps
    assert list(np.flatnonzero(between == NAN)) == [19, 20]


def test_only_missing_numbers_leave_nothing():
    _, found, codes = on_clock(np.arange(30) / 25, np.full((30, 1), np.nan))
    assert (codes == NAN).all()
    assert np.isnan(found).all()


# Where the rates have no whole ratio, the straight lines between stamps carry images of a wave of f Hz, weakened to
# (f / (rate + f))^2: 7 % at 64 Hz, 3 % at 103 Hz, before the filter.
@pytest.mark.parametrize(("recorded", "left"), [(64.0, 0.04), (100.0, 0.004), (103.0, 0.01), (400.0, 0.004)])
def test_downsampling_keeps_what_is_slow_and_stops_what_would_alias(recorded, left):
    seconds = np.arange(int(20 * recorded)) / recorded
    slow, fast = np.sin(2 * np.pi * 3 * seconds), np.sin(2 * np.pi * 22 * seconds)  # 22 Hz would show as 3 Hz
    first, found, _ = on_clock(seconds, np.stack([slow, fast, slow * 0 + 9.81], axis=1), recorded_hz=recorded)
    ticks = (first + np.arange(len(found))) / 25
    inner = (ticks > 1) & (ticks < 19)
    # Linear interpolation at 64 Hz loses up to 0.4 % of a 3 Hz wave; the filter itself 0.1 %.
    assert np.abs(found[inner, 0] - np.sin(2 * np.pi * 3 * ticks[inner])).max() < 0.01
    assert np.abs(found[inner, 1]).max() < left
    np.testing.assert_allclose(found[:, 2], 9.81, rtol=1e-5)


def test_the_filter_passes_and_stops_what_it_states():
    for factor in (2, 3, 4, 16):
        taps = lowpass(factor)
        assert len(taps) // 2 % factor == 0
        np.testing.assert_allclose(taps, taps[::-1])
        response = lambda f, taps=taps: abs(np.sum(taps * np.exp(-2j * np.pi * f * np.arange(len(taps)))))  # noqa: E731
        for share in np.linspace(0, 0.4, 9):
            assert response(share / factor) == pytest.approx(1, abs=2e-3)
        for share in np.linspace(0.5, 0.5 * factor, 9):
            assert response(share / factor) < 2e-3


def test_resampling_is_linear_and_does_not_mix_channels():
    rng = np.random.default_rng(3)
    seconds = np.arange(400) / 100
    a, b = rng.standard_normal((2, 400, 2))
    both = [on_clock(seconds, v, recorded_hz=100.0)[1] for v in (a, b, 2 * a + b)]
    np.testing.assert_allclose(both[2], 2 * both[0] + both[1], atol=1e-5)
    a[:, 1] = 0
    assert (on_clock(seconds, a, recorded_hz=100.0)[1][:, 1] == 0).all()


def test_a_recording_between_two_ticks_has_none():
    first, found, codes = on_clock([0.001, 0.02], np.ones((2, 1)))
    assert (first, len(found), len(codes)) == (1, 0, 0)


@given(st.floats(5, 200), st.integers(20, 200))
def test_the_estimated_rate_of_regular_stamps_is_their_rate(hz, count):
    assert estimated_hz(np.arange(count) / hz, count) == pytest.approx(hz, rel=1e-6)


def test_the_estimated_rate_ignores_pauses_and_counts_repeated_stamps():
    rng = np.random.default_rng(0)
    seconds = np.arange(1000) / 100 + rng.uniform(-0.003, 0.003, 1000)
    assert estimated_hz(seconds + np.repeat([0, 60], 500), 1000) == pytest.approx(100, rel=0.01)
    bursts = np.repeat(np.arange(500) / 50, 2)  # every stamp twice: a clock of 50 Hz, samples of 100
    clean = increasing(bursts, np.ones((1000, 1)), ROWS[:1000])
    assert estimated_hz(clean.seconds, 1000) == pytest.approx(100, rel=0.01)


def test_equal_times_are_averaged_and_named():
    clean = increasing(np.array([0.0, 1, 1, 1, 2]), np.array([[0.0], [3], [6], [0], [1]]), ROWS[:5])
    assert clean.seconds.tolist() == [0, 1, 2]
    assert clean.values.tolist() == [[0], [3], [1]]
    assert clean.repeated.tolist() == [3, 4]
    assert clean.kept.tolist() == [0, 1, 4]


@pytest.mark.parametrize(
    ("seconds", "reason", "detail"),
    [
        ([0, 1, 0.5, 2, 1.9], "time_goes_back", r"earlier than in the row before, row\(s\) 3, 5$"),
        ([1], "too_short", "1 sample"),
        ([1, 1, 1], "too_short", r"3 sample\(s\) with 1 different"),
        ([0, 0, 0, 1, 1, 2], "time_repeated", r"3 of 6|row\(s\) 2, 3, 5"),
    ],
)
def test_unusable_times_are_explained(seconds, reason, detail):
    seconds = np.array(seconds, float)
    if reason == "time_repeated":
        seconds = np.append(seconds, [2.0, 2.0])
    with pytest.raises(BadRecording, match=detail) as caught:
        increasing(seconds, np.ones((len(seconds), 1)), ROWS[: len(seconds)])
    assert caught.value.reason == reason


def test_at_most_twenty_rows_are_named():
    seconds = np.tile([1.0, 0.0], 100)
    with pytest.raises(BadRecording, match="and 80 more"):
        increasing(seconds, np.ones((200, 1)), ROWS[:200])


@pytest.mark.parametrize(
    ("found", "values", "message"),
    [
        (100, {"stated": 50}, "sampling_hz 50 is stated, the times say 100.*time_unit"),
        (1, {}, "samples are 1 s apart, max_gap_seconds is 0.25"),
        (10, {}, "10 Hz, less than half of sampling_hz 25"),
    ],
)
def test_rates_that_cannot_be_are_refused(found, values, message):
    with pytest.raises(BadRecording, match=message):
        check_rate(found, **{"stated": None, "hz": 25.0, "max_gap": 0.25, **values})


def test_a_stated_rate_may_differ_by_a_fifth():
    check_rate(60.0, stated=50.0, hz=25.0, max_gap=0.25)
    check_rate(40.0, stated=50.0, hz=25.0, max_gap=0.25)


def test_nearest_sample():
    seconds = np.array([0.0, 1, 4])
    assert nearest_samples(seconds, np.array([-1, 0.4, 0.5, 0.6, 2.6, 9])).tolist() == [0, 0, 0, 1, 2, 2]
