"""Files and tables in chunks of rows: the same samples and the same complaints for every length of a chunk."""

import numpy as np
import polars as pl
import pyarrow.parquet as pq
import pytest

from appssl.errors import DataError
from appssl.ops.signals import sample_store
from appssl.ops.signals.recordings import BadRecording, Recording
from appssl.ops.signals.sample_chunks import file_frames, samples, table_frames

ROWS = [1, 2, 7, 100]
RECORDING = Recording("r", "s", "hip", "table row 1", path="r.csv", hz=50.0, start=100.0)


@pytest.fixture(params=ROWS)
def rows(request, monkeypatch):
    monkeypatch.setattr(sample_store, "CHUNK_ROWS", request.param)
    return request.param


def read(frames, columns=("x", "y"), *, time="time", label=None, unit="seconds", recording=RECORDING):
    found = list(samples(frames, columns, recording, time=time, label=label, unit=unit))
    return [np.concatenate([getattr(chunk, name) for chunk in found]) for name in ("seconds", "values", "rows")]


def in_memory(frame):
    return table_frames(frame, np.arange(1, len(frame) + 1))


def table(count=30):
    return pl.DataFrame({"time": np.arange(count) / 10, "x": np.arange(count) * 2.0, "y": np.arange(count) - 5.0})


# Files


@pytest.mark.parametrize("suffix", ["csv", "parquet"])
def test_a_file_gives_its_rows_in_order(tmp_path, rows, suffix):
    frame = table()
    if suffix == "csv":
        frame.write_csv(tmp_path / "r.csv")
    else:
        frame.write_parquet(tmp_path / "r.parquet", row_group_size=8)
    parts = list(file_frames(tmp_path, f"r.{suffix}", ["y", "time"]))
    assert all(part.columns == ["y", "time"] for part, _ in parts)
    assert max(len(part) for part, _ in parts) <= rows
    np.testing.assert_array_equal(np.concatenate([own for _, own in parts]), np.arange(1, 31))
    together = pl.concat([part for part, _ in parts]).cast(pl.Float64)
    assert together.equals(frame.select("y", "time"))


def test_names_of_columns_may_hold_anything(tmp_path):
    frame = table().rename({"x": "acc.x [m/s2]", "y": "acc"})
    frame.write_parquet(tmp_path / "r.parquet")
    ((part, _),) = file_frames(tmp_path, "r.parquet", ["acc", "acc.x [m/s2]"])
    assert part.equals(frame.select("acc", "acc.x [m/s2]"))


def test_a_file_that_breaks_off_cannot_be_read(tmp_path, rows):
    pq.write_table(table(5000).to_arrow(), tmp_path / "r.parquet", row_group_size=500, compression="zstd")
    content = bytearray((tmp_path / "r.parquet").read_bytes())
    content[len(content) // 2 : len(content) // 2 + 2000] = bytes(2000)  # the end, which says what is where, is whole
    (tmp_path / "r.parquet").write_bytes(content)
    with pytest.raises(DataError, match=r"r\.parquet: cannot be read: "):
        list(file_frames(tmp_path, "r.parquet", ["time", "x"]))
    (tmp_path / "r.csv").write_text("time,x\n0,1\n1,2\n2,3,4,5\n")
    with pytest.raises(DataError, match=r"r\.csv: cannot be read: "):
        list(file_frames(tmp_path, "r.csv", ["time", "x"]))


def test_a_missing_column_is_named(tmp_path):
    table().write_csv(tmp_path / "r.csv")
    with pytest.raises(DataError, match=r"r\.csv: there is no column 'z'"):
        next(file_frames(tmp_path, "r.csv", ["x", "z"]))


# Samples


def test_samples_are_those_of_the_whole_table(rows):
    frame = table().with_columns(y=pl.when(pl.col("x") == 14).then(None).otherwise("y"))
    seconds, values, numbers = read(in_memory(frame))
    np.testing.assert_array_equal(seconds, 100 + frame["time"].to_numpy())
    np.testing.assert_array_equal(values, frame.select("x", "y").to_numpy())
    np.testing.assert_array_equal(numbers, np.arange(1, 31))


def test_without_a_time_column_samples_are_equally_spaced(rows):
    seconds, *_ = read(in_memory(table()), time=None)
    np.testing.assert_array_equal(seconds, 100 + np.arange(30) / 50)


@pytest.mark.parametrize(
    ("types", "expected"),
    [
        ((pl.Float32, pl.Float32), np.float32),
        ((pl.Int16, pl.Float32), np.float32),
        ((pl.Int32, pl.Float32), np.float64),  # float32 does not hold all of them
        ((pl.Float64, pl.Float32), np.float64),
        ((pl.String, pl.Float32), np.float64),
    ],
)
def test_numbers_are_kept_exactly(types, expected):
    frame = table().with_columns(pl.col("x").cast(types[0]), pl.col("y").cast(types[1]))
    _, values, _ = read(in_memory(frame))
    assert values.dtype == expected
    np.testing.assert_array_equal(values, table().select("x", "y").to_numpy())


# What is wrong: all of it, in the order of the rows, and the most important kind


def words(**cells):
    """The table as text, with some cells {row: text} of its columns replaced."""
    frame = table().cast(pl.String)
    columns = {name: frame[name].to_list() for name in frame.columns}
    for name, own in cells.items():
        for row, text in own.items():
            columns[name][row - 1] = text
    return in_memory(pl.DataFrame(columns))


@pytest.mark.parametrize(
    ("cells", "reason", "detail"),
    [
        (
            {"y": {25: "high", 3: "low"}, "x": {3: "oops", 9: " NA "}},
            "not_a_number",
            r"^not_a_number: row 3, column x: 'oops'; row 3, column y: 'low'; row 25, column y: 'high'\. A number",
        ),
        ({"time": {2: "", 20: "nan"}}, "time_missing", r"column time, row\(s\) 2, 20; the first is ''"),
        ({"time": {28: "soon"}}, "not_a_number", "row 28, column time: 'soon'"),
        ({"time": {2: "", 9: "soon"}}, "not_a_number", "row 9, column time: 'soon'"),  # more likely the wrong unit
        ({"time": {2: "soon"}, "x": {30: "?"}}, "not_a_number", r"^not_a_number: row 30, column x: '\?'\. A"),
        (
            {"x": dict.fromkeys(range(1, 31), "?"), "y": {30: "?"}},
            "not_a_number",
            "row 20, column x: '[?]'[.] A number",
        ),
    ],
)
def test_all_rows_are_named_after_the_last_chunk(rows, cells, reason, detail):
    with pytest.raises(BadRecording, match=detail) as caught:
        read(words(**cells))
    assert caught.value.reason == reason


def test_a_table_without_rows_is_empty():
    with pytest.raises(BadRecording, match=r"empty: r\.csv has no rows"):
        read(in_memory(table(0)))


def test_a_column_of_another_kind_holds_no_numbers():
    frame = table().with_columns(x=pl.lit(b"bytes"))
    with pytest.raises(BadRecording, match="column x holds Binary, numbers are needed"):
        read(in_memory(frame))
