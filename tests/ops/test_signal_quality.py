"""Flags of recordings: saturation, rest, gravity and units; against made signals whose truth is known."""

import numpy as np
import polars as pl
import pytest

from appssl.errors import SettingsError
from appssl.ops.resample import NON_WEAR, OK, SATURATED
from appssl.ops.signal_quality import (
    QUALITY,
    Wear,
    acceleration,
    angular_velocity,
    at_rest,
    not_worn,
    noted,
    quality,
    saturated,
    unit_of,
    units_differ,
)
from appssl.settings import validate

HZ = 10.0
IMU = ["acc_x", "acc_y", "acc_z", "gyro_x", "gyro_y", "gyro_z"]


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


# Rest


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


# Samples at the limit


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


def test_a_held_row_counts_once():
    rng = np.random.default_rng(0)
    values = rng.standard_normal((2000, 3))
    values[100:105] = [9.0, 0.5, 0.5]
    seconds = np.arange(2000) / HZ
    assert quality(seconds, values, IMU[:3], HZ, Wear()).row["saturated"] == ""
    values[100:105, 1] = np.arange(5) / 10
    assert quality(seconds, values, IMU[:3], HZ, Wear()).row["saturated"] == "acc_x 5"


# Recordings


def test_a_recording_with_everything():
    seconds, acc = worn(200)
    lying(acc, 100.0, 170.0)
    acc[500:505, 0] = 80.0
    gyro = 120.0 * np.random.default_rng(1).standard_normal((len(acc), 3))
    gyro[:, 1] = 0.0
    values = np.concatenate([acc, gyro], axis=1)
    found = quality(seconds, values, IMU, HZ, Wear())
    assert set(found.row) == set(QUALITY)
    assert found.row["saturated"] == "acc_x 5"
    assert found.row["constant"] == "gyro_y"
    assert found.row["non_wear"] == "1, together 70 min"
    assert found.row["non_wear_seconds"] == pytest.approx(70 * 60, abs=0.2)
    assert found.row["gravity"] == pytest.approx(9.81, rel=1e-3)
    assert (found.row["acc_unit"], found.row["gyro_unit"]) == ("m/s2", "degrees/s")
    assert set(found.codes) == {OK, NON_WEAR}
    assert (found.codes == NON_WEAR).sum() == 70 * 600
    both = quality(seconds, values, IMU, HZ, settings(leave_out=["non_wear", "saturated"]))
    assert np.flatnonzero(both.codes == SATURATED).tolist() == [500, 501, 502, 503, 504]
    assert not quality(seconds, values, IMU, HZ, settings(leave_out=[])).codes.any()


def test_channels_are_found_by_name():
    assert acceleration(IMU) == [0, 1, 2]
    assert angular_velocity(IMU) == [3, 4, 5]
    assert acceleration(["x_gyro", "y_gyro", "z_gyro", "x_acc", "y_acc", "z_acc"]) == [3, 4, 5]
    assert acceleration([f"{n}_{a}" for n in ("lin_acc", "acc") for a in "xyz"]) == [3, 4, 5]
    assert acceleration(["x", "y", "z"]) == [0, 1, 2]
    assert acceleration(["gyro_x", "gyro_y", "gyro_z"]) == acceleration(["acc_x", "acc_y"]) == []
    assert angular_velocity(["x", "y", "z"]) == []


def recordings(rows):
    empty = dict.fromkeys(QUALITY)
    table = [{**empty, "outcome": "kept", "device": "hip", **row} for row in rows]
    return pl.DataFrame(table, schema={"subject": pl.String, "device": pl.String, "outcome": pl.String, **QUALITY})


def test_units_that_differ_between_subjects_are_named_with_them():
    rows = [{"subject": f"s{k}", "gravity": 9.8, "acc_unit": "m/s2"} for k in range(7)]
    assert units_differ(recordings(rows)) == []
    rows += [{"subject": "t1", "gravity": 1.01, "acc_unit": "g"}, {"subject": "t2"}]
    (text,) = units_differ(recordings(rows))
    assert (
        "device hip: at rest its length is 9.8 (m/s2) in 7 subject(s): s0, s1, s2, s3, s4 and 2 more; 1.01 (g) in 1 "
        in text
    )
    assert "subject(s): t1." in text
    assert "Bring all recordings to one unit" in text
    other = [{**row, "device": "wrist"} if row["subject"] == "t1" else row for row in rows]
    assert units_differ(recordings(other)) == []  # every device is in one unit
    assert units_differ(recordings([{**row, "outcome": "failed"} for row in rows])) == []


def test_degrees_beside_radians_are_named():
    rows = [{"subject": "a", "gyro_p99": 250.0}, {"subject": "b", "gyro_p99": 300.0}, {"subject": "c", "gyro_p99": 4.0}]
    (text,) = units_differ(recordings(rows))
    assert "275 in 2 subject(s): a, b, as in degrees/s, and 4 in 1 subject(s): c, as in rad/s" in text
    assert units_differ(recordings(rows[:2])) == units_differ(recordings(rows[2:])) == []


def test_notes_are_counted():
    rows = [
        {"subject": "a", "saturated": "acc_x 3"},
        {"subject": "b", "saturated": ""},
        {"subject": "c", "acc_unit": "unclear"},
    ]
    assert noted(recordings(rows)) == (
        "Recordings with notes, of 3: 1 saturated, 1 unit of acceleration unclear; see recordings.parquet."
    )
    assert noted(recordings(rows[1:2])) == ""


def test_wrong_settings_are_refused():
    with pytest.raises(SettingsError, match="leave_out"):
        settings(leave_out=["sleep"])
    with pytest.raises(SettingsError, match="still_mg"):
        settings(still_mg=0)
