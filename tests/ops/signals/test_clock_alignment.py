"""Drifting clocks are found from motion, and what cannot be told is not."""

import numpy as np
import pytest

from appssl.ops.signals import clock_alignment, sample_store
from appssl.ops.signals.clock_alignment import (
    MotionEnergy,
    _correlation,
    _theil_sen,
    align,
    motion_energy,
    vector_lengths,
)

HZ = 50.0


def motion(hours, seed=0):
    """Bouts of movement of a body, as a function of true time: how strongly it moves, at 200 Hz."""
    rng = np.random.default_rng(seed)
    count = int(hours * 3600 * 200)
    bouts = np.repeat(rng.random(count // 2000 + 1) < 0.5, 2000)[:count] * 1.0
    return np.abs(np.convolve(rng.standard_normal(count), np.ones(20) / 20, "same")) * bouts


def recorded(body, *, offset, drift, seed, noise=0.02, hz=HZ):
    """Energy on a grid of a clock that shows offset + (1 + drift) t at true time t."""
    ticks = np.arange(int(len(body) / 200 * hz)) / hz
    true = (ticks - offset) / (1 + drift)
    values = np.interp(true, np.arange(len(body)) / 200, body, left=np.nan, right=np.nan)
    return (values + noise * np.random.default_rng(seed).standard_normal(len(values))).astype(np.float32)


@pytest.mark.parametrize(("offset", "ppm"), [(0.0, 0.0), (3.317, 40.0), (-12.5, -85.0)])
def test_offset_and_drift_are_found_to_within_20_ms_over_a_day(offset, ppm):
    body = motion(24)
    first = recorded(body, offset=0, drift=0, seed=1)
    second = recorded(body, offset=offset, drift=ppm * 1e-6, seed=2)
    found = align(first, second, hz=HZ)
    times = np.linspace(0, 86_400, 50)
    error = found.offset + found.drift * times - (offset + ppm * 1e-6 * times)
    assert np.abs(error).max() < 0.02
    assert found.drift_per_day == pytest.approx(ppm * 1e-6 * 86_400, abs=0.02)
    assert found.residual < 0.01
    shown = offset + (1 + ppm * 1e-6) * times
    assert np.abs(found.on_first_clock(shown) - times).max() < 0.02


def test_gaps_still_stretches_and_a_wrong_hour_do_not_mislead():
    body = motion(4)
    first = recorded(body, offset=0, drift=0, seed=1)
    second = recorded(body, offset=1.5, drift=30e-6, seed=2)
    hour = int(3600 * HZ)
    first[hour : hour + hour // 2] = np.nan
    second[2 * hour : 2 * hour + hour // 4] = recorded(motion(4, seed=9), offset=0, drift=0, seed=3)[: hour // 4]
    found = align(first, second, hz=HZ)
    assert found.offset == pytest.approx(1.5, abs=0.02)
    assert found.drift * 4 * 3600 == pytest.approx(30e-6 * 4 * 3600, abs=0.02)
    assert found.num_used <= found.num_blocks < 48


def test_bodies_that_have_nothing_in_common_or_do_not_move_give_nothing():
    one = recorded(motion(1), offset=0, drift=0, seed=1)
    other = recorded(motion(1, seed=5), offset=0, drift=0, seed=2)
    assert align(one, other, hz=HZ) is None
    assert align(np.zeros_like(one), np.zeros_like(one), hz=HZ) is None
    assert align(np.full_like(one, np.nan), other, hz=HZ) is None
    assert align(one[:100], one[:100], hz=HZ) is None


def test_a_difference_beyond_the_reach_is_not_found():
    body = motion(1)
    second = recorded(body, offset=45.0, drift=0, seed=2)
    assert align(recorded(body, offset=0, drift=0, seed=1), second, hz=HZ) is None
    assert align(recorded(body, offset=0, drift=0, seed=1), second, hz=HZ, max_lag_seconds=60).offset == pytest.approx(
        45, abs=0.02
    )


def test_the_correlation_equals_that_of_numpy_at_every_place():
    rng = np.random.default_rng(0)
    block, other = rng.standard_normal(40), rng.standard_normal(60)
    expected = [np.corrcoef(block, other[k : k + 40])[0, 1] for k in range(21)]
    found = _correlation(block, other)
    assert found * np.std(block) == pytest.approx(np.array(expected) * np.std(block), abs=1e-9)


def test_motion_energy_sees_motion_and_not_posture_or_units():
    time = np.arange(0, 40, 1 / HZ)
    still = np.zeros((len(time), 3)) + np.array([0, 0, 9.81])
    still[len(time) // 2 :] = np.array([9.81, 0, 0])  # turned over: the length stays
    assert motion_energy(still, HZ).max() == pytest.approx(0, abs=1e-6)
    shaken = still.copy()
    shaken[500:1000, 0] += 3 * np.sin(2 * np.pi * 3 * time[500:1000])
    shaken[1500] = np.nan
    energy = motion_energy(shaken, HZ)
    assert energy[550:950].mean() > 20 * np.nanmean(energy[1200:])
    assert np.isnan(energy[1500])
    assert np.isfinite(np.delete(energy, 1500)).all()
    np.testing.assert_allclose(motion_energy(shaken / 9.81, HZ) * 9.81, energy, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("hz", [1.0, 25.0, HZ])
def test_energy_read_in_parts_is_that_of_the_whole(monkeypatch, hz):
    rng = np.random.default_rng(0)
    values = np.cumsum(rng.standard_normal((1500, 3)), axis=0)
    values[[3, 700, 701, 1499]] = np.nan
    whole = motion_energy(values, hz)
    monkeypatch.setattr(sample_store, "CHUNK_ROWS", 97)
    found = MotionEnergy(vector_lengths(values), hz)
    assert len(found) == 1500
    for begin, end in ((0, 1), (0, 500), (333, 900), (701, 702), (1400, 1500), (1499, 1600)):
        np.testing.assert_allclose(found[begin:end], whole[begin:end], rtol=1e-6, atol=1e-6)
    assert np.isnan(MotionEnergy(np.full(5, np.nan), hz)[:]).all()


def test_lines_through_many_blocks_pair_a_part_of_them(monkeypatch):
    x = np.arange(50.0)
    y = 3 + 0.5 * x + np.random.default_rng(0).standard_normal(50) * 0.01
    slopes = [(y[b] - y[a]) / (x[b] - x[a]) for b in range(0, 50, 3) for a in range(0, b, 3)]
    monkeypatch.setattr(clock_alignment, "_PAIRED", 20)
    slope, level = _theil_sen(x, y)
    assert slope == pytest.approx(np.median(slopes))
    assert level == pytest.approx(np.median(y - slope * x))
