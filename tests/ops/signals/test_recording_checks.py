"""The first pass over a recording: equal to the whole written out, wherever its chunks end."""

from functools import reduce
from operator import add

import numpy as np
import polars as pl
import pytest
from hypothesis import given
from hypothesis import strategies as st

from appssl.ops.signals import recording_checks
from appssl.ops.signals.recording_checks import Steps, check_rate, checked
from appssl.ops.signals.recording_labels import Labels
from appssl.ops.signals.recordings import BadRecording, Samples
from appssl.ops.signals.sample_store import Scratch

SIZES = [1, 2, 3, 7, 64, 10_000]


def chunks(seconds, values, labels, size):
    """A recording whose rows are numbered from 1."""
    for a in range(0, len(seconds), size):
        own = slice(a, a + size)
        series = None if labels is None else pl.Series(labels[own], dtype=pl.String)
        yield Samples(np.asarray(seconds[own], float), values[own], series, np.arange(len(seconds))[own] + 1)


def check(folder, seconds, values=None, labels=None, *, size=10_000, names=None, classes=()):
    """What is found; its seconds, values and names of labels; and problems of the labels."""
    values = np.ones((len(seconds), 1)) if values is None else np.asarray(values)
    known = Labels(names, classes, "here")
    with Scratch(folder, 0) as scratch:
        found = checked(chunks(seconds, values, labels, size), known, scratch)
        own = None if found.labels is None else [found.names[k] if k >= 0 else None for k in found.labels[:].tolist()]
        return found, found.clean.seconds[:], found.clean.values[:], own, known.problems()


# Equal times


@pytest.mark.parametrize("size", SIZES)
def test_equal_times_are_averaged_and_named(tmp_path, size):
    labels = ["a", "b", "c", None, "a"]
    found, seconds, values, own, _ = check(tmp_path, [0.0, 1, 1, 1, 2], [[0.0], [3], [6], [0], [1]], labels, size=size)
    assert seconds.tolist() == [0, 1, 2]
    assert values.tolist() == [[0], [3], [1]]
    assert own == ["a", "b", "a"]  # of the first sample at each time
    assert (len(found.repeated), found.repeated[:]) == (2, [3, 4])
    assert found.num_samples == 5


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_means_are_sums_in_the_order_of_the_rows_wherever_chunks_end(tmp_path, size, dtype):
    """Bit for bit; up to twelve samples at one time, some without a number."""
    rng = np.random.default_rng(0)
    counts = rng.choice([1, 1, 1, 2, 3], 90)
    counts[5::40] = 12
    seconds = np.repeat(np.cumsum(rng.uniform(0.01, 0.02, 90)), counts)
    values = rng.standard_normal((len(seconds), 3)).astype(dtype)
    values[rng.integers(0, len(values), 5), 1] = np.nan
    labels = [None if k % 5 == 0 else "abc"[k % 3] for k in range(len(seconds))]
    begins = np.cumsum(counts) - counts
    expected = [
        [reduce(add, values[b : b + n, k].tolist()) / n for k in range(3)] for b, n in zip(begins, counts, strict=True)
    ]
    _, kept, found, own, _ = check(tmp_path, seconds, values, labels, size=size)
    np.testing.assert_array_equal(kept, seconds[begins])
    np.testing.assert_array_equal(found, expected)
    assert own == [labels[b] for b in begins]


def test_what_is_not_averaged_keeps_its_type(tmp_path):
    _, _, values, _, _ = check(tmp_path, [0.0, 1, 2], np.ones((3, 2), np.float32), size=2)
    assert values.dtype == np.float32


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize(
    ("seconds", "reason", "detail"),
    [
        ([0, 1, 0.5, 2, 1.9], "time_goes_back", r"earlier than in the row before, row\(s\) 3, 5$"),
        ([1], "too_short", "1 sample"),
        ([1, 1, 1], "too_short", r"3 sample\(s\) with 1 different"),
        ([0, 0, 0, 1, 1, 2, 2, 2], "time_repeated", r"5 of 8 times are .*, row\(s\) 2, 3, 5, 7, 8; the clock is too"),
    ],
)
def test_unusable_times_are_explained(tmp_path, seconds, reason, detail, size):
    with pytest.raises(BadRecording, match=detail) as caught:
        check(tmp_path, seconds, size=size)
    assert caught.value.reason == reason


@pytest.mark.parametrize("size", SIZES)
def test_at_most_twenty_rows_are_named(tmp_path, size):
    with pytest.raises(BadRecording, match=r"row\(s\) 2, 4, .*, 40 and 80 more"):
        check(tmp_path, np.tile([1.0, 0.0], 100), size=size)


# Numbers and labels


@pytest.mark.parametrize("size", SIZES)
def test_numbers_beyond_float32_are_none_and_their_rows_are_named(tmp_path, size):
    for dtype, large in ((np.float64, 1e39), (np.float32, np.inf)):
        values = np.arange(10, dtype=dtype).reshape(5, 2)
        values[1, 0], values[3, 1] = np.nan, -large
        found, _, kept, _, _ = check(tmp_path, np.arange(5), values, size=size)
        assert (len(found.not_finite), found.not_finite[:]) == (2, [2, 4])
        assert np.argwhere(np.isnan(kept)).tolist() == [[1, 0], [3, 1]]
    found, *_ = check(tmp_path, np.arange(5), np.full((5, 1), np.finfo(np.float32).max, np.float64))
    assert len(found.not_finite) == 0


@pytest.mark.parametrize("size", SIZES)
def test_labels_are_named_and_unknown_ones_are_told_with_their_rows(tmp_path, size):
    labels = ["1", " 2", "", "9", "1", "9", "7"]
    names = {"1": "walk", "2": "run", "7": "rest"}
    *_, own, problems = check(tmp_path, np.arange(7), labels=labels, names=names, classes=("walk", "run"), size=size)
    assert own == ["walk", "run", None, None, "walk", None, "rest"]
    assert [problem.split(".")[0] for problem in problems] == [
        "here row(s) 7: label '7' is not in classes",
        "here row(s) 4, 6: label '9' is not in label_names",
    ]


# Rate and pauses


def estimated_hz(seconds, num_samples, size=10_000):
    found = Steps()
    for a in range(0, len(seconds), size):
        found.add(seconds[a : a + size])
    return found.hz(num_samples)


@given(st.floats(5, 200), st.integers(20, 200))
def test_the_estimated_rate_of_regular_stamps_is_their_rate(hz, count):
    assert estimated_hz(np.arange(count) / hz, count) == pytest.approx(hz, rel=1e-6)


def test_the_estimated_rate_ignores_pauses_and_counts_repeated_stamps(tmp_path):
    rng = np.random.default_rng(0)
    seconds = np.arange(1000) / 100 + rng.uniform(-0.003, 0.003, 1000)
    assert estimated_hz(seconds + np.repeat([0, 60], 500), 1000) == pytest.approx(100, rel=0.01)
    bursts = np.repeat(np.arange(500) / 50, 2)  # every stamp twice: a clock of 50 Hz, samples of 100
    found, *_ = check(tmp_path, bursts)
    assert found.hz == pytest.approx(100, rel=0.01)


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("typical", [40, 10_000])
def test_rate_and_pauses_do_not_depend_on_where_chunks_end(tmp_path, monkeypatch, size, typical):
    """Written out: steps of up to five times the median of the first ones, and the time they take."""
    monkeypatch.setattr(recording_checks, "_TYPICAL_STEPS", typical)
    rng = np.random.default_rng(1)
    steps = rng.uniform(0.005, 0.015, 500)
    steps[:40] /= 5  # five times their median leaves out many of the others
    steps[[30, 200, 201]] = [0.2, 3.0, 0.06]
    steps[[100, 350]] = [600.5, 4000.0]
    seconds = np.cumsum(steps)
    found, *_ = check(tmp_path, seconds, size=size)
    between = np.diff(seconds)
    usual = between[between <= 5 * np.median(between[:typical])]
    assert found.hz == pytest.approx(len(usual) / usual.sum(), rel=1e-12)
    whole, *_ = check(tmp_path, seconds)
    assert found.hz == whole.hz
    assert [first for first, _ in found.pauses] == [100, 350]
    assert [length for _, length in found.pauses] == pytest.approx([600.5, 4000.0])
    assert list(found.parts()) == [(0, 100), (100, 350), (350, 500)]


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
