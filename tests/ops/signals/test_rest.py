"""Times without motion, against made signals whose truth is known; the same wherever chunks end."""

import numpy as np
import pytest

from appssl.ops.signals import rest
from appssl.ops.signals.quality import Wear, unit_of
from appssl.ops.signals.rest import BlockSums
from appssl.settings import validate

HZ = 10.0


def settings(**values):
    return validate(Wear, values, file="recipe", owner="wear")


def worn(minutes, *, gravity=9.81, seed=0, moves=0.3):
    """Acceleration of a device that moves: times (n,) and values (n, 3), every axis moves by `moves` of gravity."""
    rng = np.random.default_rng(seed)
    count = int(minutes * 60 * HZ)
    values = gravity * moves * rng.standard_normal((count, 3))
    values[:, 2] += gravity
    return np.arange(count) / HZ, values


def lying(values, begin, end, *, gravity=9.81, noise_mg=2.0):
    """Puts the device on a table from minute `begin` to `end`, in place."""
    part = slice(int(begin * 60 * HZ), int(end * 60 * HZ))
    shape = values[part].shape
    values[part] = gravity * noise_mg / 1000 * np.random.default_rng(9).standard_normal(shape) + [0, 0, gravity]


def blocks(seconds, values, length, size=10**9):
    """Of the samples that have all numbers, in chunks of `size`."""
    sums = BlockSums(length)
    good = np.flatnonzero(np.isfinite(values).all(axis=1))
    for a in range(0, len(good), size):
        own = good[a : a + size]
        sums.add(own, seconds[own], values[own].astype(np.float64))
    return sums.blocks()


def not_worn(seconds, values, hz, wear, size=10**9):
    found = rest.not_worn(blocks(seconds, values, wear.block_seconds, size), hz, wear.still_mg, wear.minutes)
    for a, b, lasted in found:
        assert lasted == seconds[b - 1] - seconds[a]
    return [(a, b) for a, b, _ in found]


def at_rest(seconds, values, hz, still_mg, size=10**9):
    return rest.at_rest(blocks(seconds, values, rest.rest_seconds(hz), size), hz, still_mg)


@pytest.mark.parametrize("gravity", [1.0, 9.81, 1000.0, 9810.0])
def test_a_device_on_a_table_is_not_worn_in_any_unit(gravity):
    seconds, values = worn(180, gravity=gravity)
    lying(values, 40.0, 120.0, gravity=gravity)
    ((a, b),) = not_worn(seconds, values, HZ, Wear())
    assert seconds[a] == pytest.approx(40 * 60)
    assert seconds[b - 1] == pytest.approx(120 * 60 - 0.1)


def test_rest_equals_a_loop_over_blocks():
    rng = np.random.default_rng(3)
    seconds, values = worn(60)
    for minute in rng.choice(60, 40, replace=False):
        lying(values, minute, minute + 1, noise_mg=rng.choice([5.0, 30.0]))
    wear = settings(minutes=2.0)
    still = []
    for block in range(60):
        own = values[block * 600 : (block + 1) * 600]
        still.append(own.std(axis=0).max() <= 0.013 * np.linalg.norm(own.mean(axis=0)))
    expected, begin = [], None
    for block, is_still in enumerate([*still, False]):
        if is_still and begin is None:
            begin = block
        if not is_still and begin is not None:
            expected += [(begin * 600, block * 600)] if block - begin >= 2 else []
            begin = None
    assert len(expected) > 2
    assert not_worn(seconds, values, HZ, wear) == expected


def test_less_than_the_stated_time_and_sleep_that_stirs_are_worn():
    seconds, values = worn(120)
    lying(values, 20.0, 79.0)
    assert not_worn(seconds, values, HZ, Wear()) == []
    assert len(not_worn(seconds, values, HZ, settings(minutes=59.0))) == 1
    lying(values, 0.0, 120.0)
    values[:: int(600 * HZ)] += 30.0  # every ten minutes
    assert not_worn(seconds, values, HZ, Wear()) == []


def test_one_axis_that_moves_is_motion():
    seconds, values = worn(90)
    lying(values, 0.0, 90.0)
    values[:, 0] += 0.3 * np.sin(seconds)  # 21 mg
    assert not_worn(seconds, values, HZ, Wear()) == []
    assert len(not_worn(seconds, values, HZ, settings(still_mg=30.0))) == 1


def test_a_pause_without_samples_ends_a_time_at_rest_and_empty_cells_do_not():
    seconds, values = worn(100)
    lying(values, 0.0, 100.0)
    empty = values.copy()
    empty[::7] = np.nan
    assert not_worn(seconds, empty, HZ, Wear()) == [(1, len(values))]  # from the first number to the last
    kept = (seconds < 50 * 60) | (seconds > 55 * 60)
    assert not_worn(seconds[kept], values[kept], HZ, Wear()) == []


def test_a_sensor_that_shows_one_number_is_at_rest_also_without_gravity():
    seconds, values = worn(70)
    for number in (0.0, 0.1):
        values[:] = number
        assert len(not_worn(seconds, values, HZ, Wear())) == 1
    assert not_worn(seconds, np.full_like(values, np.nan), HZ, Wear()) == []


@pytest.mark.parametrize(
    ("gravity", "unit"),
    [(1.02, "g"), (9.81, "m/s2"), (9.4, "m/s2"), (1000, "cm/s2 or mg"), (981, "cm/s2 or mg"), (9810, "mm/s2")],
)
def test_gravity_at_rest_says_the_unit(gravity, unit):
    seconds, values = worn(2, gravity=gravity)
    lying(values, 0.5, 1.0, gravity=gravity)
    found = at_rest(seconds, values, HZ, 13.0)
    assert found == pytest.approx(gravity, rel=1e-3)
    assert unit_of(found) == unit


def test_without_rest_there_is_no_gravity_and_another_length_is_unclear():
    seconds, values = worn(2)
    assert at_rest(seconds, values, HZ, 13.0) is None
    assert at_rest(seconds[:5], values[:5], HZ, 13.0) is None
    assert at_rest(seconds, np.zeros_like(values), HZ, 13.0) is None
    assert unit_of(4.0) == unit_of(16384.0) == unit_of(0.5) == "unclear"


# In chunks


@pytest.mark.parametrize("size", [1, 13, 601, 10_000])
def test_blocks_do_not_depend_on_where_chunks_end(size):
    """What is counted is equal, sums are to their rounding."""
    seconds, values = worn(30)
    values[2000:9000] = [0.0, 0.0, 0.1]
    lying(values, 20.0, 28.0)
    values[3000:3500, 1] = np.nan
    kept = np.delete(np.arange(len(seconds)), np.arange(11_000, 12_500))
    whole = blocks(seconds[kept], values[kept], 7.0)
    found = blocks(seconds[kept], values[kept], 7.0, size)
    for name in ("number", "first", "last", "begin", "end", "count"):
        np.testing.assert_array_equal(getattr(found, name), getattr(whole, name))
    np.testing.assert_allclose(found.gravity, whole.gravity, rtol=1e-12)
    np.testing.assert_allclose(found.spread, whole.spread, rtol=1e-9)
    inside = (whole.begin > 210) & (whole.end < 890)
    assert inside.sum() > 80
    assert (found.spread[inside] == 0).all()  # exactly: the sensor shows one number


@pytest.mark.parametrize("size", [1, 13, 601])
def test_a_time_at_rest_across_the_edges_of_chunks_is_one(size):
    seconds, values = worn(180)
    lying(values, 40.0, 120.0)
    assert not_worn(seconds, values, HZ, Wear(), size) == [(40 * 600, 120 * 600)]
    assert at_rest(seconds, values, HZ, 13.0, size) == pytest.approx(at_rest(seconds, values, HZ, 13.0), rel=1e-12)


def test_blocks_equal_a_loop_over_them():
    rng = np.random.default_rng(0)
    seconds = 50 + np.cumsum(rng.uniform(0.01, 0.5, 900))
    values = rng.standard_normal((900, 3)) + np.array([0, 5, -3])
    found = blocks(seconds, values, 4.0, 100)
    numbers = np.floor((seconds - seconds[0]) / 4.0)
    assert found.number.tolist() == sorted(set(numbers))
    for k, number in enumerate(found.number):
        own = np.flatnonzero(numbers == number)
        assert (found.first[k], found.last[k], found.count[k]) == (own[0], own[-1], len(own))
        assert found.gravity[k] == pytest.approx(np.linalg.norm(values[own].mean(axis=0)))
        assert found.spread[k] == pytest.approx(values[own].std(axis=0).max())
