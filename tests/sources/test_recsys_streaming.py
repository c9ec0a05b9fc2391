"""Logs of many files, in parts that fit: the result depends on the events only."""

import numpy as np
import polars as pl
import pytest

from appssl.artifact import ArtifactWriter
from appssl.errors import DataError, SettingsError
from appssl.ops.interactions import partitions
from appssl.settings import validate
from appssl.sources import recsys
from appssl.sources.recsys import Config, build
from appssl.synthetic.recsys import make

BASE = {"categorical": ["category"], "multi": [{"column": "tags"}], "min_item": 3, "min_user": 4}


@pytest.fixture(scope="module")
def synthetic(tmp_path_factory):
    folder = tmp_path_factory.mktemp("recsys")
    make(folder, size="tiny", seed=0)
    good = pl.col("timestamp").str.contains(r"^\d{10}$")
    log = pl.read_csv(folder / "interactions.csv", infer_schema=False).filter(good)
    log.with_columns(pl.col("timestamp").cast(pl.Int64)).write_parquet(folder / "whole.parquet")
    return folder


@pytest.fixture(autouse=True)
def no_figures(monkeypatch):
    monkeypatch.setattr(recsys, "figures", lambda *_: [])


def config(**values):
    return validate(Config, {**BASE, **values}, file="r.yaml", owner="sources/recsys")


def prepared(root, out, shards=1, **values):
    source, parts = build(config(**values)), []
    for shard in range(shards):
        writer = ArtifactWriter(out / f"shard{shard}", "shard", settings_digest="", inputs={})
        source.prepare(root, shard, shards, writer)
        parts.append(writer.finish())
    writer = ArtifactWriter(out / "data", "data", settings_digest="", inputs={})
    source.merge(root, parts, writer)
    artifact = writer.finish()
    return artifact, source.open(artifact)


def in_files(root, events, name="log", count=3):
    """The events in files of different formats."""
    (root / name).mkdir()
    for number, rows in enumerate(np.array_split(np.arange(len(events)), count)):
        part = events[rows.tolist()]
        if number % 2:
            part.write_csv(root / name / f"{number}.csv")
        else:
            part.write_parquet(root / name / f"{number}.parquet")
    return name


@pytest.fixture
def root(synthetic, tmp_path):
    for name in ("whole.parquet", "items.csv"):
        (tmp_path / name).write_bytes((synthetic / name).read_bytes())
    return tmp_path


@pytest.fixture
def whole(root):
    return pl.read_parquet(root / "whole.parquet")


CONTENT = ("events/user.npy", "events/item.npy", "events/timestamp.npy", "users.parquet", "samples.parquet",
           "tokens.npy", "meta.json", "account.json", "leakage.json")  # fmt: skip


def contents(artifact):
    return {name: artifact.manifest["files"][name]["sha256"] for name in CONTENT}


def test_one_file_and_many_in_any_order_of_rows_give_the_same_bytes(root, whole, tmp_path):
    shuffled = whole.sample(fraction=1, shuffle=True, seed=0)
    one, _ = prepared(root, tmp_path / "one", interactions="whole.parquet")
    many, _ = prepared(root, tmp_path / "many", interactions=in_files(root, shuffled, count=5))
    assert contents(one) == contents(many)


def test_parts_of_any_size_and_any_number_of_shards_give_the_same_artifact(root, whole, tmp_path, monkeypatch):
    log = in_files(root, whole.sample(fraction=1, shuffle=True, seed=0), count=4)
    values = {"interactions": [f"{log}/*.csv", f"{log}/*.parquet"], "session_minutes": 600.0}
    large, _ = prepared(root, tmp_path / "large", **values)
    monkeypatch.setattr(partitions, "EVENTS_AT_ONCE", 37)
    monkeypatch.setattr(partitions, "RECORDS_READ", 11)
    small, _ = prepared(root, tmp_path / "small", shards=3, **values)
    assert large.digest == small.digest
    assert not list((tmp_path / "small").rglob(".scratch"))


@pytest.mark.parametrize("kind", ["time", "last"])
def test_events_of_a_part_are_in_order_of_time_mapped_and_not_to_be_written(root, tmp_path, kind, monkeypatch):
    monkeypatch.setattr(partitions, "EVENTS_AT_ONCE", 37)
    _, data = prepared(root, tmp_path / "o", interactions="whole.parquet", split={"kind": kind})
    for part in ("train", "val", "test"):
        columns = data.interactions(part)
        assert [column.dtype for column in columns] == [np.int64] * 3
        assert not any(column.flags.writeable or column.flags.owndata for column in columns)
        keys = list(zip(*(column.tolist() for column in (columns[2], columns[0], columns[1])), strict=True))
        assert keys == sorted(keys)


def test_the_last_event_of_every_user_is_tested(root, tmp_path):
    _, data = prepared(root, tmp_path / "o", interactions="whole.parquet", split={"kind": "last"})
    parts = {part: data.interactions(part) for part in ("train", "val", "test")}
    assert data.meta.facts["train_until_unix_seconds"] is None
    for part in ("val", "test"):
        assert np.bincount(parts[part][0], minlength=data.num_users).tolist() == [1] * data.num_users
    for user in range(data.num_users):
        train, val, test = (times[users == user] for users, _, times in parts.values())
        assert train.max() <= val[0] <= test[0]


def test_a_split_by_user_trains_on_events_later_than_those_it_is_tested_on_and_says_how_many(root, tmp_path):
    artifact, data = prepared(root, tmp_path / "o", interactions="whole.parquet", split={"kind": "last"})
    train, test = data.interactions("train")[2], data.interactions("test")[2]
    later = artifact.json("leakage.json")["train_events_after_the_first_test_event"]
    assert later == int((train > test.min()).sum()) > 0
    artifact, _ = prepared(root, tmp_path / "t", interactions="whole.parquet")
    assert artifact.json("leakage.json")["train_events_after_the_first_test_event"] == 0


def test_the_leakage_report_counts_who_is_known_before_the_cut(root, tmp_path):
    artifact, data = prepared(root, tmp_path / "o", interactions="whole.parquet", min_user=1, min_item=1)
    train, test = data.interactions("train"), data.interactions("test")
    users, items = set(train[0].tolist()), set(train[1].tolist())
    pairs = list(zip(test[0].tolist(), test[1].tolist(), strict=True))
    found = artifact.json("leakage.json")
    assert found["test_events"] == {
        "all": len(pairs),
        "of_known_users": sum(user in users for user, _ in pairs),
        "of_known_items": sum(item in items for _, item in pairs),
        "of_known_users_and_items": sum(user in users and item in items for user, item in pairs),
        "of_new_users_and_items": sum(user not in users and item not in items for user, item in pairs),
    }
    assert found["users"] == {"known": len(users), "cold": data.num_users - len(users)}
    assert found["items"] == {"known": len(items), "cold": data.num_items - len(items)}
    assert (data.users["slice"] == "warm").to_list() == [user in users for user in range(data.num_users)]


def test_users_with_the_same_items_are_counted(root, whole, tmp_path):
    twin = whole.filter(pl.col("user_id") == whole["user_id"][0]).with_columns(
        pl.lit("zz-twin").alias("user_id"), pl.col("timestamp") + 1
    )
    before, _ = prepared(root, tmp_path / "a", interactions="whole.parquet")
    pl.concat([whole, twin]).write_parquet(root / "twins.parquet")
    after, _ = prepared(root, tmp_path / "b", interactions="twins.parquet")
    name = "users_with_the_items_of_another"
    assert after.json("leakage.json")[name] == before.json("leakage.json")[name] + 2


def test_sessions_by_pause_and_by_name_agree_where_the_names_are_those_of_the_pauses(root, whole, tmp_path):
    pause = 86_400
    first = whole.sort("timestamp").unique(["user_id", "item_id"], keep="first", maintain_order=True)
    first = first.filter(pl.col("item_id") != "i99999")
    begins = (pl.col("timestamp").diff() > pause).fill_null(False)
    named = first.with_columns(session=begins.cum_sum().over("user_id").cast(pl.String))
    named.sample(fraction=1, shuffle=True, seed=1).write_parquet(root / "named.parquet")
    rules = {"min_user": 1, "min_item": 1}
    _, by_pause = prepared(root, tmp_path / "a", interactions="named.parquet", session_minutes=pause / 60, **rules)
    _, by_name = prepared(root, tmp_path / "b", interactions="named.parquet", columns={"session": "session"}, **rules)
    for part in ("train", "val", "test"):
        np.testing.assert_array_equal(by_pause.sessions(part), by_name.sessions(part))
    counted = named.group_by("user_id").agg(pl.col("session").n_unique())["session"].sum()
    assert by_pause.meta.facts["num_sessions"] == by_name.meta.facts["num_sessions"] == counted


def test_weights_follow_their_events(root, whole, tmp_path):
    weight = (pl.col("timestamp") % 97 + 1).cast(pl.Float32)
    whole.with_columns(weight=weight).write_parquet(root / "weighted.parquet")
    _, data = prepared(root, tmp_path / "o", interactions="weighted.parquet", columns={"weight": "weight"})
    for part in ("train", "val", "test"):
        np.testing.assert_array_equal(data.weights(part), data.interactions(part)[2] % 97 + 1)
        assert data.sessions(part) is None


def test_kinds_of_events_that_are_not_named_are_left_out(root, whole, tmp_path):
    kind = pl.when(pl.col("timestamp") % 3 == 0).then(pl.lit("view")).otherwise(pl.lit("buy"))
    whole.with_columns(kind=kind).write_parquet(root / "kinds.parquet")
    artifact, data = prepared(
        root, tmp_path / "o", interactions="kinds.parquet", columns={"event": "kind"}, events=["buy"]
    )
    assert artifact.accounts()["events"].left_out["event of another kind"] > 100
    assert all((data.interactions(part)[2] % 3 != 0).all() for part in ("train", "val", "test"))
    with pytest.raises(SettingsError, match=r"columns.event names no column"):
        config(events=["buy"])


def test_numbers_of_ids_and_the_one_for_what_is_unknown(root, tmp_path):
    _, data = prepared(root, tmp_path / "o", interactions="whole.parquet")
    ids = data.users["id"]
    assert data.user_numbers(pl.Series([ids[2], "nobody", ids[0]])).tolist() == [2, data.num_users, 0]
    assert data.item_numbers(pl.Series(["nothing", data.samples["id"][1]])).tolist() == [data.num_items, 1]


def test_files_that_come_or_go_between_shards_and_merge_are_refused(root, whole, tmp_path):
    in_files(root, whole)
    source = build(config(interactions="log"))
    writer = ArtifactWriter(tmp_path / "shard", "shard", settings_digest="", inputs={})
    source.prepare(root, 0, 1, writer)
    shard = writer.finish()
    (root / "log" / "9.csv").write_text("user_id,item_id,timestamp\n")
    with pytest.raises(DataError, match="files are others than when the shards were prepared"):
        source.merge(root, [shard], ArtifactWriter(tmp_path / "data", "data", settings_digest="", inputs={}))


def test_rows_of_many_files_are_named_with_their_file(root, whole, tmp_path):
    in_files(root, whole.with_columns(pl.when(pl.int_range(pl.len()) != len(whole) - 1).then("timestamp")))
    artifact, _ = prepared(root, tmp_path / "o", interactions="log")
    row = artifact.table("quarantine.parquet").row(by_predicate=pl.col("outcome") == "failed", named=True)
    last = len(pl.read_parquet(root / "log" / "2.parquet"))
    assert (row["item"], row["where"]) == (f"log/2.parquet:{last}", f"log/2.parquet row {last}")


def test_a_table_of_users_becomes_tokens_of_users(root, whole, tmp_path):
    ids = whole["user_id"].unique().sort()
    table = pl.DataFrame({"user_id": ids, "country": (["at", "ch", "de"] * len(ids))[: len(ids)]})
    table.head(len(ids) - 5).write_csv(root / "people.csv")
    users = {"table": "people.csv", "categorical": ["country"]}
    artifact, data = prepared(root, tmp_path / "o", interactions="whole.parquet", users=users)
    assert data.user_tokens.shape == (data.num_users, 1)
    (field,) = data.meta.facts["user_fields"]
    country = dict(table.head(len(ids) - 5).iter_rows())
    told = [field["vocabulary"][token - 1] if token else None for token in data.user_tokens[:, 0].tolist()]
    assert told == [country.get(user) for user in data.users["id"]]
    missing = sum(user not in country for user in data.users["id"])
    assert artifact.accounts()["users_with_features"].left_out.get("no known feature", 0) == missing > 0


def test_words_of_texts_are_hashed_and_collisions_told(root, tmp_path):
    texts = [{"column": "title", "buckets": 16, "words": 3}]
    artifact, data = prepared(root, tmp_path / "o", interactions="whole.parquet", texts=texts)
    field = data.meta.facts["fields"][-1]
    assert (field["name"], field["length"], field["size"], field["vocabulary"]) == ("title", 3, 16, [])
    block = data.tokens[:, field["start"] : field["start"] + 3]
    assert block[block > 0].min() >= field["first"]
    assert block.max() < field["first"] + 16
    (found,) = artifact.json("leakage.json")["feature_hashing"]
    assert found["words"] > 16 >= found["used_buckets"]
    assert 0 < found["words_sharing"] <= found["words"]


def test_the_synthetic_log_of_many_events_is_prepared_with_its_broken_rows_named(tmp_path):
    make(tmp_path, size="30000", seed=0)
    make(tmp_path / "again", size="30000", seed=0)
    names = [path.relative_to(tmp_path / "again") for path in (tmp_path / "again").rglob("*") if path.is_file()]
    assert all((tmp_path / name).read_bytes() == (tmp_path / "again" / name).read_bytes() for name in names)
    artifact, data = prepared(tmp_path, tmp_path / "o", interactions="interactions")
    broken = pl.read_csv(tmp_path / "truth" / "broken.csv")
    failed = artifact.table("quarantine.parquet").filter(pl.col("outcome") == "failed")
    assert failed["where"].to_list() == [f"{file} row {row}" for file, row, _ in broken.iter_rows()]
    assert artifact.accounts()["events"].total == 30_000
    assert data.num_users > 200
