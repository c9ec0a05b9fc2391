"""Samples at the limit of a sensor, against made signals whose truth is known; the same wherever chunks end."""

import numpy as np
import pytest

from appssl.ops.signals.saturation import Extremes, fresh, runs_at


def saturated(values, shortest, size=10**9, is_fresh=None):
    """(n,) bool."""
    is_fresh = np.ones(len(values), bool) if is_fresh is None else is_fresh
    chunks = [(values[a : a + size], is_fresh[a : a + size]) for a in range(0, len(values), size)]
    extremes = Extremes()
    for part, own in chunks:
        extremes.add(part, own)
    flags = np.zeros(len(values), bool)
    for limit in extremes.limits(shortest):
        for a, b in runs_at(limit, chunks, shortest):
            flags[a:b] = True
    return flags


def test_runs_at_the_limit_of_the_sensor_are_saturated():
    rng = np.random.default_rng(0)
    true = np.cumsum(rng.standard_normal(5000)) * 0.1
    true = 15 * np.sin(np.arange(5000) / 40) + true - true.mean()
    shown = np.clip(true, -12.0, 12.0)
    found = saturated(shown, 3)
    beyond = np.abs(true) >= 12.0
    assert beyond.sum() > 100
    expected = np.zeros(5000, bool)
    for k in range(5000):
        low, high = k, k
        while low > 0 and shown[low - 1] == shown[k]:
            low -= 1
        while high < 4999 and shown[high + 1] == shown[k]:
            high += 1
        expected[k] = beyond[k] and high - low + 1 >= 3
    np.testing.assert_array_equal(found, expected)
    assert not saturated(true, 3).any()


@pytest.mark.parametrize(
    "values",
    [
        np.round(np.random.default_rng(0).standard_normal(5000) * 0.6),  # rounded noise
        np.repeat([0.1, 0.9, 0.5, 0.2], 500) + np.random.default_rng(0).standard_normal(2000) * 0.01,  # postures
        np.repeat([0.0, 1.0], 500),  # a switch
        np.maximum(np.random.default_rng(0).standard_normal(3000), 0) * 300,  # light: dark is no limit
        np.full(100, 4.0),
        np.full(100, np.nan),
        np.arange(1000.0),
        np.zeros(0),
    ],
)
def test_what_is_no_limit_is_not_saturated(values):
    assert not saturated(values, 3).any()


def test_a_single_peak_is_not_saturated():
    values = np.sin(np.arange(500) / 7) * 10
    values[[50, 52]] = 30.0
    assert not saturated(values, 2).any()
    values[51] = 30.0
    assert saturated(values, 3).sum() == 3


# Against the rule written out


def literal(values, shortest, is_fresh):
    """Levels, their numbers and the median of all fresh samples at once; runs one after the other."""
    flags = np.zeros(len(values), bool)
    known = values[is_fresh & np.isfinite(values)]
    for sign in (1, -1):
        levels, counts = np.unique(sign * known, return_counts=True)
        if len(levels) < 2 or levels[-1] <= 0 or counts[-1] < 3 * counts[-2]:
            continue
        if (levels > np.median(sign * known)).sum() <= 16:
            continue
        a = 0
        while a < len(values):
            b = a
            while b < len(values) and sign * values[b] == levels[-1]:
                b += 1
            if is_fresh[a:b].sum() >= shortest:
                flags[a:b] = True
            a = max(b, a + 1)
    return flags


@pytest.mark.parametrize("size", [1, 9, 100, 10**9])
@pytest.mark.parametrize("seed", range(12))
def test_equals_the_rule_written_out_wherever_chunks_end(seed, size):
    """Clipped walks, rounded to few or many levels, with held and missing samples; some saturate and some do not."""
    rng = np.random.default_rng(seed)
    walk = np.cumsum(rng.standard_normal(600)) / (1 + seed % 3)
    values = np.clip(
        np.round(walk, seed % 4 - 1 if seed % 4 else 3), *np.quantile(walk, [0.1, 0.5 + 0.05 * (seed % 9)])
    )
    values = values - values.mean().round(3) if seed % 2 else values
    values[rng.integers(0, 600, 9)] = np.nan
    is_fresh = rng.random(600) < 0.7
    for shortest in (2, 3, 5):
        np.testing.assert_array_equal(saturated(values, shortest, size, is_fresh), literal(values, shortest, is_fresh))


def test_some_of_these_saturate():
    rng = np.random.default_rng(0)
    walk = np.cumsum(rng.standard_normal(600))
    values = np.clip(walk - walk.mean(), -5, 5)
    everything = np.ones(600, bool)
    assert literal(values, 3, everything).sum() > 50
    np.testing.assert_array_equal(saturated(values, 3, 10), literal(values, 3, everything))


@pytest.mark.parametrize("above", [16, 17])
@pytest.mark.parametrize("extra", [0, 1])
def test_sixteen_levels_between_the_limit_and_the_median_decide(above, extra):
    """Above the median lie `above` levels, the limit among them; even and odd numbers of samples."""
    high = np.concatenate([np.arange(1.0, above), np.full(5, float(above))])
    values = np.concatenate([high, np.zeros(len(high) + extra)])
    assert saturated(values, 3).any() == literal(values, 3, np.ones(len(values), bool)).any() == (above > 16)


@pytest.mark.parametrize("size", [1, 3, 50])
def test_rows_that_repeat_the_one_before_are_not_fresh(size):
    rng = np.random.default_rng(0)
    values = rng.integers(0, 2, (200, 4)).astype(float)
    values[50:53, 1] = np.nan  # is never the same
    expected = [k == 0 or any(a != b for a, b in zip(values[k], values[k - 1], strict=True)) for k in range(200)]
    found, before = [], values[:0]
    for a in range(0, 200, size):
        found += fresh(values[a : a + size], before).tolist()
        before = values[a : a + size][-1:]
    assert found == expected
    assert 0 < sum(found) < 200
    assert fresh(values[:, :2], values[:0, :2]).all()  # two channels repeat by chance
