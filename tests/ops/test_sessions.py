"""Flags of samples on the common clock of a session."""

import numpy as np
import pytest

from appssl.ops.recordings import Recording
from appssl.ops.resample import GAP, MISSING, NON_WEAR, OK, SATURATED, Clean
from appssl.ops.sessions import Usable, on_one_clock


def usable(device, seconds, flags=None):
    values = np.ones((len(seconds), 1))
    clean = Clean(seconds, values, np.arange(len(seconds)), np.zeros(0, np.int64))
    return Usable(Recording(device, "s", device, "row 1"), clean, None, 1 / np.diff(seconds).min(), flags)


@pytest.mark.parametrize("recorded_hz", [7.0, 10.0, 33.0])
def test_a_tick_next_to_a_flagged_sample_is_flagged(recorded_hz):
    seconds = 5 + np.arange(int(20 * recorded_hz)) / recorded_hz
    flags = np.zeros(len(seconds), np.uint8)
    flags[(seconds > 9.03) & (seconds < 12.07)] = NON_WEAR
    alone = int(15 * recorded_hz)
    flags[alone] = SATURATED
    clock = on_one_clock([usable("hip", seconds, flags)], ["hip"], 1, hz=10.0, max_gap=0.25)
    ticks = clock.origin + np.arange(len(clock.codes)) / 10
    for code, own in ((NON_WEAR, seconds[flags == NON_WEAR]), (SATURATED, seconds[[alone]])):
        distance = np.abs(ticks[:, None] - own).min(axis=1)
        np.testing.assert_array_equal(clock.codes[:, 0] == code, distance < 0.1 - 1e-6)
    assert np.isfinite(clock.values).all()


def test_what_cannot_be_used_stays_so_whatever_is_flagged():
    seconds = np.concatenate([np.arange(0, 30), np.arange(50, 80)]) / 10
    flags = np.full(60, NON_WEAR, np.uint8)
    part = [usable("hip", seconds, flags), usable("wrist", np.arange(100) / 10)]
    codes = on_one_clock(part, ["hip", "wrist"], 1, hz=10.0, max_gap=0.25).codes
    expected = [NON_WEAR] * 30 + [GAP] * 20 + [NON_WEAR] * 30 + [MISSING] * 20
    assert codes[:, 0].tolist() == expected
    assert (codes[:, 1] == OK).all()
