"""Tables of images, slides, recordings, samples, intervals, decisions, addresses, events and items: CSV and Parquet."""

import time

import polars as pl
import pytest

from appssl.errors import DataError
from appssl.ops.crawl.table import read_addresses
from appssl.ops.images import index as image_index
from appssl.ops.images.decisions import read_decisions
from appssl.ops.interactions import event_tables
from appssl.ops.interactions import items as interaction_items
from appssl.ops.signals.recording_labels import label_names, read_intervals
from appssl.ops.signals.recording_tables import Columns, LongTable, RecordingTable
from appssl.ops.signals.recordings import BadRecording
from appssl.ops.slides import table as slide_table
from appssl.ops.table_limits import checked
from tests.fuzz.damage import fuzz, parquet, survives

IMAGES = pl.DataFrame({"id": ["a", "b"], "path": ["a.jpg", "b/c.png"], "label": ["x", None], "url": ["http://h/a", ""]})
SLIDES = pl.DataFrame({"slide_id": ["a", "b"], "path": ["a.svs", "b.svs"], "mpp": [0.25, 0.5], "label": ["x", "y"]})
RECORDINGS = pl.DataFrame(
    {
        "recording_id": ["r1", "r2"], "subject_id": ["s1", "s2"], "device": ["left"] * 2, "path": ["a.csv", "b.csv"],
        "sampling_hz": [50.0, 25.0], "start_time": [0.0, 1.5],
    }
)  # fmt: skip
INTERVALS = pl.DataFrame(
    {"subject_id": ["s1", "s1"], "start": [0.0, 1.5], "end": [1.5, 1e3], "activity": ["walk", "run"]}
)
NAMES = pl.DataFrame({"value": [1, 2], "name": ["walk", "run"]})
DECISIONS = pl.DataFrame({"id": ["a", "b"], "decision": ["keep", "relabel"], "label": [None, "x"]})
SAMPLES = pl.DataFrame({"time": [0.0, 0.5], "x": [1.0, 2.0], "y": [1, 2]})
LONG = pl.DataFrame({"subject_id": ["s", "s"], "device": ["left", "right"], "time": [0.0, 0.5], "x": [1.0, 2.0]})
EVENTS = pl.DataFrame(
    {
        "user_id": [1, 2],
        "item_id": ["a", "b"],
        "timestamp": [10**9, 2 * 10**9],
        "rating": [1.0, 5.0],
        "event": ["v", "p"],
    }
)
ITEMS = pl.DataFrame({"item_id": ["a", "b"], "title": ["A", "B"], "kind": ["x", "y"], "price": [1.5, 2.5]})
LOG = event_tables.Columns(rating="rating", event="event")
ADDRESSES = pl.DataFrame({"image_id": ["a", "b"], "url": ["https://h/a", "https://h/b"], "split": ["train", "test"]})


def read_images(folder, name):
    return image_index.list_table(folder, name, image_index.Columns(url="url"), "input")


def read_slides(folder, name):
    return slide_table.list_slides(folder, name, slide_table.Columns(), folder)


def read_recordings(folder, name):
    return RecordingTable(folder, name, columns=Columns(), unit="seconds", hz=None)


def read_samples(folder, name):
    table = pl.DataFrame({"recording_id": "r", "subject_id": "s", "device": "left", "path": name})
    table.write_csv(folder / "recordings.csv")
    return loaded(RecordingTable(folder, "recordings.csv", columns=Columns(), unit="seconds", hz=None))


def read_long_table(folder, name):
    return loaded(LongTable(folder, name, columns=Columns(), wide=None, unit="seconds", hz=None))


def loaded(table):
    """All samples of all recordings. Raises: BadRecording."""
    loading = table.load([recording.subject for recording in table.recordings], table.channels())
    return [list(samples) for _, recordings in loading for _, samples in recordings]


def read_items(folder, name):
    columns = interaction_items.Features(
        "item", name, "item_id", "title", categorical=("kind",), multi=(), numeric=("price",), patterns=(), texts=(),
        bins=2,
    )  # fmt: skip
    return interaction_items.read_table(folder / name, columns)


def decisions(folder, name):
    return read_decisions(folder / name, name, classes=["x", "y"], given={"a": "x", "b": "y"}, known=["a", "b"])


READERS = {
    "images": (
        IMAGES,
        lambda folder, name: image_index.list_table(folder, name, image_index.Columns(url="url"), "input"),
    ),
    "image columns": (IMAGES, lambda folder, name: image_index.guessed_columns(folder / name)),
    "slides": (SLIDES, read_slides),
    "recordings": (RECORDINGS, read_recordings),
    "intervals": (INTERVALS, lambda folder, name: read_intervals(folder, name, "seconds", ["s1", "s2"])),
    "iso intervals": (INTERVALS, lambda folder, name: read_intervals(folder, name, "iso", ["s1", "s2"])),
    "label names": (NAMES, label_names),
    "samples": (SAMPLES, read_samples),
    "long table": (LONG, read_long_table),
    "decisions": (DECISIONS, decisions),
    "addresses": (ADDRESSES, lambda folder, name: read_addresses(folder / name)),
    "events": (EVENTS, lambda folder, name: list(event_tables.read_events(folder / name, LOG))),
    "items": (ITEMS, read_items),
}


@pytest.mark.parametrize("what", READERS)
def test_csv(what):
    frame, read = READERS[what]

    @fuzz(frame.write_csv().encode(), examples=60)
    def damaged(content):
        survives(read, content, "t.csv", BadRecording)

    damaged()


@pytest.mark.parametrize("what", READERS)
def test_parquet(what):
    frame, read = READERS[what]

    @fuzz(parquet(frame), examples=60)
    def damaged(content):
        survives(read, content, "t.parquet", BadRecording)

    damaged()


@pytest.mark.parametrize("what", READERS)
def test_the_undamaged_table_is_read(tmp_path, what):
    frame, read = READERS[what]
    if what == "iso intervals":
        frame = frame.with_columns(start=pl.lit("2020-01-01"), end=pl.lit("2020-01-02")).head(1)
    frame.write_csv(tmp_path / "t.csv")
    (tmp_path / "t.parquet").write_bytes(parquet(frame))
    for name in ("t.csv", "t.parquet"):
        assert read(tmp_path, name) is not None


@pytest.mark.parametrize("what", [what for what in READERS if what != "image columns"])
def test_a_page_of_parquet_with_a_negative_number_of_values_is_refused(tmp_path, what):
    """Polars alone would ask for 2^61 bytes, and the process would end without a word."""
    frame, read = READERS[what]
    content = bytearray(parquet(frame))
    # Thrift's compact form of a data page's header: field 1 of it, an i32, holds zigzag(2) = 4; 3 is -2.
    at = content.index(b"\x2c\x15\x04\x15", 0)
    content[at + 2] = 3
    (tmp_path / "t.parquet").write_bytes(content)
    with pytest.raises((DataError, BadRecording), match=r"negative number of values"):
        read(tmp_path, "t.parquet")


def test_only_the_columns_that_are_read_are_decoded(tmp_path):
    content = bytearray(parquet(pl.DataFrame({"images": ["x", "y"], "id": ["a", "b"]})))
    content[content.index(b"\x2c\x15\x04\x15") + 2] = 3  # of the first column
    (tmp_path / "t.parquet").write_bytes(content)
    assert checked(tmp_path / "t.parquet", ["id"]) == tmp_path / "t.parquet"
    with pytest.raises(OSError, match="negative number of values"):
        checked(tmp_path / "t.parquet")


@pytest.mark.parametrize("what", ["intervals", "recordings"])
def test_bytes_that_are_no_text_are_named_as_an_empty_cell_is(tmp_path, what):
    frame, read = READERS[what]
    column = frame.columns[0]
    frame.with_columns(pl.Series(column, [b"\xff\xfe", b"s1"])).write_parquet(tmp_path / "t.parquet")
    with pytest.raises(DataError, match=rf"row 1.*{column}"):
        read(tmp_path, "t.parquet")


@pytest.mark.parametrize("what", ["images", "slides", "intervals"])  # the three ways to read one
def test_a_field_of_100_mb_is_refused_with_its_row_in_bounded_time(tmp_path, what):
    """As a lost quote makes it: all that follows is one field."""
    frame, read = READERS[what]
    lines = frame.write_csv().splitlines()
    cells = lines[2].split(",")
    cells[1] = '"' + "x" * 100_000_000 + '"'
    (tmp_path / "t.csv").write_text("\n".join([*lines[:2], ",".join(cells)]) + "\n")
    start = time.process_time()
    with pytest.raises(DataError, match=r"row 2, column '.*' holds more than 65,536 bytes"):
        read(tmp_path, "t.csv")
    assert time.process_time() - start < 5


@pytest.mark.parametrize(("what", "line"), [("intervals", "z{},0,1,walk"), ("decisions", "z{},relabel,zz{}")])
def test_many_wrong_rows_take_no_long_time(tmp_path, what, line):
    frame, read = READERS[what]
    rows = [line.replace("{}", str(number)) for number in range(50_000)]
    (tmp_path / "t.csv").write_text("\n".join([frame.write_csv().splitlines()[0], *rows]))
    start = time.process_time()
    with pytest.raises(DataError, match=r"and \d+ more"):
        read(tmp_path, "t.csv")
    assert time.process_time() - start < 10
