"""Recordings of several devices: accounted for, aligned, explained, and the same for any number of shards."""

import json
import os
from pathlib import Path

import numpy as np
import polars as pl
import pytest
from polars.testing import assert_frame_equal

from appssl.artifact import ArtifactWriter
from appssl.errors import AppsslError, DataError, SettingsError
from appssl.ops.signals import sample_store
from appssl.settings import validate
from appssl.sources.wearable import Config, build, draft, for_new_data
from appssl.synthetic import wearable as made
from tests.ops.signals.test_clock_correction import body, worn
from tests.real_data import DATA, real_data

MADE = {"table": "recordings.csv", "labels": "labels.csv"}
BOTH = {"table": "recordings.csv", "window_seconds": 2.0, "overlap": 0.0, "split": {"test": 0, "val": 0}}


def config(**values):
    return validate(Config, values, file="recipe", owner="sources/wearable")


def prepared(settings, root, out, num_shards=1):
    source = build(settings)
    shards = []
    for shard in range(num_shards):
        writer = ArtifactWriter(out / f"shard{shard}", "shard", settings_digest="", inputs={})
        source.prepare(root, shard, num_shards, writer)
        shards.append(writer.finish())
    writer = ArtifactWriter(out / "data", "data", settings_digest="", inputs={})
    source.merge(root, shards[::-1], writer)
    artifact = writer.finish()
    artifact.check()
    return artifact, source.open(artifact)


def quarantine(artifact, **where):
    return artifact.table("quarantine.parquet").filter(**where).to_dicts()


def seconds(length=20.0, hz=50.0, start=0.0):
    return start + np.arange(int(length * hz)) / hz


def stream(times, value=1.0):
    """acc_x is the time, acc_y a constant."""
    return pl.DataFrame({"time": times, "acc_x": times, "acc_y": np.full(len(times), value)})


def write(root, recordings, **columns):
    """Recordings {id: (subject, device, frame or bytes)} as CSV files, and their table."""
    rows = []
    for name, (subject, device, content) in recordings.items():
        path = root / f"{name}.csv"
        if isinstance(content, pl.DataFrame):
            content.write_csv(path)
        elif content is not None:
            path.write_bytes(content)
        rows.append({"recording_id": name, "subject_id": subject, "device": device, "path": f"{name}.csv"})
    pl.DataFrame(rows).with_columns(**{k: pl.Series(v) for k, v in columns.items()}).write_csv(root / "recordings.csv")


def pair(root, **changes):
    """Two subjects with wrist and hip; `changes` replace recordings: s1_wrist=frame."""
    table = {
        f"s{s}_{device}": (f"s{s}", device, stream(seconds(), value))
        for s in (1, 2)
        for device, value in (("hip", 1), ("wrist", 2))
    }
    for name, content in changes.items():
        table[name] = (*table[name][:2], content)
    write(root, table)


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    folder = tmp_path_factory.mktemp("tiny")
    made.make(folder, size="tiny", seed=0)
    return folder


@pytest.fixture(scope="module")
def tiny_data(tiny, tmp_path_factory):
    return prepared(config(**MADE), tiny, tmp_path_factory.mktemp("out"))


@pytest.fixture(autouse=True)
def few_figures(request, monkeypatch):
    """Figures take most of the time: they are drawn only in tests that look at the whole result."""
    if "tiny_data" not in request.fixturenames:
        for name in ("figures", "account_figures"):
            monkeypatch.setattr(f"appssl.sources.wearable.{name}", lambda *_: [])


# What comes out


def test_everything_made_is_accounted_for(tiny_data):
    artifact, data = tiny_data
    found = artifact.accounts()
    assert set(found) == {"recordings", "windows", "label intervals"}
    assert found["label intervals"].left_out == {}
    assert (found["recordings"].total, found["recordings"].kept) == (8, 8)
    windows = found["windows"]
    assert windows.kept == len(data.samples)
    assert set(windows.left_out) == {"gap", "nan", "missing_device"}
    assert len(quarantine(artifact, what="window")) == windows.total - windows.kept
    assert len(quarantine(artifact, what="samples")) == 3  # recordings with empty samples


def test_samples_have_the_promised_columns_and_order(tiny_data):
    _, data = tiny_data
    samples = data.samples
    names = ["index", "id", "group", "split", "label", "true_label", "session", "start_seconds"]
    assert samples.columns[: len(names)] == names
    assert samples["index"].to_list() == list(range(len(samples)))
    assert samples["id"].is_sorted()
    assert samples["id"].is_unique().all()
    assert samples.group_by("group").agg(pl.col("split").n_unique())["split"].max() == 1
    assert set(samples["split"]) == {"train", "test"}
    assert samples["true_label"].null_count() == len(samples)
    assert data.meta.classes == tuple(sorted(set(samples["label"].drop_nulls())))
    assert "devices" not in samples.columns


def test_windows_are_finite_float32_of_the_stated_shape(tiny_data):
    _, data = tiny_data
    facts = data.meta.facts
    assert (facts["devices"], len(facts["channels"])) == (["hip", "wrist"], 6)
    for row in range(len(data.samples)):
        window = data.read(row)
        assert window.shape == (2, 6, 100)
        assert window.dtype == np.float32
        assert window.flags.c_contiguous
        assert np.isfinite(window).all()


def test_any_number_of_shards_gives_the_same_bytes(tiny, tiny_data, tmp_path):
    whole, _ = tiny_data
    for number in (2, 5):  # one of five shards has nothing
        parts, _ = prepared(config(**MADE), tiny, tmp_path / str(number), number)
        assert parts.manifest["files"] == whole.manifest["files"]


def test_statistics_are_those_of_training_subjects(tiny_data):
    artifact, data = tiny_data
    signal = np.load(artifact.path("signal.npy")).astype(np.float64)
    sessions = artifact.table("sessions.parquet")
    train = set(data.samples.filter(split="train")["group"])
    rows = np.concatenate(
        [signal[r["position"] : r["position"] + r["num_samples"]] for r in sessions.to_dicts() if r["subject"] in train]
    )
    np.testing.assert_allclose(np.ravel(data.meta.facts["channel_mean"]), np.nanmean(rows, axis=0), rtol=1e-6)
    np.testing.assert_allclose(np.ravel(data.meta.facts["channel_std"]), np.nanstd(rows, axis=0), rtol=1e-6)
    assert "p01" not in train or len(train) == 3


def test_overlap_is_not_stored(tiny, tmp_path):
    small, _ = prepared(config(**MADE, overlap=0.0), tiny, tmp_path / "a")
    large, data = prepared(config(**MADE, overlap=0.9), tiny, tmp_path / "b")
    assert small.path("signal.npy").stat().st_size == large.path("signal.npy").stat().st_size
    assert len(data.samples) > 300
    np.testing.assert_array_equal(data.read(0)[:, :, 10:], data.read(1)[:, :, :-10])


def test_figures_are_png_and_named(tiny_data):
    artifact, _ = tiny_data
    listed = json.loads(artifact.path("figures.json").read_text())
    assert [item["file"] for item in listed] == ["figures/windows.png", "figures/counts.png", "figures/accounts.png"]
    assert all(artifact.path(item["file"]).read_bytes().startswith(b"\x89PNG") for item in listed)


def test_labels_of_windows_are_the_activities_of_their_time(tiny, tiny_data):
    _, data = tiny_data
    labels = pl.read_csv(tiny / "labels.csv")
    for row in data.samples.iter_rows(named=True):
        begin, end = row["start_seconds"], row["start_seconds"] + 4
        shares = {
            r["activity"]: max(0.0, min(end, r["end"]) - max(begin, r["start"])) / 4
            for r in labels.filter(subject_id=row["group"]).iter_rows(named=True)
        }
        best = max(shares, key=lambda name: shares[name])
        assert row["label_share"] == pytest.approx(shares[best], abs=0.011)  # one tick of 100
        if abs(shares[best] - 0.8) > 0.011:
            assert row["label"] == (best if shares[best] >= 0.8 else None)


# Clocks


def test_devices_of_different_rates_are_aligned(tmp_path):
    table = {"a": ("s1", "hip", stream(seconds(hz=40.0))), "b": ("s1", "wrist", stream(seconds(hz=64.0, start=0.73)))}
    write(tmp_path, table)
    _, data = prepared(config(**BOTH), tmp_path, tmp_path / "out")
    assert data.samples["start_seconds"][0] == pytest.approx(0.76)  # the first tick that both devices have
    inner = data.read(3)  # acc_x is the time on both devices
    np.testing.assert_allclose(inner[0, 0], inner[1, 0], atol=1e-4)
    np.testing.assert_allclose(inner[0, 0], data.samples["start_seconds"][3] + np.arange(50) / 25, atol=1e-4)


@pytest.mark.parametrize("unit", ["iso", "unix_ms"])
def test_units_of_time_agree(tmp_path, unit):
    base = 1_700_000_000.0
    for folder, kind in (("s", "seconds"), ("o", unit)):
        (tmp_path / folder).mkdir()
        times = pl.Series("time", seconds() + (0 if kind == "seconds" else base))
        if kind == "iso":
            told = pl.from_epoch((times * 1e6).round().cast(pl.Int64), "us").dt.strftime("%Y-%m-%dT%H:%M:%S.%6f+00:00")
        else:
            told = times if kind == "seconds" else (times * 1000).round().cast(pl.Int64)
        write(tmp_path / folder, {"a": ("s1", "hip", stream(seconds()).with_columns(time=told))})
    _, one = prepared(config(**BOTH), tmp_path / "s", tmp_path / "so")
    _, two = prepared(config(**BOTH, time_unit=unit), tmp_path / "o", tmp_path / "oo")
    np.testing.assert_allclose(two.samples["start_seconds"] - base, one.samples["start_seconds"], atol=1e-5)
    np.testing.assert_allclose(two.read(2), one.read(2), atol=1e-4)


def test_start_time_moves_a_recording(tmp_path):
    table = {"a": ("s1", "hip", stream(seconds())), "b": ("s1", "wrist", stream(seconds()))}
    write(tmp_path, table, start_time=["100.5", "1970-01-01T00:01:42Z"])
    _, data = prepared(config(**BOTH), tmp_path, tmp_path / "out")
    assert data.samples["start_seconds"][0] == pytest.approx(102.02, abs=0.03)
    window = data.read(0)
    np.testing.assert_allclose(
        window[0, 0, 10:] - window[1, 0, 10:], 1.5, atol=1e-3
    )  # the filter holds the first value


def test_without_a_time_column_the_stated_rate_counts(tmp_path):
    write(tmp_path, {"a": ("s1", "hip", stream(seconds(hz=25.0)).drop("time"))})
    settings = config(**BOTH, columns={"time": None}, recorded_hz=25.0)
    _, data = prepared(settings, tmp_path, tmp_path / "out")
    np.testing.assert_allclose(data.read(1)[0, 0], 2 + np.arange(50) / 25, atol=1e-6)
    with pytest.raises(DataError, match=r"row 1: without a time column the rate is needed: give sampling_hz"):
        prepared(config(**BOTH, columns={"time": None}), tmp_path, tmp_path / "no")


@pytest.mark.parametrize("correct", [False, True])
def test_clocks_of_devices_are_compared_and_corrected_where_asked(tmp_path, correct):
    moves = body()
    table = {}
    for device, offset in (("hip", 0.0), ("wrist", 2.5)):
        u = worn(device, moves, offset=offset, drift=1e-4 if offset else 0.0)
        frame = pl.DataFrame(u.clean.values, schema=["acc_x", "acc_y", "acc_z"]).with_columns(time=u.clean.seconds)
        table[f"s1_{device}"] = ("s1", device, frame)
    write(tmp_path, table)
    settings = config(**BOTH, clocks={"correct": correct, "block_seconds": 60})
    artifact, data = prepared(settings, tmp_path, tmp_path / "out")
    (row,) = artifact.table("clocks.parquet").to_dicts()
    assert row["outcome"] == ("corrected" if correct else "estimated")
    assert row["offset_seconds"] == pytest.approx(2.5, abs=0.02)
    assert row["drift_seconds_per_day"] == pytest.approx(8.64, abs=2)
    assert ("differ by up to 2.6" in data.meta.facts.get("caution", "")) != correct
    assert "figures/clocks.png" in [entry["file"] for entry in artifact.json("figures.json")]
    hip, wrist = np.stack([data.read(k)[:, 2] for k in range(len(data.samples))]).transpose(1, 0, 2).reshape(2, -1)
    together = np.corrcoef(hip, wrist)[0, 1]
    assert together > 0.95 if correct else together < 0.5


@pytest.mark.parametrize("correct", [False, True])
def test_clocks_need_numbers_of_the_acceleration_only(tmp_path, correct):
    """A device without gyroscope: its windows are left out, its clock is compared as if there were no such channel."""
    moves = body()
    found = []
    for folder, channels in (("a", ["acc_x", "acc_y", "acc_z"]), ("b", ["acc_x", "acc_y", "acc_z", "gyro_x"])):
        table = {}
        for device, offset in (("hip", 0.0), ("wrist", 2.5)):
            u = worn(device, moves, offset=offset)
            values = np.column_stack([u.clean.values, np.full(len(u.clean.values), np.nan if device == "hip" else 1.0)])
            frame = pl.DataFrame(values[:, : len(channels)], schema=channels).with_columns(time=u.clean.seconds)
            table[f"s1_{device}"] = ("s1", device, frame)
        (tmp_path / folder).mkdir()
        write(tmp_path / folder, table)
        settings = config(**BOTH, clocks={"correct": correct, "block_seconds": 60})
        artifact, data = prepared(settings, tmp_path / folder, tmp_path / folder / "out")
        found.append(artifact.table("clocks.parquet"))
    assert len(data.samples) == 0
    assert found[0]["outcome"].to_list() == ["corrected" if correct else "estimated"]
    assert_frame_equal(found[1], found[0], rel_tol=1e-9)


def test_a_device_whose_clock_is_unclear_fails_where_it_should_be_corrected(tmp_path):
    table = {}
    for device, seed in (("hip", 0), ("wrist", 5)):
        values = worn(device, body(seed)).clean
        frame = pl.DataFrame(values.values, schema=["acc_x", "acc_y", "acc_z"]).with_columns(time=values.seconds)
        table[f"s1_{device}"] = ("s1", device, frame)
    write(tmp_path, table)
    settings = config(**BOTH, clocks={"correct": True, "block_seconds": 60})
    artifact, data = prepared(settings, tmp_path, tmp_path / "out")
    assert len(data.samples) == 0
    (failed,) = [q for q in quarantine(artifact, what="recording") if q["outcome"] == "failed"]
    assert (failed["item"], failed["reason"]) == ("s1_wrist", "clock_unclear")
    assert "more than half a window (1 s)" in failed["detail"]


def test_recordings_far_apart_are_sessions_and_no_window_crosses(tmp_path):
    table = {f"{d}{k}": ("s1", d, stream(seconds(start=1000.0 * k))) for d in ("hip", "wrist") for k in (0, 1)}
    write(tmp_path, table)
    artifact, data = prepared(config(**BOTH), tmp_path, tmp_path / "out")
    assert data.samples["session"].unique().sort().to_list() == ["s1/0001", "s1/0002"]
    assert artifact.accounts()["windows"].left_out == {}
    assert data.samples.filter(session="s1/0002")["start_seconds"].min() == pytest.approx(1000)


def test_a_pause_of_all_devices_ends_the_session_and_takes_no_memory(tmp_path):
    times = np.concatenate([seconds(), seconds(start=30 * 86_400.0)])
    write(tmp_path, {"hip0": ("s1", "hip", stream(times)), "wrist0": ("s1", "wrist", stream(times))})
    artifact, data = prepared(config(**BOTH), tmp_path, tmp_path / "out")
    assert data.samples["session"].value_counts().sort("session").rows() == [("s1/0001", 10), ("s1/0002", 10)]
    assert artifact.accounts()["windows"].left_out == {}
    assert artifact.path("signal.npy").stat().st_size < 100_000
    assert [q["detail"] for q in quarantine(artifact, reason="pause")] == [
        "1, together 2591980 s; another part after each"
    ] * 2


def test_a_pause_of_one_device_is_a_gap_of_the_session(tmp_path):
    paused = np.concatenate([seconds(), seconds(start=700.0)])
    write(tmp_path, {"h": ("s1", "hip", stream(paused)), "w": ("s1", "wrist", stream(seconds(length=720.0)))})
    artifact, data = prepared(config(**BOTH), tmp_path, tmp_path / "out")
    assert artifact.accounts()["windows"].left_out == {"gap": 340}
    assert data.samples["session"].unique().to_list() == ["s1/0001"]


def test_a_recording_that_gives_no_window_is_left_out(tmp_path):
    pair(tmp_path, s1_hip=stream(seconds(length=1.0)), s1_wrist=stream(seconds(length=1.0)))
    artifact, _ = prepared(config(**BOTH), tmp_path, tmp_path / "out")
    found = artifact.accounts()["recordings"]
    assert (found.kept, found.left_out) == (2, {"no_window": 2})
    why = quarantine(artifact, reason="no_window")
    assert {q["detail"] for q in why} == {"its sessions are shorter than a window of 2 s"}


def test_intervals_outside_all_recordings_are_named(tmp_path):
    pair(tmp_path)
    rows = "subject_id,start,end,activity\ns1,0,10,walk\ns1,500,600,rest\ns2,19,30,walk\n"
    (tmp_path / "labels.csv").write_text(rows)
    artifact, _ = prepared(config(**BOTH, labels="labels.csv"), tmp_path, tmp_path / "out")
    found = artifact.accounts()["label intervals"]
    assert (found.kept, found.left_out) == (2, {"no_recording": 1})
    assert [q["where"] for q in quarantine(artifact, reason="no_recording")] == ["labels.csv row 2"]


def test_numbers_beyond_float32_are_no_numbers(tmp_path):
    large = stream(seconds()).with_columns(acc_y=pl.when(pl.int_range(pl.len()) == 500).then(1e39).otherwise("acc_y"))
    pair(tmp_path, s1_wrist=large)
    artifact, data = prepared(config(**BOTH), tmp_path, tmp_path / "out")
    assert artifact.accounts()["windows"].left_out == {"nan": 1}
    assert quarantine(artifact, reason="nan", what="samples")[0]["detail"] == "1: row(s) 501; not used"
    assert all(np.isfinite(data.read(row)).all() for row in range(len(data.samples)))


def test_named_sessions_keep_recordings_apart_whose_times_begin_anew(tmp_path):
    table = {f"{d}{k}": ("s1", d, stream(seconds())) for k in (0, 1) for d in ("hip", "wrist")}
    write(tmp_path, table, session_id=["a", "a", "b", "b"])
    _, data = prepared(config(**BOTH), tmp_path, tmp_path / "out")
    assert data.samples["session"].unique().sort().to_list() == ["s1/a", "s1/b"]


# Worn or not, saturated, units


def imu(minutes, *, hz=10.0, gravity=9.81, table=(), clipped=0, start=0.0, seed=0):
    """Acceleration that moves; at rest in minutes `table` (begin, end); `clipped` samples from 1000 on at the limit."""
    times = seconds(60.0 * minutes, hz, start)
    values = gravity * 0.3 * np.random.default_rng(seed).standard_normal((len(times), 3))
    values[:, 2] += gravity
    if table:
        values[int(table[0] * 60 * hz) : int(table[1] * 60 * hz)] = [0, 0, gravity]
    values[1000 : 1000 + clipped, 0] = 2 * gravity
    return pl.DataFrame(values, schema=["acc_x", "acc_y", "acc_z"]).with_columns(time=times)


AT_10 = {**BOTH, "sampling_hz": 10.0}


def test_times_when_a_device_was_not_worn_are_left_out_and_told(tmp_path):
    write(tmp_path, {"h": ("s1", "hip", imu(100)), "w": ("s1", "wrist", imu(100, table=(20, 85)))})
    artifact, data = prepared(config(**AT_10), tmp_path, tmp_path / "out")
    assert artifact.accounts()["windows"].left_out == {"non_wear": 65 * 30}
    assert quarantine(artifact, reason="non_wear", what="window")[0]["detail"] == "wrist 20 of 20 samples"
    starts = data.samples["start_seconds"].to_numpy()
    assert not ((starts > 20 * 60 - 2) & (starts < 85 * 60)).any()
    (told,) = quarantine(artifact, what="samples")
    assert (told["item"], told["detail"]) == ("w", "1, together 65 min; without motion, taken as not worn")
    wrist = artifact.table("recordings.parquet").filter(id="w").to_dicts()[0]
    assert wrist["non_wear_seconds"] == pytest.approx(65 * 60, abs=0.2)
    assert (wrist["gravity"], wrist["acc_unit"]) == (pytest.approx(9.81), "m/s2")
    signal = np.load(artifact.path("signal.npy"))
    assert np.isfinite(signal).all()  # flagged, not blanked
    worn = np.delete(signal, slice(20 * 600, 85 * 600), axis=0)[:, 5]
    assert data.meta.facts["channel_std"][1][2] == pytest.approx(worn.std(), rel=1e-4)


def test_times_not_worn_after_a_pause_are_where_they_are(tmp_path):
    """An hour at rest from minute 80 on, which is 20 minutes after a pause of an hour."""
    frame = imu(160, table=(80, 150))
    frame = frame.with_columns(time=pl.when(pl.col("time") >= 3600).then(pl.col("time") + 3600).otherwise("time"))
    write(tmp_path, {"h": ("s1", "hip", frame)})
    artifact, data = prepared(config(**AT_10), tmp_path, tmp_path / "out")
    assert artifact.accounts()["windows"].left_out == {"non_wear": 70 * 30}
    starts = data.samples.filter(session="s1/0002")["start_seconds"].to_numpy() / 60
    assert len(starts) == 30 * 30
    assert not ((starts > 60 + 80 - 0.03) & (starts < 60 + 150)).any()


def test_windows_at_rest_stay_where_that_is_set(tmp_path):
    write(tmp_path, {"h": ("s1", "hip", imu(80, table=(10, 80)))})
    artifact, _ = prepared(config(**AT_10, wear={"leave_out": []}), tmp_path, tmp_path / "out")
    assert artifact.accounts()["windows"].left_out == {}
    assert artifact.table("recordings.parquet")["non_wear"].to_list() == ["1, together 70 min"]
    assert quarantine(artifact, what="samples") == []
    artifact, _ = prepared(config(**AT_10, wear={"minutes": 71.0}), tmp_path, tmp_path / "longer")
    assert artifact.table("recordings.parquet")["non_wear"].to_list() == [""]


@pytest.mark.parametrize("left_out", [False, True])
def test_saturated_samples_are_flagged_and_left_out_where_that_is_set(tmp_path, left_out):
    write(tmp_path, {"h": ("s1", "hip", imu(3, gravity=1.0, clipped=5))})
    wear = {"leave_out": ["saturated"]} if left_out else {}
    artifact, data = prepared(config(**AT_10, wear=wear), tmp_path, tmp_path / "out")
    assert artifact.table("recordings.parquet")["saturated"].to_list() == ["acc_x 5"]
    assert artifact.accounts()["windows"].left_out == ({"saturated": 1} if left_out else {})
    assert (100.0 in data.samples["start_seconds"].to_list()) != left_out  # samples 1000 to 1004, at 100 s
    assert len(quarantine(artifact, what="samples")) == left_out


def test_flags_follow_a_corrected_clock(tmp_path):
    """The wrist's clock is 2 s late; the window that is left out is that of the true time."""
    moves = body()
    table = {}
    for device, offset in (("hip", 0.0), ("wrist", 2.0)):
        u = worn(device, moves, offset=offset)
        values = u.clean.values.copy()
        if device == "wrist":
            values[:, 0] = np.clip(values[:, 0], -0.24, 0.24)
            values[5020:5025, 0] = 0.24
        frame = pl.DataFrame(values, schema=["acc_x", "acc_y", "acc_z"]).with_columns(time=u.clean.seconds)
        table[f"s1_{device}"] = ("s1", device, frame)
    write(tmp_path, table)
    settings = config(
        **BOTH, clocks={"correct": True, "block_seconds": 60}, wear={"leave_out": ["saturated"], "saturated_run": 5}
    )
    artifact, _ = prepared(settings, tmp_path, tmp_path / "out")
    (window,) = quarantine(artifact, reason="saturated", what="window")
    begin = float(window["where"].removeprefix("session s1/0001 at ").removesuffix(" s"))
    assert begin < 1200.8 < begin + 2  # the wrist says 1202.8


def test_subjects_in_different_units_are_a_caution_that_names_them(tmp_path):
    table = {f"r{k}": (f"s{k}", "hip", imu(2, gravity=g, table=(1, 2))) for k, g in enumerate((9.81, 9.81, 1.0))}
    write(tmp_path, table)
    artifact, data = prepared(config(**AT_10), tmp_path, tmp_path / "out")
    caution = data.meta.facts["caution"]
    assert "9.81 (m/s2) in 2 subject(s): s0, s1; 1 (g) in 1 subject(s): s2." in caution
    assert artifact.table("recordings.parquet")["acc_unit"].to_list() == ["m/s2", "m/s2", "g"]
    write(tmp_path, {name: row for name, row in table.items() if name != "r2"})
    _, data = prepared(config(**AT_10), tmp_path, tmp_path / "alike")
    assert "caution" not in data.meta.facts


# Missing devices


MASK = {**BOTH, "missing_devices": "mask"}


def three_devices(root):
    """hip throughout, wrist without 4.5 to 5.2 s, ankle from 10 s on; 20 s."""
    wrist = stream(seconds(), 2).filter(~pl.col("time").is_between(4.5, 5.2))
    ankle = stream(seconds(10.0, start=10.0), 3)
    write(root, {"a": ("s1", "ankle", ankle), "h": ("s1", "hip", stream(seconds())), "w": ("s1", "wrist", wrist)})


def test_masked_devices_are_nan_and_the_others_are_as_they_are(tmp_path):
    three_devices(tmp_path)
    artifact, data = prepared(config(**MASK), tmp_path, tmp_path / "out")
    assert (data.meta.facts["missing_devices"], data.meta.facts["min_devices"]) == ("mask", 1)
    assert artifact.accounts()["windows"].kept == len(data.samples) == 10
    bits = {True: 0b110, False: 0b111}  # ankle is device 0
    expected = [bits[start < 10] for start in data.samples["start_seconds"]]
    expected[2] = 0b010  # the wrist's gap, at 4 to 6 s
    assert data.samples["devices"].to_list() == expected
    for row, own in enumerate(expected):
        window = data.read(row)
        for d, value in enumerate((3, 1, 2)):
            if own >> d & 1:
                assert (window[d, 1] == value).all()
                assert np.isfinite(window[d]).all()
            else:
                assert np.isnan(window[d]).all()


@pytest.mark.parametrize(("least", "kept"), [(1, 10), (2, 9), (3, 5)])
def test_windows_need_as_many_devices_as_stated(tmp_path, least, kept):
    three_devices(tmp_path)
    artifact, data = prepared(config(**MASK, min_devices=least), tmp_path, tmp_path / "out")
    assert len(data.samples) == kept
    assert sum(artifact.accounts()["windows"].left_out.values()) == 10 - kept


def test_all_devices_needed_is_the_same_as_refusing(tmp_path):
    three_devices(tmp_path)
    one, refused = prepared(config(**BOTH), tmp_path, tmp_path / "a")
    two, masked = prepared(config(**MASK, min_devices=3), tmp_path, tmp_path / "b")
    assert "devices" not in refused.samples.columns
    assert set(masked.samples["devices"]) == {0b111}
    assert masked.samples.drop("devices").equals(refused.samples)
    assert one.accounts()["windows"].plain() == two.accounts()["windows"].plain()
    np.testing.assert_array_equal(masked.read(1), refused.read(1))


def test_a_device_that_is_not_worn_is_masked(tmp_path):
    write(tmp_path, {"h": ("s1", "hip", imu(80)), "w": ("s1", "wrist", imu(80, table=(0, 70)))})
    artifact, data = prepared(config(**{**AT_10, "missing_devices": "mask"}), tmp_path, tmp_path / "out")
    assert artifact.accounts()["windows"].left_out == {}
    assert data.samples["devices"].value_counts().sort("devices").rows() == [(0b01, 2100), (0b11, 300)]


def test_views_of_masked_windows_are_finite(tmp_path):
    from appssl.ops.random import rng_for
    from appssl.views.signal import Config as Views
    from appssl.views.signal import build as build_views

    three_devices(tmp_path)
    _, data = prepared(config(**MASK), tmp_path, tmp_path / "out")
    views = build_views(Views(), data.meta)
    for row in range(len(data.samples)):
        assert all(view.isfinite().all() for view in views.views(data.read(row), rng_for(0, 0, row)))
    assert views.mask(data.read(2)).tolist() == [False, True, False]


def test_more_devices_than_there_are_cannot_be_needed(tmp_path):
    pair(tmp_path)
    with pytest.raises(DataError, match="min_devices is 3, there are only 2: hip, wrist"):
        prepared(config(**MASK, min_devices=3), tmp_path, tmp_path / "out")


# Accounts


@pytest.mark.parametrize("missing", ["refuse", "mask"])
def test_accounts_by_subject_device_and_activity_sum_to_the_account(tiny, tmp_path, missing):
    settings = config(**MADE, missing_devices=missing, min_devices=2 if missing == "mask" else 1)
    artifact, data = prepared(settings, tiny, tmp_path, 3)
    table, whole = artifact.table("accounts.parquet"), artifact.accounts()["windows"]
    assert table.columns == ["by", "name", "reason", "windows"]
    for by in ("subject", "activity"):
        found = dict(table.filter(by=by).group_by("reason").agg(pl.col("windows").sum()).iter_rows())
        assert found == {"kept": whole.kept, **whole.left_out}
    for device in data.meta.facts["devices"]:
        own = table.filter(by="device", name=device)
        assert own["windows"].sum() == whole.total
        assert own.filter(reason="kept")["windows"].sum() == whole.kept
    counts = data.samples["group"].value_counts().rows()
    assert sorted(counts) == sorted(table.filter(by="subject", reason="kept").select("name", "windows").rows())


def test_the_account_of_a_device_tells_its_own_reason(tmp_path):
    three_devices(tmp_path)
    for missing, hip, ankle in (("refuse", {"kept": 5, "another_device": 5}, 5), ("mask", {"kept": 10}, 5)):
        artifact, _ = prepared(config(**{**BOTH, "missing_devices": missing}), tmp_path, tmp_path / missing)
        rows = artifact.table("accounts.parquet").filter(by="device").rows()
        found = {name: {r: n for _, d, r, n in rows if d == name} for name in ("hip", "wrist", "ankle")}
        assert found["hip"] == hip
        assert found["ankle"] == {"kept": ankle, "missing_device": 5}
        assert found["wrist"]["gap"] == 1


# Any length


def eventful(root, suffix):
    """Half an hour of two devices, each in two recordings, and a third: everything that can happen, at odd places."""
    rng = np.random.default_rng(0)
    moves = body()
    rows = []
    for name, device, hz, begin in (
        ("h0", "hip", 50.0, 0.0),
        ("h1", "hip", 50.0, 1900.0),
        ("w0", "wrist", 33.0, 3.21),
        ("w1", "wrist", 33.0, 1903.5),
        ("a0", "ankle", 26.0, 100.0),
    ):
        times = begin + np.arange(int(900 * hz)) / hz + (rng.uniform(-0.3, 0.3, int(900 * hz)) / hz if hz == 33 else 0)
        values = 0.05 * rng.standard_normal((len(times), 6))
        values[:, 2] += 9.81 + moves(np.maximum(times % 1000, 0))
        values[:, 3] += moves(np.maximum(times % 1000, 0) + 0.3)
        values[:, 3] = np.clip(values[:, 3], -9, 1.5)
        values[5000:9000, :3] = values[5000, :3]  # lies on a table
        values[12_345:12_347, 4] = np.nan
        values[15_000:17_000, 3] = np.nan  # longer than a filter
        held = np.arange(len(times))
        held[9_500:10_100] -= held[9_500:10_100] % 3
        kept = np.delete(np.arange(len(times)), slice(18_000, 18_200) if hz < 50 else slice(0, 0))
        labels = np.array(["walk", "run", "", "sit"])[(times // 37 % 4).astype(int)]
        times[20_000:20_003] = times[20_000]
        times[700] = times[699]
        if name == "h1":
            times[30_000:] += 1000.0  # a pause
        frame = pl.DataFrame(values[held][kept].astype(np.float32), schema=made.CHANNELS)
        frame = frame.with_columns(time=times[kept], act=labels[kept])
        file = f"{name}.{suffix}"
        frame.write_csv(root / file) if suffix == "csv" else frame.write_parquet(root / file, row_group_size=4096)
        rows.append((name, "s1", device, file))
    names = ["recording_id", "subject_id", "device", "path"]
    pl.DataFrame(rows, schema=names, orient="row").write_csv(root / "recordings.csv")


EVENTFUL = {
    "table": "recordings.csv", "columns": {"label": "act"}, "window_seconds": 2.0, "missing_devices": "mask",
    "split": {"test": 0, "val": 0},
    "wear": {"minutes": 1.0, "block_seconds": 7.0, "leave_out": ["non_wear", "saturated"]},
}  # fmt: skip


def assert_same(found, expected, name):
    """Tables: numbers to the rounding of sums, everything else equal."""
    left, right = found.table(name), expected.table(name)
    assert_frame_equal(left, right, rel_tol=1e-9, abs_tol=1e-9)


def assert_same_data(found, expected):
    for name in ("samples", "recordings", "sessions", "clocks", "accounts", "quarantine"):
        assert_same(found, expected, f"{name}.parquet")
    signals = [np.load(artifact.path("signal.npy")) for artifact in (found, expected)]
    largest = np.float32(np.nanmax(np.abs(signals[1])))
    np.testing.assert_allclose(*signals, rtol=0, atol=np.spacing(largest))  # NaN in the same places


@pytest.fixture
def tiny_chunks(monkeypatch):
    """From here on everything goes through a file, in chunks of `rows`."""

    def start(rows):
        monkeypatch.setattr(sample_store, "CHUNK_ROWS", rows)
        monkeypatch.setattr(sample_store, "IN_MEMORY", 0)

    return start


@pytest.mark.parametrize("correct", [False, True])
@pytest.mark.parametrize(("suffix", "hz"), [("parquet", 25.0), ("csv", 25.0), ("parquet", 50.0), ("parquet", 10.0)])
def test_what_is_prepared_does_not_depend_on_chunks_and_pieces(tmp_path, tiny_chunks, suffix, hz, correct):
    eventful(tmp_path, suffix)
    settings = config(**{**EVENTFUL, "sampling_hz": hz, "clocks": {"block_seconds": 60.0, "correct": correct}})
    whole, data = prepared(settings, tmp_path, tmp_path / "whole")
    table = whole.table("recordings.parquet")
    for column in ("repeated", "nan", "saturated", "non_wear"):
        assert (table[column] != "").any(), column
    assert (table["pauses"] != "").sum() == 1
    assert whole.table("clocks.parquet").filter(pl.col("outcome") != "not_estimated").height > 0
    assert set(whole.accounts()["windows"].left_out) >= {"non_wear", "nan"}
    assert {"walk", "run", "sit", None} == set(data.samples["label"])
    tiny_chunks(1009)
    found, _ = prepared(settings, tmp_path, tmp_path / "found")
    assert_same_data(found, whole)


@pytest.mark.parametrize("layout", ["long", "wide", "intervals"])
def test_other_layouts_do_not_depend_on_chunks_and_pieces(tiny, tmp_path, tiny_chunks, layout):
    if layout == "long":
        long_table(tmp_path)
        settings = config(long_table="long.parquet", **LONG)
    elif layout == "wide":
        wide_table(tmp_path)
        settings = config(**WIDE)
    else:
        settings = config(**MADE)
    root = tiny if layout == "intervals" else tmp_path
    whole, _ = prepared(settings, root, tmp_path / "whole")
    tiny_chunks(37)
    found, _ = prepared(settings, root, tmp_path / "found")
    assert_same_data(found, whole)


def test_nothing_is_left_beside_the_results(tmp_path, tiny_chunks):
    tiny_chunks(100)
    pair(tmp_path)
    prepared(config(**BOTH), tmp_path, tmp_path / "out")
    for folder in ("shard0", "data"):
        manifest = json.loads((tmp_path / "out" / folder / "manifest.json").read_text())
        there = {
            file.relative_to(tmp_path / "out" / folder).as_posix() for file in (tmp_path / "out" / folder).rglob("*")
        }
        assert there - {"figures", "manifest.json"} == set(manifest["files"])


def test_a_full_disk_is_told_and_leaves_nothing(tmp_path, tiny_chunks, monkeypatch):
    def full(*_):
        raise OSError(28, "No space left on device")

    tiny_chunks(100)
    monkeypatch.setattr(os, "posix_fallocate", full)
    pair(tmp_path)
    with pytest.raises(AppsslError, match=r"No space left on device\. Free space or choose another --out"):
        prepared(config(**BOTH), tmp_path, tmp_path / "out")
    assert list((tmp_path / "out" / "shard0").iterdir()) == []


@pytest.mark.parametrize("missing", ["refuse", "mask"])
def test_many_windows_read_at_once_are_those_read_one_by_one(tmp_path, missing):
    three_devices(tmp_path)
    _, data = prepared(config(**{**BOTH, "missing_devices": missing, "overlap": 0.7}), tmp_path, tmp_path / "out")
    rows = np.random.default_rng(0).integers(0, len(data.samples), 40)
    found = data.read_many(rows)
    assert found.shape == (40, 3, 2, 50)
    assert found.flags.c_contiguous
    assert found.flags.writeable
    np.testing.assert_array_equal(found, np.stack([data.read(row) for row in rows]), strict=True)
    assert np.isnan(found).any() == (missing == "mask")
    assert data.read_many(rows[:0]).shape == (0, 3, 2, 50)


# Faults of recordings: explained, and never in the way of the others


def test_gaps_empty_samples_and_repeated_times_leave_out_only_their_windows(tmp_path):
    times = seconds()
    gap = stream(times).filter(~pl.col("time").is_between(4.5, 5.2))
    empty = stream(times).with_columns(acc_y=pl.when(pl.int_range(pl.len()) == 500).then(None).otherwise("acc_y"))
    repeated = stream(np.where(np.arange(len(times)) == 101, times[100], times))
    pair(tmp_path, s1_hip=gap, s1_wrist=empty, s2_hip=repeated)
    artifact, _ = prepared(config(**BOTH), tmp_path, tmp_path / "out")
    assert artifact.accounts()["windows"].left_out == {"gap": 1, "nan": 1}
    window = quarantine(artifact, what="window", reason="gap")[0]
    assert (window["where"], window["item"]) == ("session s1/0001 at 4.000 s", "s1/0001/000002")
    assert window["detail"].startswith("hip 17 of 50 samples") or window["detail"].startswith("hip 18 of 50 samples")
    samples = {q["reason"]: q["detail"] for q in quarantine(artifact, what="samples")}
    assert samples == {"nan": "1: row(s) 501; not used", "time_repeated": "1: row(s) 102; averaged"}


def test_a_missing_device_leaves_out_the_windows_of_its_session(tmp_path):
    pair(tmp_path)
    table = pl.read_csv(tmp_path / "recordings.csv").filter(pl.col("recording_id") != "s2_wrist")
    table.write_csv(tmp_path / "recordings.csv")
    artifact, data = prepared(config(**BOTH), tmp_path, tmp_path / "out")
    assert artifact.accounts()["windows"].left_out == {"missing_device": 10}
    assert set(data.samples["group"]) == {"s1"}
    assert quarantine(artifact, reason="missing_device")[0]["detail"] == "wrist 50 of 50 samples"


BAD = {
    "time_goes_back": (stream(seconds()[::-1]), r"earlier than in the row before, row\(s\) 2, 3"),
    "time_missing": (
        stream(seconds()).with_columns(time=pl.when(pl.int_range(pl.len()) < 2).then(None).otherwise("time")),
        r"no time \(seconds\) in column time, row\(s\) 1, 2",
    ),
    "not_a_number": (
        b"time,acc_x,acc_y\n0,1,2\n0.02,oops,2\n0.04,1,high\n",
        "row 2, column acc_x: 'oops'; row 3, column acc_y: 'high'",
    ),
    "unreadable": (b"", "the file is empty"),
    "empty": (b"time,acc_x,acc_y\n", "has no rows"),
    "rate_too_low": (stream(seconds(hz=1.0)), "samples are 1 s apart"),
}  # fmt: skip


@pytest.mark.parametrize("reason", BAD)
def test_a_bad_recording_fails_with_its_reason_and_the_others_go_on(tmp_path, reason):
    content, detail = BAD[reason]
    pair(tmp_path, s1_wrist=content)
    artifact, data = prepared(config(**BOTH), tmp_path, tmp_path / "out")
    assert artifact.accounts()["recordings"].failed == {reason: 1}
    failed = quarantine(artifact, outcome="failed")
    assert [(q["item"], q["where"]) for q in failed] == [("s1_wrist", "recordings.csv row 2")]
    assert pl.Series([failed[0]["detail"]]).str.contains(detail).all(), failed[0]["detail"]
    assert set(data.samples["group"]) == {"s2"}


@pytest.mark.parametrize("missing", ["file", "column"])
def test_a_missing_file_or_column_fails_alone(tmp_path, missing):
    pair(tmp_path)
    if missing == "file":
        (tmp_path / "s1_wrist.csv").unlink()
    else:
        stream(seconds()).drop("acc_y").write_csv(tmp_path / "s1_wrist.csv")
    artifact, _ = prepared(config(**BOTH), tmp_path, tmp_path / "out")
    detail = quarantine(artifact, outcome="failed")[0]["detail"]
    assert ("there is no such file" if missing == "file" else "there is no column 'acc_y'.") in detail


def test_a_file_that_is_no_parquet_fails_alone(tmp_path):
    pair(tmp_path)
    (tmp_path / "s1_wrist.parquet").write_bytes(b"no parquet at all")
    table = pl.read_csv(tmp_path / "recordings.csv")
    table.with_columns(path=pl.col("path").str.replace("s1_wrist.csv", "s1_wrist.parquet")).write_csv(
        tmp_path / "recordings.csv"
    )
    artifact, _ = prepared(config(**BOTH), tmp_path, tmp_path / "out")
    assert "s1_wrist.parquet: cannot be read" in quarantine(artifact, outcome="failed")[0]["detail"]


def test_a_rate_that_is_not_the_stated_one_fails(tmp_path):
    table = {"a": ("s1", "hip", stream(seconds())), "b": ("s2", "hip", stream(seconds()))}
    write(tmp_path, table, sampling_hz=["50", "100"])
    artifact, _ = prepared(config(**BOTH), tmp_path, tmp_path / "out")
    assert artifact.accounts()["recordings"].failed == {"rate_differs": 1}
    assert "sampling_hz 100 is stated, the times say 50" in quarantine(artifact, outcome="failed")[0]["detail"]


def test_two_recordings_of_one_device_at_once_fail(tmp_path):
    write(tmp_path, {"a": ("s1", "hip", stream(seconds())), "b": ("s1", "hip", stream(seconds(start=5)))})
    artifact, data = prepared(config(**BOTH), tmp_path, tmp_path / "out")
    assert artifact.accounts()["recordings"].failed == {"overlapping_recordings": 1}
    assert "hip was recording a at the same time" in quarantine(artifact, outcome="failed")[0]["detail"]
    assert len(data.samples) == 10


def test_clocks_that_never_overlap_are_told(tmp_path):
    year = 365 * 86400.0
    pair(tmp_path, s1_wrist=stream(seconds(start=year)))
    artifact, data = prepared(config(**BOTH), tmp_path, tmp_path / "out")
    assert artifact.accounts()["recordings"].left_out == {"clocks_without_overlap": 2}
    detail = quarantine(artifact, reason="clocks_without_overlap")[0]["detail"]
    assert "s1_hip 0.000 to 19.980 s; s1_wrist 31536000.000 to" in detail
    assert set(data.samples["group"]) == {"s2"}


@pytest.mark.parametrize("missing", ["refuse", "mask"])
def test_a_device_that_never_meets_the_others_is_a_session_of_its_own(tmp_path, missing):
    table = {d: ("s1", d, stream(seconds())) for d in ("ankle", "hip")}
    write(tmp_path, {**table, "wrist": ("s1", "wrist", stream(seconds(start=365 * 86400.0)))})
    artifact, data = prepared(config(**BOTH, missing_devices=missing), tmp_path, tmp_path / "out")
    windows, recordings = artifact.accounts()["windows"], artifact.accounts()["recordings"]
    if missing == "refuse":
        assert (windows.kept, windows.left_out) == (0, {"missing_device": 20})
        assert recordings.left_out == {"no_window": 3}
        details = {q["detail"] for q in quarantine(artifact, reason="no_window")}
        assert details == {"all windows were left out: 10 missing_device"}
    else:
        assert set(data.samples["devices"]) == {0b011, 0b100}
        assert recordings.kept == 3


def test_one_bad_time_among_many_names_its_row(tmp_path):
    times = seconds()
    times[700] -= 3.0
    pair(tmp_path, s1_wrist=stream(times))
    artifact, _ = prepared(config(**BOTH), tmp_path, tmp_path / "out")
    detail = quarantine(artifact, outcome="failed")[0]["detail"]
    assert detail == "the time is earlier than in the row before, row(s) 701"


def test_a_clock_that_stands_still_fails(tmp_path):
    pair(tmp_path, s1_wrist=stream(np.floor(seconds())))
    artifact, _ = prepared(config(**BOTH), tmp_path, tmp_path / "out")
    (failed,) = quarantine(artifact, outcome="failed")
    assert failed["reason"] == "time_repeated"
    assert "980 of 1000 times are those of the row before, row(s) 2, 3" in failed["detail"]


def test_one_sample_a_second_gives_windows_of_two_where_that_is_asked_for(tmp_path):
    write(tmp_path, {d: ("s1", d, stream(seconds(hz=1.0))) for d in ("hip", "wrist")})
    settings = config(**BOTH, sampling_hz=1.0, max_gap_seconds=1.5)
    _, data = prepared(settings, tmp_path, tmp_path / "out")
    assert data.meta.facts["window_samples"] == 2
    assert [data.read(k)[0, 0].tolist() for k in (0, 4)] == [[0, 1], [8, 9]]


def test_a_gap_of_three_days_leaves_out_what_it_touches(tmp_path):
    """All devices pause: another session. One goes on: a gap of that session."""
    times = np.concatenate([seconds(60.0, 1.0), seconds(60.0, 1.0, start=3 * 86400.0)])
    table = {"h": ("s1", "hip", stream(times)), "w": ("s1", "wrist", stream(times))}
    settings = config(**BOTH, sampling_hz=1.0, max_gap_seconds=1.5)
    write(tmp_path, table)
    artifact, data = prepared(settings, tmp_path, tmp_path / "out")
    assert data.samples["session"].value_counts().sort("session").rows() == [("s1/0001", 30), ("s1/0002", 30)]
    assert artifact.accounts()["windows"].left_out == {}
    write(tmp_path, {**table, "w": ("s1", "wrist", stream(seconds(3 * 86400.0 + 60, 1.0)))})
    longer = settings.model_copy(update={"window_seconds": 60.0})
    artifact, data = prepared(longer, tmp_path, tmp_path / "one")
    assert artifact.accounts()["windows"].left_out == {"gap": 3 * 1440 - 1}
    assert data.samples["start_seconds"].to_list() == [0.0, 3 * 86400.0]


def test_a_subject_with_one_activity_is_kept(tmp_path):
    pair(tmp_path)
    (tmp_path / "labels.csv").write_text("subject_id,start,end,activity\ns1,0,20,rest\ns2,0,10,rest\ns2,10,20,walk\n")
    artifact, data = prepared(config(**BOTH, labels="labels.csv"), tmp_path, tmp_path / "out")
    assert data.meta.classes == ("rest", "walk")
    assert set(data.samples.filter(group="s1")["label"]) == {"rest"}
    rows = artifact.table("accounts.parquet").filter(by="activity").select("name", "reason", "windows").rows()
    assert rows == [("rest", "kept", 15), ("walk", "kept", 5)]


def test_an_interval_that_reaches_beyond_a_recording_labels_what_is_there(tmp_path):
    pair(tmp_path)
    (tmp_path / "labels.csv").write_text("subject_id,start,end,activity\ns1,-50,4,rest\ns2,16,900,walk\n")
    artifact, data = prepared(config(**BOTH, labels="labels.csv"), tmp_path, tmp_path / "out")
    assert artifact.accounts()["label intervals"].kept == 2
    assert data.samples.filter(group="s1")["label"].to_list() == ["rest"] * 2 + [None] * 8
    assert data.samples.filter(group="s2")["label"].to_list()[-2:] == ["walk"] * 2


def test_recording_ids_that_are_there_twice_are_refused_with_both_rows(tmp_path):
    write(tmp_path, {"a": ("s1", "hip", stream(seconds())), "b": ("s2", "hip", stream(seconds()))})
    table = pl.read_csv(tmp_path / "recordings.csv")
    pl.concat([table, table.filter(recording_id="a")]).write_csv(tmp_path / "recordings.csv")
    with pytest.raises(DataError, match=r"recordings.csv row 3: recording_id 'a' is there twice, first in row 1"):
        prepared(config(**BOTH), tmp_path, tmp_path / "out")


def test_when_nothing_is_left_the_account_still_says_why(tmp_path):
    write(tmp_path, {"a": ("s1", "hip", stream(seconds(1.0)))})
    artifact, data = prepared(config(**BOTH), tmp_path, tmp_path / "out")
    assert len(data.samples) == 0
    assert artifact.accounts()["windows"].total == 0


# Faults of tables: refused together, with file and row


def test_all_problems_of_the_table_are_in_one_message(tmp_path):
    rows = [("a", "s1", "hip", "a.csv", "50"), ("a", "", "hip", "../x.csv", "fast"), ("b", "s1", "hip", "b.csv", "-1")]
    names = ["recording_id", "subject_id", "device", "path", "sampling_hz"]
    pl.DataFrame(rows, schema=names, orient="row").write_csv(tmp_path / "recordings.csv")
    with pytest.raises(DataError) as caught:
        prepared(config(**BOTH), tmp_path, tmp_path / "out")
    message = str(caught.value)
    assert message.startswith("5 problem(s)")
    for part in (
        "recordings.csv row 2: subject_id is empty",
        "row 2: sampling_hz is 'fast', must be a number above 0",
        "row 3: sampling_hz is '-1'",
        "row 2: '../x.csv' leaves the data root",
        "row 2: recording_id 'a' is there twice, first in row 1",
    ):
        assert part in message


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "recordings.csv: there is no such file"),
        ("", "recordings.csv: the file is empty"),
        ("recording_id,subject_id,device,path\n", "recordings.csv: the table is empty"),
        ("recording_id,subject,device,path\na,b,c,d\n", "there is no column 'subject_id'. Did you mean subject"),
    ],
)
def test_unusable_tables_are_refused(tmp_path, content, message):
    if content is not None:
        (tmp_path / "recordings.csv").write_text(content)
    with pytest.raises(DataError, match=message):
        prepared(config(**BOTH), tmp_path, tmp_path / "out")


def test_a_table_outside_the_root_is_refused(tmp_path):
    with pytest.raises(DataError, match="leaves the data root"):
        prepared(config(table="../recordings.csv"), tmp_path, tmp_path / "out")


def test_one_subject_cannot_be_divided(tmp_path):
    write(tmp_path, {"a": ("s1", "hip", stream(seconds()))})
    with pytest.raises(DataError, match=r"1 group\(s\) \(s1\) cannot be divided into test 0.25"):
        prepared(config(table="recordings.csv"), tmp_path, tmp_path / "out")


def test_a_split_column_is_followed_and_a_leak_refused(tmp_path):
    pair(tmp_path)
    table = pl.read_csv(tmp_path / "recordings.csv")
    table.with_columns(part=pl.Series(["test", "test", "train", None])).write_csv(tmp_path / "recordings.csv")
    settings = config(**BOTH, columns={"split": "part"})
    _, data = prepared(settings, tmp_path, tmp_path / "out")
    assert dict(data.samples.select("group", "split").unique().iter_rows()) == {"s1": "test", "s2": "train"}
    table.with_columns(part=pl.Series(["test", "train", "train", "val"])).write_csv(tmp_path / "recordings.csv")
    with pytest.raises(
        DataError, match=r"2 subject\(s\) are in more than one part: s1 in test, train; s2 in train, val"
    ):
        prepared(settings, tmp_path, tmp_path / "leak")
    table.with_columns(part=pl.lit("test")).write_csv(tmp_path / "recordings.csv")
    with pytest.raises(DataError, match="puts no subject into train"):
        prepared(settings, tmp_path, tmp_path / "untrained")
    table.with_columns(part=pl.lit("tests")).write_csv(tmp_path / "recordings.csv")
    with pytest.raises(DataError, match="row 1: part is 'tests', must be one of train, val, test"):
        prepared(settings, tmp_path, tmp_path / "wrong")


def test_a_device_that_does_not_occur_is_refused(tmp_path):
    pair(tmp_path)
    with pytest.raises(DataError, match=r"devices: 'wirst' has no recording\. Did you mean wrist"):
        prepared(config(**BOTH, devices=["wirst"]), tmp_path, tmp_path / "out")


def test_devices_and_channels_can_be_chosen(tmp_path):
    pair(tmp_path)
    artifact, data = prepared(config(**BOTH, devices=["wrist"], channels=["acc_y"]), tmp_path, tmp_path / "out")
    assert data.read(0).shape == (1, 1, 50)
    assert (data.read(0) == 2).all()
    assert artifact.accounts()["recordings"].left_out == {"other_device": 2}


# Labels


LABELS = "subject_id,start,end,activity\n"


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ("s1,0,5,walk\ns1,4,9,run\n", "labels.csv rows 1 and 2: walk and run of the same subject overlap in time"),
        ("s1,5,5,walk\n", "labels.csv row 1: the interval ends before it starts"),
        ("s1,0,noon,walk\n", r"labels.csv row 1: end is 'noon', a time \(seconds\) is needed"),
        ("s3,0,5,walk\n", "row 1: subject_id 's3' has no recording. Known: s1, s2"),
        ("s1,0,5,walk\ns1,6,7,wolk\n", r"labels.csv row\(s\) 2: label 'wolk' is not in classes. Did you mean walk"),
        ("s1,0,5,\n", "labels.csv row 1: activity is empty"),
        ("", "labels.csv: the table is empty"),
    ],
)
def test_wrong_intervals_are_refused(tmp_path, rows, message):
    pair(tmp_path)
    (tmp_path / "labels.csv").write_text(LABELS + rows)
    with pytest.raises(DataError, match=message):
        prepared(config(**BOTH, labels="labels.csv", classes=["walk", "run"]), tmp_path, tmp_path / "out")


def test_labels_per_sample_are_named_and_windows_without_keep_none(tmp_path):
    label = np.repeat(["1", "2", "", "1"], 250)
    labelled = stream(seconds()).with_columns(act=pl.Series(label))
    pair(tmp_path, s1_hip=labelled, s1_wrist=labelled, s2_hip=labelled, s2_wrist=labelled)
    (tmp_path / "names.csv").write_text("key,name\n2,run\n1,walk\n")
    settings = config(**BOTH, columns={"label": "act"}, label_names="names.csv", label_purity=0.9)
    _, data = prepared(settings, tmp_path, tmp_path / "out")
    assert data.meta.classes == ("run", "walk")  # in the order of the table
    own = data.samples.filter(group="s1")["label"].to_list()
    assert own == ["walk", "walk", None, "run", "run", None, None, None, "walk", "walk"]  # windows 2 and 7 are mixed


def test_a_label_without_a_name_is_refused_with_its_rows(tmp_path):
    labelled = stream(seconds()).with_columns(act=pl.Series(["1"] * 998 + ["7"] * 2))
    pair(tmp_path, **dict.fromkeys(("s1_hip", "s1_wrist", "s2_hip", "s2_wrist"), labelled))
    (tmp_path / "names.csv").write_text("key,name\n1,walk\n")
    settings = config(**BOTH, columns={"label": "act"}, label_names="names.csv")
    with pytest.raises(DataError, match=r"recordings.csv row 1 row\(s\) 999, 1000: label '7' is not in label_names"):
        prepared(settings, tmp_path, tmp_path / "out")


# Long tables


def long_table(root, *, hz=50.0):
    frames = []
    for subject in (1, 2, 3):
        for trial in ("a", "b"):
            for device in ("hip", "wrist"):
                frame = stream(seconds(6.0, hz), subject)
                frames.append(
                    frame.with_columns(
                        who=pl.lit(subject), trial=pl.lit(trial), device=pl.lit(device), act=pl.lit(f"act {trial}")
                    )
                )
    table = pl.concat(frames)
    table.write_parquet(root / "long.parquet")
    table.write_csv(root / "long.csv")
    return table


LONG = {
    "columns": {"subject": "who", "session": ["trial"], "label": "act"},
    "window_seconds": 2.0,
    "overlap": 0.0,
    "split": {"test_groups": ["2"]},
}


@pytest.mark.parametrize("suffix", ["parquet", "csv"])
def test_a_long_table_in_any_order_of_rows_gives_the_same(tmp_path, suffix):
    table = long_table(tmp_path)
    artifact, data = prepared(config(long_table=f"long.{suffix}", **LONG), tmp_path, tmp_path / "out", 2)
    assert artifact.accounts()["recordings"].kept == 12
    assert len(data.samples) == 3 * 2 * 3
    assert data.meta.classes == ("act a", "act b")
    assert data.meta.facts["channels"] == ["acc_x", "acc_y"]
    assert set(data.samples.filter(split="test")["group"]) == {"2"}
    assert (data.read(len(data.samples) - 1)[:, 1] == 3).all()
    mixed = table.sample(fraction=1.0, shuffle=True, seed=0).sort("time", maintain_order=True)
    mixed.write_parquet(tmp_path / "long.parquet")
    _, again = prepared(config(long_table="long.parquet", **LONG), tmp_path, tmp_path / "again")
    assert again.samples.equals(data.samples)
    np.testing.assert_array_equal(again.read(5), data.read(5))


def wide_table(root):
    """As DSADS: devices are groups of columns, no time, rows not in order."""
    frames = []
    for subject in (1, 2):
        for act in (1, 2):
            count = np.arange(200)
            frames.append(
                pl.DataFrame(
                    {
                        "who": [subject] * 200, "act": [act] * 200, "part": count // 50, "number": count % 50,
                        "hip_acc_x": count / 25, "hip_acc_y": count * 0.0 + subject,
                        "wrist_acc_x": count / 25 + 10, "wrist_acc_y": count * 0.0 + act,
                    }
                )
            )  # fmt: skip
    pl.concat(frames).sample(fraction=1.0, shuffle=True, seed=0).write_parquet(root / "wide.parquet")


WIDE = {
    "long_table": "wide.parquet",
    "columns": {"time": None, "subject": "who", "session": ["act"], "order": ["part", "number"], "label": "act"},
    "wide": {"devices": ["hip", "wrist"], "channels": ["acc_x", "acc_y"]},
    "recorded_hz": 25.0,
    "window_seconds": 2.0,
    "split": {"test_groups": ["1"]},
}


def test_a_wide_table_without_time_is_ordered_and_cut(tmp_path):
    wide_table(tmp_path)
    artifact, data = prepared(config(**WIDE), tmp_path, tmp_path / "out")
    assert artifact.accounts()["recordings"].kept == 8
    assert artifact.accounts()["windows"].left_out == {}
    assert len(data.samples) == 4 * 7  # 8 s, windows of 2 s every second
    row = data.samples.filter(group="2", label="2")["index"][3]
    expected = 3 + np.arange(50) / 25
    np.testing.assert_allclose(data.read(row)[:, 0], [expected, expected + 10], atol=1e-6)
    assert (data.read(row)[:, 1] == 2).all()


def test_equal_places_in_the_order_fail_the_session(tmp_path):
    wide_table(tmp_path)
    table = pl.read_parquet(tmp_path / "wide.parquet")
    pl.concat([table, table.filter(who=1, act=1).head(1)]).write_parquet(tmp_path / "wide.parquet")
    artifact, _ = prepared(config(**WIDE | {"split": {"test": 0}}), tmp_path, tmp_path / "out")
    assert artifact.accounts()["recordings"].failed == {"order_repeated": 2}
    assert "equal part, number in row(s)" in quarantine(artifact, outcome="failed")[0]["detail"]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"recorded_hz": None}, "without a time column the rate is needed: set recorded_hz"),
        ({"wide": {"devices": ["hip"], "channels": ["acc_x", "acc_z"]}}, "no column 'hip_acc_z'. Did you mean hip"),
        ({"columns": {"subject": "person", "time": None}}, "there is no column 'person'"),
    ],
)  # fmt: skip
def test_wrong_long_tables_are_refused(tmp_path, changes, message):
    wide_table(tmp_path)
    with pytest.raises(DataError, match=message):
        prepared(config(**{**WIDE, **changes}), tmp_path, tmp_path / "out")


def test_samples_without_a_subject_are_refused(tmp_path):
    wide_table(tmp_path)
    table = pl.read_parquet(tmp_path / "wide.parquet")
    table.with_columns(who=pl.when(pl.int_range(pl.len()) == 3).then(None).otherwise("who")).write_parquet(
        tmp_path / "wide.parquet"
    )
    with pytest.raises(DataError, match="column who has empty cells; every sample needs one"):
        prepared(config(**WIDE), tmp_path, tmp_path / "out")


# Settings, limits, new data


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({}, "give exactly one of table and long_table"),
        ({"table": "a.csv", "long_table": "b.csv"}, "give exactly one of table and long_table"),
        ({"table": "a.csv", "wide": {"devices": ["a"], "channels": ["b"]}}, "are for long_table"),
        ({"table": "a.csv", "labels": "l.csv", "columns": {"label": "x"}}, "not both"),
        ({"table": "a.csv", "classes": ["a", "a"]}, "classes has a name twice"),
        ({"table": "a.csv", "min_devices": 2}, "min_devices is for missing_devices: mask"),
        ({"table": "a.csv", "wear": {"minuts": 2}}, "Did you mean minutes"),
        ({"table": "a.csv", "window_secs": 3}, "Did you mean window_seconds"),
        ({"table": "a.csv", "overlap": 1.0}, "overlap"),
        ({"table": "a.csv", "wide": {"devices": ["a"], "channels": ["b"], "columns": "{device}"}}, "must contain"),
    ],
)
def test_wrong_settings_are_refused(values, message):
    with pytest.raises(SettingsError, match=message):
        config(**values)


def test_limits_take_a_beginning_and_say_what_they_leave(tiny, tmp_path):
    artifact, data = prepared(config(**MADE, limit_subjects=3, limit_seconds=20.0), tiny, tmp_path)
    assert set(data.samples["group"]) == {"p01", "p02", "p03"}
    starts = data.samples.group_by("session").agg(pl.col("start_seconds").max() - pl.col("start_seconds").min())
    assert starts["start_seconds"].max() <= 16
    found = artifact.accounts()
    assert found["listed recordings"].left_out == {"not chosen by limit_subjects": 2}
    assert found["listed windows"].kept == found["windows"].total


def test_new_data_are_prepared_as_the_training_data_without_labels(tiny, tmp_path):
    own = {"missing_devices": "mask", "min_devices": 2, "wear": {"minutes": 30.0}}
    trained = config(**MADE, **own, window_seconds=2.0, limit_subjects=2, classes=["running", "sitting", "walking"])
    settings = for_new_data(trained, "recordings.csv")
    assert (settings.missing_devices, settings.min_devices, settings.wear.minutes) == ("mask", 2, 30.0)
    assert (settings.labels, settings.classes, settings.limit_subjects) == (None, (), None)
    (tiny / "labels.csv").rename(tiny / "hidden.csv")
    try:
        _, data = prepared(settings, tiny, tmp_path)
    finally:
        (tiny / "hidden.csv").rename(tiny / "labels.csv")
    assert set(data.samples["split"]) == {"train"}
    assert data.samples["group"].n_unique() == 4
    assert data.samples["label"].null_count() == len(data.samples)
    assert data.read(0).shape == (2, 6, 50)


def test_new_long_tables_need_no_column_of_labels(tmp_path):
    wide_table(tmp_path)
    settings = for_new_data(config(**WIDE), "new.parquet")
    pl.read_parquet(tmp_path / "wide.parquet").filter(act=1).drop("act").write_parquet(tmp_path / "new.parquet")
    _, data = prepared(settings, tmp_path, tmp_path / "out")
    assert data.samples["session"].unique().sort().to_list() == ["1/0001", "2/0001"]


@pytest.mark.parametrize("kind", ["table", "folder"])
def test_a_draft_fits_the_recordings(tiny, tmp_path, kind):
    if kind == "table":
        root, recipe = tiny, draft(tiny / "recordings.csv")
    else:
        root = tmp_path
        folder = tmp_path / "study"
        made.make(folder, size="tiny", seed=0)
        table = pl.read_csv(folder / "recordings.csv")
        table.with_columns(path="study/" + pl.col("path")).write_csv(folder / "recordings.csv")
        recipe = draft(folder)
    settings = {key: value for key, value in recipe["data"]["source"].items() if key != "name"}
    assert recipe["domain"] == "wearable"
    assert set(recipe) == {"description", "domain", "data", "pretrain", "finetune", "evaluate", "quick"}
    _, data = prepared(config(**settings), root, tmp_path / "out")
    assert data.samples["label"].null_count() < 20


def test_a_draft_finds_the_columns_of_a_long_table(tmp_path):
    times = 1_700_000_000_000 + np.arange(500) * 20
    frame = pl.DataFrame({"subject": ["a"] * 500, "device": "x", "timestamp": times, "activity": "walk", "acc": 1.0})
    frame.write_csv(tmp_path / "t.csv")
    source = draft(tmp_path / "t.csv")["data"]["source"]
    assert source["time_unit"] == "unix_ms"
    assert source["columns"] == {"subject": "subject", "time": "timestamp", "label": "activity"}
    settings = {key: value for key, value in source.items() if key != "name"}
    _, data = prepared(config(**settings, split={"test": 0}), tmp_path, tmp_path / "out")
    assert data.meta.facts["channels"] == ["acc"]


def test_a_draft_says_what_it_does_not_find(tmp_path):
    pl.DataFrame({"subject": [1], "acc": [0.5]}).write_csv(tmp_path / "t.csv")
    with pytest.raises(DataError, match="no column for device, time among subject, acc"):
        draft(tmp_path / "t.csv")
    pl.DataFrame({"recording_id": [1], "path": ["x"]}).write_csv(tmp_path / "r.csv")
    with pytest.raises(DataError, match="there is no subject_id, device"):
        draft(tmp_path / "r.csv")
    (tmp_path / "folder").mkdir()
    with pytest.raises(DataError, match=r"the folder has no recordings\.csv"):
        draft(tmp_path / "folder")


# Real recordings


def recipe_source(name):
    import yaml

    path = Path(__file__).parents[2] / "pipelines/wearable" / f"{name}.yaml"
    return yaml.safe_load(path.read_text())["data"]["source"]


@pytest.mark.parametrize(
    ("name", "shape", "recordings"),
    [
        pytest.param("dsads", (5, 9, 100), 760, marks=real_data),
        pytest.param("spsw", (2, 6, 50), 446, marks=real_data),
    ],
)
def test_real_recordings_prepare_as_they_are(name, shape, recordings, tmp_path):
    artifact, data = prepared(config(**recipe_source(name)), DATA, tmp_path)
    assert artifact.accounts()["recordings"].kept == recordings
    assert data.read(7).shape == shape
    assert all(np.isfinite(data.read(row)).all() for row in range(0, len(data.samples), 37))


@pytest.mark.parametrize("name", [pytest.param("dsads", marks=real_data)])
def test_windows_of_dsads_are_its_segments(name, tmp_path):
    """A window that begins with a segment holds the numbers of the file, in the order of its columns."""
    root = DATA
    source = {**recipe_source(name), "window_seconds": 5.0, "overlap": 0.0, "limit_subjects": 3}
    _, data = prepared(config(**source), root, tmp_path)
    table = pl.read_parquet(root / source["long_table"]).filter(subject=2, activity=18, segment=5).sort("sample")
    row = data.samples.filter(session="2/18")["index"][4]
    assert data.samples["label"][row] == "jumping"
    np.testing.assert_array_equal(data.read(row).reshape(45, 125), table[:, 4:].to_numpy().T)
