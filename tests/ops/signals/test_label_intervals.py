import numpy as np
import polars as pl
import pytest

from appssl.ops.signals.label_intervals import label_intervals

CLASSES = ("rest", "walk")


def windows(*spans, session="p/1", group="p"):
    starts, ends = zip(*spans, strict=True)
    rows = {"group": group, "session": session, "start_seconds": starts, "end_seconds": ends}
    return pl.DataFrame(rows, schema_overrides={"start_seconds": pl.Float64, "end_seconds": pl.Float64})


def of(*walk):
    return np.array([[1 - p, p] for p in walk])


def test_windows_of_one_class_that_touch_are_one_interval_and_a_gap_ends_it():
    found = label_intervals(windows((0, 4), (4, 8), (8, 12), (20, 24)), of(0.9, 0.7, 0.2, 0.1), CLASSES)
    assert found.select("start_seconds", "end_seconds", "activity").rows() == [
        (0.0, 8.0, "walk"), (8.0, 12.0, "rest"), (20.0, 24.0, "rest"),
    ]  # fmt: skip
    assert found["confidence"].to_list() == pytest.approx([0.8, 0.8, 0.9])


def test_where_windows_overlap_the_mean_of_their_probabilities_decides():
    """0..4 says walk 0.9, 2..6 rest: together 0.55 walk on 2..4."""
    found = label_intervals(windows((0, 4), (2, 6)), of(0.9, 0.2), CLASSES)
    assert found.select("start_seconds", "end_seconds", "activity").rows() == [(0.0, 4.0, "walk"), (4.0, 6.0, "rest")]
    assert found["confidence"].to_list() == pytest.approx([(0.9 * 2 + 0.55 * 2) / 4, 0.8])


def test_every_moment_equals_the_mean_over_its_windows_written_out():
    rng = np.random.default_rng(0)
    starts = np.sort(rng.integers(0, 60, 25)) / 4
    table = windows(*[(s, s + 4.0) for s in starts])
    probabilities = rng.dirichlet(np.ones(3), 25)
    found = label_intervals(table, probabilities, ("a", "b", "c"))
    for moment in np.arange(0.01, 20, 0.05).tolist():
        own = probabilities[(starts <= moment) & (moment < starts + 4)]
        hit = found.filter((pl.col("start_seconds") <= moment) & (moment < pl.col("end_seconds")))
        assert len(hit) == (len(own) > 0)
        if len(own):
            assert hit["activity"][0] == "abc"[own.mean(axis=0).argmax()]


def test_sessions_stay_apart_and_rounding_of_seconds_since_1970_makes_no_gap():
    first = windows((1.7e9 + 0.1, 1.7e9 + 0.3), (1.7e9 + 0.1 + 0.2, 1.7e9 + 0.5), session="p/1")
    second = windows((0, 4), session="q/1", group="q")
    found = label_intervals(pl.concat([second, first]), of(0.8, 0.8, 0.9), CLASSES)
    assert found.select("group", "session", "activity").rows() == [("p", "p/1", "walk"), ("q", "q/1", "walk")]


def test_without_windows_there_are_no_intervals():
    none = windows((0, 4)).clear()
    assert label_intervals(none, np.zeros((0, 2)), CLASSES).is_empty()
