"""Flags of samples on the common clock of a session."""

from types import SimpleNamespace

import numpy as np
import pytest

from appssl.ops.signals import sample_store
from appssl.ops.signals.recordings import Recording
from appssl.ops.signals.resample import GAP, MISSING, NON_WEAR, OK, SATURATED, Clean
from appssl.ops.signals.rest import runs
from appssl.ops.signals.sessions import SampleLabels, Usable, clock_of, sample_labels
from appssl.ops.signals.sessions import on_one_clock as pieces


def usable(device, seconds, flags=None, labels=None):
    if flags is not None:
        flags = np.array([(a, b, code) for code in np.unique(flags) if code for a, b in runs(flags == code)])
    clean = Clean(seconds, np.ones((len(seconds), 1)))
    return Usable(Recording(device, "s", device, "row 1"), clean, labels, 1 / np.diff(seconds).min(), flags)


def on_one_clock(part, devices, num_channels, *, hz, max_gap):
    """The whole session."""
    clock = clock_of(part, devices, hz)
    found = list(pieces(clock, list(range(num_channels)), max_gap=max_gap))
    assert [piece.first for piece in found] == list(range(0, clock.length, clock.piece))
    values, codes = (np.concatenate([getattr(piece, name) for piece in found]) for name in ("values", "codes"))
    return SimpleNamespace(origin=clock.origin, anchor=clock.anchor, values=values, codes=codes)


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


@pytest.mark.parametrize("rows", [1, 5, 40])
def test_pieces_together_are_the_session(monkeypatch, rows):
    """Devices that begin and end at other times, one of them with two recordings, flags across the edges of pieces."""
    rng = np.random.default_rng(0)
    flags = np.zeros(300, np.uint8)
    flags[50:170], flags[[20, 21, 200]] = NON_WEAR, SATURATED
    part = [
        usable("hip", 100 + np.arange(300) / 33, flags),
        usable("wrist", 101.05 + np.arange(40) / 10),
        usable("wrist", 106.31 + np.cumsum(rng.uniform(0.05, 0.12, 50))),
        usable("ankle", 100.5 + np.arange(900) / 100),
    ]
    for u in part:
        u.clean.values[:] = np.cumsum(rng.standard_normal(u.clean.values.shape), axis=0)
    whole = on_one_clock(part, ["ankle", "hip", "none", "wrist"], 1, hz=10.0, max_gap=0.25)
    assert set(np.unique(whole.codes)) == {OK, SATURATED, NON_WEAR, GAP, MISSING}
    assert (whole.codes[:, 2] == MISSING).all()
    assert whole.anchor == 11  # the wrist begins at 1.05 s
    monkeypatch.setattr(sample_store, "CHUNK_ROWS", rows)
    found = on_one_clock(part, ["ankle", "hip", "none", "wrist"], 1, hz=10.0, max_gap=0.25)
    np.testing.assert_array_equal(found.codes, whole.codes)
    np.testing.assert_allclose(found.values, whole.values, rtol=1e-6, atol=1e-6)


# Labels per sample


@pytest.mark.parametrize("rows", [1, 7, 1000])
def test_a_tick_has_the_label_of_the_nearest_sample_of_the_first_device_that_has_one(monkeypatch, rows):
    monkeypatch.setattr(sample_store, "CHUNK_ROWS", rows)
    rng = np.random.default_rng(2)
    names = ["walk", None, "run"]  # the value with number 1 has no name
    part, told = [], []
    for device, begin, count in (("hip", 10.0, 200), ("wrist", 8.7, 300), ("hip", 40.0, 30)):
        seconds = begin + np.cumsum(rng.uniform(0.03, 0.17, count))
        numbers = np.repeat(rng.integers(-1, 3, count // 10), 10)
        part.append(usable(device, seconds, labels=SampleLabels(numbers, names)))
        told.append((device, seconds, [names[k] if k >= 0 else None for k in numbers]))
    clock = clock_of(part, ["hip", "wrist"], 10.0)
    found, order = sample_labels(clock)
    assert order == ["run", "walk"]
    for tick, number in enumerate(found.tolist()):
        time, expected = clock.origin + tick / 10, None
        for _, seconds, own in sorted(told, key=lambda item: item[0]):
            if seconds[0] - 0.05 <= time <= seconds[-1] + 0.05 and expected is None:
                expected = own[int(np.abs(seconds - time).argmin())]
        assert (order[number] if number >= 0 else None) == expected
