"""Wrong logs and item tables: each has one outcome, and says which."""

import numpy as np
import polars as pl
import pytest

from appssl.artifact import Artifact

EVENTS = {
    "interactions": "log",
    "items": "items.csv",
    "categorical": ["category"],
    "columns": {"rating": "rating"},
    "min_user": 1,
}
NUM_USERS, NUM_ITEMS, START = 20, 30, 1_600_000_000


@pytest.fixture
def log() -> pl.DataFrame:
    """Every user takes up every second item, one event a minute."""
    pairs = [(user, item) for item in range(NUM_ITEMS) for user in range(NUM_USERS) if (user + item) % 2]
    return pl.DataFrame(
        {
            "user_id": [f"{user}" for user, _ in pairs],
            "item_id": [f"{item}" for _, item in pairs],
            "timestamp": START + 60 * np.arange(len(pairs)),
            "rating": np.arange(len(pairs)) % 5 + 1.0,
        }
    )


@pytest.fixture
def root(tmp_path, log):
    """A root with the log in two files and its items; `write` puts a changed log in its place."""
    root = tmp_path / "own"
    (root / "log").mkdir(parents=True)
    items = {"item_id": [str(n) for n in range(NUM_ITEMS)], "category": [f"c{n % 4}" for n in range(NUM_ITEMS)]}
    pl.DataFrame({**items, "one": ["same"] * NUM_ITEMS}).write_csv(root / "items.csv")
    write(root, log)
    return root


def write(root, log):
    log.head(100).write_parquet(root / "log" / "a.parquet")
    log.slice(100).write_parquet(root / "log" / "b.parquet")


def at(row, value, column):
    """The column with another value in a row, from 1."""
    return pl.when(pl.int_range(pl.len()) == row - 1).then(pl.lit(value)).otherwise(pl.col(column)).alias(column)


@pytest.fixture
def account(tmp_path):
    return lambda what="events": Artifact.open(tmp_path / "data", "data").accounts()[what]


@pytest.mark.parametrize(
    ("value", "column", "source", "reason"),
    [
        (None, "timestamp", {}, "timestamp is no time"),
        (4_070_908_800, "timestamp", {"until": "2021-01-01"}, "timestamp after the end"),
        ((START + 60) * 1000, "timestamp", {}, "timestamp in another unit"),
        (-1.0, "rating", {}, "rating below lowest_rating"),
        (None, "rating", {}, "rating is no number"),
        (float("nan"), "rating", {}, "rating is no number"),
        (float("inf"), "rating", {}, "rating is no number"),
        (None, "user_id", {}, "no user"),
        ("", "item_id", {}, "no item"),
    ],
)
def test_a_fault_of_a_row_is_told_with_its_file_and_row_and_stops_no_other(
    root, log, prepare, explained, account, value, column, source, reason
):
    write(root, log.with_columns(at(103, value, column)))
    said = prepare(root, "recsys", **{**EVENTS, **source})
    assert said.code == 0, said
    assert account().failed == {reason: 1}
    assert ("log/b.parquet:3", "failed", reason) in explained()


def test_a_rating_below_zero_is_no_fault_of_a_scale_that_has_them(root, log, prepare, account):
    write(root, log.with_columns(at(103, -1.0, "rating")))
    assert prepare(root, "recsys", **EVENTS, lowest_rating=-10.0).code == 0
    assert account().failed == {}


def test_a_time_in_the_future_counts_where_no_end_is_stated(root, log, prepare, account):
    write(root, log.with_columns(at(103, 4_070_908_800, "timestamp")))
    assert prepare(root, "recsys", **EVENTS).code == 0  # no clock decides: the same log is prepared alike in any year
    assert account().failed == {}


def test_an_end_that_is_no_time_is_refused(root, prepare):
    said = prepare(root, "recsys", **EVENTS, until="soon")
    assert said.code == 2
    assert "until is 'soon', which is no time" in said.err


def test_a_file_in_milliseconds_among_files_in_seconds_fails_row_by_row(root, log, prepare, account):
    log.slice(100).with_columns(pl.col("timestamp") * 1000).write_parquet(root / "log" / "b.parquet")
    log.slice(100).with_columns(pl.col("item_id") + "0").write_parquet(root / "log" / "c.parquet")
    said = prepare(root, "recsys", **EVENTS)
    assert said.code == 3
    assert "timestamp in another unit" in said.err
    assert "log/b.parquet row 1" in said.err


def test_a_log_in_milliseconds_is_refused_as_a_whole(root, log, prepare):
    write(root, log.with_columns(pl.col("timestamp") * 1000))
    said = prepare(root, "recsys", **EVENTS)
    assert said.code == 3
    assert "timestamp is not in Unix seconds" in said.err
    assert "Divide by 1000" in said.err


def test_ids_that_are_numbers_in_one_file_and_text_in_another_are_the_same_ids(root, log, prepare, tmp_path):
    assert prepare(root, "recsys", **EVENTS).code == 0
    text = Artifact.open(tmp_path / "data", "data").table("users.parquet")
    log.head(100).with_columns(pl.col("user_id").cast(pl.Int64), pl.col("item_id").cast(pl.Float64)).write_parquet(
        root / "log" / "a.parquet"
    )
    log.slice(100).write_csv(root / "log" / "b.csv")
    (root / "log" / "b.parquet").unlink()
    (tmp_path / "data" / "manifest.json").unlink()
    assert prepare(root, "recsys", **EVENTS).code == 0
    artifact = Artifact.open(tmp_path / "data", "data")
    assert artifact.table("users.parquet").equals(text)
    assert artifact.accounts()["events"].left_out == {}


def test_items_without_features_are_used_and_named(root, prepare, explained, account):
    items = pl.read_csv(root / "items.csv", infer_schema=False)
    none = pl.when(pl.col("item_id") == "7").then(None).otherwise(pl.col("category")).alias("category")
    items.with_columns(none).write_csv(root / "items.csv")
    assert prepare(root, "recsys", **EVENTS).code == 0
    assert ("7", "left_out", "no known feature") in explained()
    assert account("items_with_features").left_out == {"no known feature": 1}
    assert account("items").kept == NUM_ITEMS


def test_a_user_with_very_many_events_is_told_and_can_be_limited(root, log, prepare, account, tmp_path):
    many = 20_000
    items = pl.DataFrame({"item_id": [str(n) for n in range(many)], "category": [f"c{n % 4}" for n in range(many)]})
    items.write_csv(root / "items.csv")
    busy = pl.DataFrame({"item_id": items["item_id"], "timestamp": START + np.arange(many) // 2})
    busy = busy.with_columns(user_id=pl.lit("bot"), rating=pl.lit(1.0)).select(log.columns)
    busy.write_parquet(root / "log" / "c.parquet")
    assert prepare(root, "recsys", **EVENTS).code == 0
    assert Artifact.open(tmp_path / "data", "data").json("leakage.json")["busiest_user_events"] == many
    (tmp_path / "data" / "manifest.json").unlink()
    assert prepare(root, "recsys", **EVENTS, max_user_events=50).code == 0
    assert account().left_out == {"user has more than max_user_events": many - 50}
    assert Artifact.open(tmp_path / "data", "data").json("leakage.json")["busiest_user_events"] == 50


def test_a_feature_with_one_value_is_left_out_and_refused_where_it_is_the_only_one(root, prepare, explained, tmp_path):
    assert prepare(root, "recsys", **{**EVENTS, "categorical": ["one", "category"]}).code == 0
    assert ("one", "left_out", "the same for every training item") in explained()
    meta = Artifact.open(tmp_path / "data", "data").json("meta.json")
    assert [field["name"] for field in meta["facts"]["fields"]] == ["category"]
    (tmp_path / "data" / "manifest.json").unlink()
    said = prepare(root, "recsys", **{**EVENTS, "categorical": ["one"]})
    assert said.code == 3
    assert "items.csv: one: the same for every training item" in said.err


def test_an_empty_test_part_is_refused(root, log, prepare):
    write(root, log.with_columns(timestamp=pl.lit(START)))
    said = prepare(root, "recsys", **EVENTS)
    assert said.code == 3
    assert "train part is empty: too many events share one time" in said.err
    single = log.unique("user_id", keep="first", maintain_order=True)
    write(root, single)
    said = prepare(root, "recsys", **EVENTS, split={"kind": "last"})
    assert said.code == 3
    assert "test part is empty: no user has two events" in said.err


def test_an_item_table_with_an_id_twice_is_refused_with_the_id(root, prepare):
    with (root / "items.csv").open("a") as file:
        file.write("7,c1,same\n")
    said = prepare(root, "recsys", **EVENTS)
    assert said.code == 3
    assert "1 item id(s) occur more than once: 7" in said.err


def test_a_parquet_file_cut_off_in_the_middle_is_named_among_its_neighbours(root, prepare):
    path = root / "log" / "b.parquet"
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    said = prepare(root, "recsys", **EVENTS)
    assert said.code == 3
    assert "b.parquet: cannot be read" in said.err


def test_a_file_damaged_inside_is_named_among_its_neighbours(root, prepare):
    path = root / "log" / "b.parquet"
    whole = path.read_bytes()
    path.write_bytes(whole[:40] + bytes(200) + whole[240:])
    said = prepare(root, "recsys", **EVENTS)
    assert said.code == 3
    assert "b.parquet: cannot be read" in said.err


def test_a_file_without_a_column_of_its_neighbours_is_named(root, log, prepare):
    log.slice(100).drop("rating").write_parquet(root / "log" / "b.parquet")
    said = prepare(root, "recsys", **EVENTS)
    assert said.code == 3
    assert "b.parquet: has no column rating" in said.err


def test_a_folder_without_a_table_is_named(root, prepare):
    for path in (root / "log").iterdir():
        path.unlink()
    said = prepare(root, "recsys", **EVENTS)
    assert said.code != 0
    assert "log: holds no table" in said.err
