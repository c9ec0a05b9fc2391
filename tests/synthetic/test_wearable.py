"""Made recordings: the same bytes for a seed, true clocks and events, activities that can be told apart."""

import hashlib

import numpy as np
import polars as pl
import pytest

from appssl.synthetic.wearable import ACTIVITIES, CHANNELS, RATES_HZ, make


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    folder = tmp_path_factory.mktemp("tiny")
    make(folder, size="tiny", seed=0)
    return folder


@pytest.fixture(scope="module")
def small(tmp_path_factory):
    folder = tmp_path_factory.mktemp("small")
    make(folder, size="small", seed=0)
    return folder


def digests(folder):
    return {
        str(p.relative_to(folder)): hashlib.sha256(p.read_bytes()).hexdigest() for p in folder.rglob("*") if p.is_file()
    }


def samples(folder, path):
    read = pl.read_csv if path.endswith(".csv") else pl.read_parquet
    return read(folder / path)


def test_a_seed_gives_the_same_bytes_and_another_others(tiny, tmp_path):
    make(tmp_path / "again", size="tiny", seed=0)
    make(tmp_path / "other", size="tiny", seed=1)
    assert digests(tmp_path / "again") == digests(tiny)
    assert digests(tmp_path / "other") != digests(tiny)


def test_tiny_is_four_people_with_two_devices_for_a_minute(tiny):
    table = pl.read_csv(tiny / "recordings.csv")
    assert len(table) == 8
    assert table["subject_id"].n_unique() == 4
    for row in table.iter_rows(named=True):
        frame = samples(tiny, row["path"])
        assert frame.columns == ["time", *CHANNELS]
        assert frame["time"].is_sorted()
        assert frame["time"][-1] - frame["time"][0] == pytest.approx(60, abs=0.1)


def test_small_has_a_session_without_one_device(small):
    table, events = pl.read_csv(small / "recordings.csv"), pl.read_csv(small / "truth/events.csv")
    missing = events.filter(event="missing")["recording_id"].to_list()
    assert len(missing) == 1
    assert missing[0] not in table["recording_id"].to_list()
    assert len(table) == 8 * 3 * 2 - 1
    assert set(events["event"]) == {"gap", "nan", "off_body", "missing"}


def test_rates_and_events_are_those_of_the_truth(small):
    table = pl.read_csv(small / "recordings.csv")
    events = pl.read_csv(small / "truth/events.csv")
    clocks = pl.read_csv(small / "truth/clocks.csv")
    assert clocks["recording_id"].to_list() == table["recording_id"].to_list()
    for row in table.head(9).iter_rows(named=True):
        frame = samples(small, row["path"])
        steps = np.diff(frame["time"].to_numpy())
        assert 1 / np.median(steps) == pytest.approx(RATES_HZ[row["device"]], rel=0.02)
        own = set(events.filter(recording_id=row["recording_id"])["event"])
        assert ("gap" in own) == (steps.max() > 1.9)
        assert ("nan" in own) == (frame["acc_x"].null_count() > 0)


def test_drift_and_offset_are_recovered_from_the_stamps(small):
    clocks = pl.read_csv(small / "truth/clocks.csv")
    row = pl.read_csv(small / "recordings.csv").row(0, named=True)
    told = samples(small, row["path"])["time"].to_numpy()
    clock = clocks.filter(recording_id=row["recording_id"]).row(0, named=True)
    steps = np.diff(told)
    if steps.max() < 1:
        true = np.arange(len(told)) / clock["rate_hz"]
        slope, offset = np.polyfit(true, told, 1)
        assert slope - 1 == pytest.approx(clock["drift_ppm"] * 1e-6, abs=2e-6)
        assert offset == pytest.approx(clock["offset_s"], abs=1e-3)


def test_labels_cover_every_session_without_overlap(small):
    labels = pl.read_csv(small / "labels.csv")
    assert set(labels["activity"]) <= set(ACTIVITIES)
    for _, own in labels.sort("start").group_by("subject_id"):
        assert (own["end"] - own["start"] == 60).all()
        assert (own["start"].to_numpy()[1:] >= own["end"].to_numpy()[:-1]).all()


def test_activities_differ_and_so_do_people(small):
    """Vertical strength of the ankle: walking above sitting in everyone, and not equal between people."""
    labels, strength = pl.read_csv(small / "labels.csv"), {}
    for subject in ("p01", "p02", "p03"):
        frame = samples(small, f"recordings/{subject}_1_ankle.parquet").drop_nulls()
        for activity in ("walking", "sitting"):
            row = labels.filter(subject_id=subject, activity=activity).row(0, named=True)
            part = frame.filter(pl.col("time").is_between(row["start"] + 1, row["end"] - 1))
            strength[subject, activity] = part["acc_z"].std()
    for subject in ("p01", "p02", "p03"):
        assert strength[subject, "walking"] > 2 * strength[subject, "sitting"]
    assert np.std([strength[s, "walking"] for s in ("p01", "p02", "p03")]) > 0.1
