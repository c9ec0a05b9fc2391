"""Windows: where they start, why they are left out, which label they have; against loops over samples."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from appssl.ops.signals import windows
from appssl.ops.signals.resample import GAP, MISSING, NAN, NON_WEAR, OK, SATURATED
from appssl.ops.signals.windows import (
    REASONS,
    device_bits,
    devices_of_bits,
    gathered,
    gravest,
    label_ticks,
    label_type,
    left_out,
    lengths,
    majority,
    starts,
)


def test_lengths_in_samples():
    assert lengths(4.0, 0.5, 25.0) == (100, 50)
    assert lengths(2.56, 0.0, 50.0) == (128, 128)
    assert lengths(0.001, 0.99, 1.0) == (1, 1)


@given(st.integers(0, 60), st.integers(1, 20), st.integers(1, 20), st.integers(0, 60))
def test_starts_are_all_that_fit_and_one_is_the_anchor(length, size, step, anchor):
    found = starts(length, size, step, anchor=anchor).tolist()
    assert found == [k for k in range(length - size + 1) if (k - anchor) % step == 0]


@pytest.mark.parametrize("min_devices", [3, 2, 1])
def test_the_gravest_reason_is_given_with_its_devices(min_devices):
    rng = np.random.default_rng(1)
    chances = [0.94, 0.02, 0.01, 0.01, 0.01, 0.01]
    codes = rng.choice([OK, NAN, GAP, MISSING, NON_WEAR, SATURATED], p=chances, size=(300, 3)).astype(np.uint8)
    first = starts(300, 10, 5)
    worst = gravest(codes, first, 10)
    why = left_out(codes, first, worst, 10, min_devices=min_devices)
    for k, found, own in zip(first, why, worst, strict=True):
        part = codes[k : k + 10]
        assert own.tolist() == part.max(axis=0).tolist()
        if sum((part[:, d] == OK).all() for d in range(3)) >= min_devices:
            assert found is None
        else:
            assert found == (
                REASONS[part.max()],
                {d: n for d in (0, 1, 2) if (n := int((part[:, d] == part.max()).sum()))},
            )
    assert 0 < sum(found is None for found in why) < len(why)


@pytest.mark.parametrize("at_once", [1, 25, 10**6])
@pytest.mark.parametrize("dtype", [np.int8, np.int64])
def test_majority_equals_counting(monkeypatch, dtype, at_once):
    monkeypatch.setattr(windows, "_MIXED", at_once)
    rng = np.random.default_rng(2)
    labels = np.repeat(rng.integers(-1, 3, 30), 7).astype(dtype)
    first = starts(len(labels), 10, 4)
    names, shares = majority(labels, first, 10, ["a", "b", "c"], 0.6)
    for k, name, share in zip(first, names, shares, strict=True):
        best = max(range(3), key=lambda n: ((labels[k : k + 10] == n).sum(), -n))
        expected = (labels[k : k + 10] == best).mean()
        assert share == pytest.approx(expected)
        assert name == ("abc"[best] if expected >= 0.6 else None)


def test_a_window_without_labels_has_none_even_without_purity():
    assert majority(np.full(10, -1), np.array([0]), 10, ["a"], 0.0)[0] == [None]
    assert majority(np.full(10, -1), np.array([0]), 10, [], 0.0)[0] == [None]
    assert majority(np.zeros(10, int), np.zeros(0, int), 10, ["a"], 0.0)[0] == []


def test_interval_labels_hold_from_start_to_before_end():
    found = label_ticks(np.array([-1.0, 0.4]), np.array([0.2, 9.0]), [0, 1], 6, 10.0)
    assert found.tolist() == [0, 0, -1, -1, 1, 1]
    assert label_ticks(np.array([7.0]), np.array([8.0]), [0], 6, 10.0).tolist() == [-1] * 6


def test_devices_of_a_window_survive_as_bits():
    usable = np.random.default_rng(0).random((50, 63)) < 0.5
    usable[0], usable[1] = True, False
    bits = device_bits(usable)
    assert (bits[0], bits[1]) == (2**63 - 1, 0)
    assert bits[2] == sum(2**d for d in range(63) if usable[2, d])
    np.testing.assert_array_equal(devices_of_bits(bits, 63), usable)


def test_labels_take_as_few_bytes_as_their_number_allows():
    for count, dtype in ((0, np.int8), (128, np.int8), (129, np.int16), (40_000, np.int32)):
        assert label_type(count) == dtype
        assert np.array([-1, count - 1]).astype(label_type(count)).tolist() == [-1, count - 1]


def test_gathered_windows_are_slices_with_time_last():
    signal = np.random.default_rng(0).standard_normal((50, 4)).astype(np.float32)
    found = gathered(signal, np.array([3, 40, 3, 0]), 10)
    assert found.flags.c_contiguous
    np.testing.assert_array_equal(found, [signal[k : k + 10].T for k in (3, 40, 3, 0)], strict=True)
    assert gathered(signal, np.zeros(0, np.int64), 10).shape == (0, 4, 10)
