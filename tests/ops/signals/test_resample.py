"""Samples on a common clock: equal to a literal transcription, anti-aliased, never across gaps."""

from itertools import pairwise

import numpy as np
import pytest

from appssl.ops.signals import resample as module
from appssl.ops.signals.resample import GAP, NAN, OK, Clean, filter_factor, lowpass, nearest_samples, resample
from appssl.ops.signals.sample_store import Column, Scratch


def on_clock(seconds, values, *, hz=25.0, max_gap=0.25, recorded_hz=25.0):
    clean = Clean(np.asarray(seconds, float), np.asarray(values, float))
    channels = list(range(clean.values.shape[1]))
    return resample(clean, hz=hz, max_gap=max_gap, recorded_hz=recorded_hz, channels=channels)


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


def test_nearest_sample():
    seconds = np.array([0.0, 1, 4])
    assert nearest_samples(seconds, np.array([-1, 0.4, 0.5, 0.6, 2.6, 9])).tolist() == [0, 0, 0, 1, 2, 2]


# In pieces


def recorded(hz, jitter, seed=0):
    """A recording of a minute with gaps, and rows without a number: single ones, a few seconds, at both ends."""
    rng = np.random.default_rng(seed)
    seconds = 1000.0 + np.arange(int(60 * hz)) / hz
    seconds += rng.uniform(-0.3, 0.3, len(seconds)) / hz if jitter else 0
    values = np.cumsum(rng.standard_normal((len(seconds), 3)), axis=0).astype(np.float32)
    for begin, end in ((0, 0.1), (7, 7.01), (12, 15.5), (20, 20.3), (30.5, 31), (41.0, 52.0), (59.9, 60)):
        values[int(begin * hz) : int(end * hz) + 1, int(begin) % 3] = np.nan
    gone = [slice(int(a * hz), int(b * hz)) for a, b in ((20.3, 20.8), (31, 34), (52.0, 52.4), (56, 56.2))]
    kept = np.delete(np.arange(len(seconds)), np.concatenate([np.arange(len(seconds))[own] for own in gone]))
    return Clean(seconds[kept], values[kept])


@pytest.mark.parametrize("jitter", [False, True])
@pytest.mark.parametrize("hz", [20.0, 25.0, 64.0, 100.0, 333.0])
@pytest.mark.parametrize("step", [1, 7, 100, 1499])
def test_ticks_asked_for_by_themselves_are_as_among_all_others(tmp_path, monkeypatch, hz, jitter, step):
    """To float32 rounding: products of matrices of other sizes add in another order."""
    monkeypatch.setattr(module, "_SEARCHED", 50)
    clean = recorded(hz, jitter)
    how = {"hz": 25.0, "max_gap": 0.25, "recorded_hz": hz, "origin": 1000.0, "channels": [0, 1, 2]}
    first, whole, codes = resample(clean, **how)
    assert {OK, NAN, GAP} <= set(codes)
    with Scratch(tmp_path, 0) as scratch:
        filed = Clean(Column(scratch), Column(scratch))
        for a in range(0, len(clean.seconds), 700):
            filed.seconds.append(clean.seconds[a : a + 700])
            filed.values.append(clean.values[a : a + 700])
        parts = [resample(filed, **how, ticks=(a, a + step)) for a in range(0, first + len(codes) + step, step)]
    np.testing.assert_array_equal(np.concatenate([part[2] for part in parts]), codes)
    found = np.concatenate([part[1] for part in parts])
    np.testing.assert_allclose(found, whole, rtol=0, atol=np.spacing(np.float32(np.nanmax(np.abs(whole)))))
    begins = np.cumsum([first, *(len(part[2]) for part in parts)])[:-1]
    assert all(begin == part[0] for begin, part in zip(begins, parts, strict=True) if len(part[2]))


@pytest.mark.parametrize("hz", [26.0, 50.0, 64.0, 100.0, 333.0])
def test_the_filter_equals_its_sum_written_out(hz):
    """Values on the fine grid by numpy's interpolation, and for every tick the sum over the taps, in float64."""
    clean = recorded(hz, jitter=True)
    first, found, codes = resample(clean, hz=25.0, max_gap=0.25, recorded_hz=hz, origin=1000.0, channels=[0, 1, 2])
    factor = filter_factor(hz, 25.0)
    edges = [0, *(np.flatnonzero(np.diff(clean.seconds) > 0.25) + 1), len(clean.seconds)]
    expected = np.full(found.shape, np.nan)
    taps = lowpass(factor) if factor > 1 else np.ones(1)
    for a, b in pairwise(edges):
        seconds, values = clean.seconds[a:b] - 1000, clean.values[a:b].astype(float)
        good = np.isfinite(values).all(axis=1)
        for tick in range(first, first + len(codes)):
            if seconds[0] <= tick / 25 <= seconds[-1] and codes[tick - first] == OK:
                fine = (tick * factor + np.arange(len(taps)) - len(taps) // 2) / (25 * factor)
                for k in range(3):
                    expected[tick - first, k] = taps @ np.interp(fine, seconds[good], values[good, k])
    np.testing.assert_array_equal(np.isfinite(expected), np.isfinite(found))
    np.testing.assert_allclose(found, expected, rtol=0, atol=np.spacing(np.float32(np.nanmax(np.abs(expected)))))


def test_channels_that_are_not_asked_for_do_not_matter():
    clean = recorded(100.0, jitter=True)
    how = {"hz": 25.0, "max_gap": 0.25, "recorded_hz": 100.0}
    alone = Clean(clean.seconds, clean.values[:, [1]])
    for mine, other in zip(resample(clean, channels=[1], **how), resample(alone, channels=[0], **how), strict=True):
        np.testing.assert_array_equal(mine, other)
