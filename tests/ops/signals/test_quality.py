"""Flags of recordings: saturation, rest, gravity and units; against made signals whose truth is known."""

import numpy as np
import pytest

from appssl.errors import SettingsError
from appssl.ops.signals import sample_store
from appssl.ops.signals.quality import QUALITY, Percentile, Wear, acceleration, angular_velocity, quality
from appssl.ops.signals.resample import NON_WEAR, SATURATED
from appssl.ops.signals.sample_store import Column, Scratch
from appssl.settings import validate
from tests.ops.signals.test_rest import lying, worn

HZ = 10.0
IMU = ["acc_x", "acc_y", "acc_z", "gyro_x", "gyro_y", "gyro_z"]


def settings(**values):
    return validate(Wear, values, file="recipe", owner="wear")


def test_a_held_row_counts_once():
    rng = np.random.default_rng(0)
    values = rng.standard_normal((2000, 3))
    values[100:105] = [9.0, 0.5, 0.5]
    seconds = np.arange(2000) / HZ
    assert quality(seconds, values, IMU[:3], HZ, Wear()).row["saturated"] == ""
    values[100:105, 1] = np.arange(5) / 10
    assert quality(seconds, values, IMU[:3], HZ, Wear()).row["saturated"] == "acc_x 5"


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
    assert found.flags.tolist() == [[100 * 600, 170 * 600, NON_WEAR]]
    both = quality(seconds, values, IMU, HZ, settings(leave_out=["non_wear", "saturated"]))
    assert both.flags.tolist() == [[500, 505, SATURATED], [100 * 600, 170 * 600, NON_WEAR]]
    assert not len(quality(seconds, values, IMU, HZ, settings(leave_out=[])).flags)


def test_channels_are_found_by_name():
    assert acceleration(IMU) == [0, 1, 2]
    assert angular_velocity(IMU) == [3, 4, 5]
    assert acceleration(["x_gyro", "y_gyro", "z_gyro", "x_acc", "y_acc", "z_acc"]) == [3, 4, 5]
    assert acceleration([f"{n}_{a}" for n in ("lin_acc", "acc") for a in "xyz"]) == [3, 4, 5]
    assert acceleration(["x", "y", "z"]) == [0, 1, 2]
    assert acceleration(["gyro_x", "gyro_y", "gyro_z"]) == acceleration(["acc_x", "acc_y"]) == []
    assert angular_velocity(["x", "y", "z"]) == []


def test_wrong_settings_are_refused():
    with pytest.raises(SettingsError, match="leave_out"):
        settings(leave_out=["sleep"])
    with pytest.raises(SettingsError, match="still_mg"):
        settings(still_mg=0)


@pytest.mark.parametrize("rows", [37, 601, 5000])
def test_nothing_depends_on_where_chunks_end(tmp_path, monkeypatch, rows):
    """From a file in chunks of `rows`: flags and texts are equal, gravity is to the rounding of its sums."""
    seconds, acc = worn(90)
    lying(acc, 10.0, 75.0)
    acc[500:505, 0] = 80.0
    acc[700:709, 1] = acc[700, 1]
    gyro = 120.0 * np.random.default_rng(1).standard_normal((len(acc), 3))
    gyro[:, 1] = 0.0
    values = np.concatenate([acc, gyro], axis=1).astype(np.float32)
    values[900:920, 4] = np.nan
    wear = settings(leave_out=["non_wear", "saturated"])
    whole = quality(seconds, values, IMU, HZ, wear)
    assert (whole.row["saturated"], whole.row["non_wear"]) == ("acc_x 5", "1, together 65 min")
    monkeypatch.setattr(sample_store, "CHUNK_ROWS", rows)
    with Scratch(tmp_path, 0) as scratch:
        filed = [Column(scratch), Column(scratch)]
        for column, own in zip(filed, (seconds, values), strict=True):
            for a in range(0, len(own), 1000):
                column.append(own[a : a + 1000])
        found = quality(*filed, IMU, HZ, wear)
    np.testing.assert_array_equal(found.flags, whole.flags)
    assert found.row.pop("gravity") == pytest.approx(whole.row.pop("gravity"), rel=1e-12)
    assert found.row == whole.row


@pytest.mark.parametrize("size", [1, 10, 333, 10_000])
@pytest.mark.parametrize(
    ("count", "most"), [(1, 1), (2, 2), (100, 100), (101, 101), (5000, 5000), (3000, 5000), (1, 99)]
)
def test_a_percentile_equals_that_of_all_lengths_at_once(count, most, size):
    numbers = np.random.default_rng(count).lognormal(size=count)
    found = Percentile(99, most)
    for a in range(0, count, size):
        found.add(numbers[a : a + size] ** 2)
    assert found.root() == pytest.approx(np.percentile(numbers, 99), rel=1e-14)
    assert Percentile(99, most).root() is None
