import numpy as np
import polars as pl
import pytest

from appssl.artifact import ArtifactWriter
from appssl.errors import DataError, SettingsError
from appssl.ops.interactions.event_tables import PROBLEMS, Columns, read_events
from appssl.settings import validate
from appssl.sources import recsys
from appssl.sources.recsys import Config, build, draft
from appssl.synthetic.recsys import make
from tests.real_data import DATA, on_real_data

BASE = {"categorical": ["category"], "multi": [{"column": "tags"}], "numeric": ["price"], "title": "title"}


@pytest.fixture(scope="module")
def synthetic(tmp_path_factory):
    folder = tmp_path_factory.mktemp("recsys")
    make(folder, size="tiny", seed=0)
    return folder


@pytest.fixture
def copy(synthetic, tmp_path):
    """A folder with an own copy of the tables, to be broken."""
    for name in ("interactions.csv", "items.csv"):
        (tmp_path / name).write_bytes((synthetic / name).read_bytes())
    return tmp_path


def config(**values):
    return validate(Config, {**BASE, **values}, file="r.yaml", owner="sources/recsys")


def prepared(root, out, shards=1, *, drawn=False, **values):
    """Artifact and data; figures take most of the time, so only tests of bytes draw them."""
    with pytest.MonkeyPatch.context() as patch:
        if not drawn:
            patch.setattr(recsys, "figures", lambda *_: [])
        return _prepared(root, out, shards, values)


def _prepared(root, out, shards, values):
    source = build(config(**values))
    parts = []
    for shard in range(shards):
        writer = ArtifactWriter(out / f"shard{shard}", "shard", settings_digest="", inputs={})
        source.prepare(root, shard, shards, writer)
        parts.append(writer.finish())
    writer = ArtifactWriter(out / "data", "data", settings_digest="", inputs={})
    source.merge(root, parts, writer)
    artifact = writer.finish()
    return artifact, source.open(artifact)


@pytest.fixture(scope="module")
def once(synthetic, tmp_path_factory):
    """Artifact and data of the unbroken tables with the default settings."""
    return prepared(synthetic, tmp_path_factory.mktemp("once"), drawn=True)


def test_any_number_of_shards_gives_the_same_bytes(synthetic, once, tmp_path):
    one, _ = once
    three, _ = prepared(synthetic, tmp_path / "3", shards=3, drawn=True)
    assert one.digest == three.digest


def test_accounts_sum_and_every_broken_row_is_named(once):
    artifact, data = once
    events = artifact.accounts()["events"]
    assert events.failed == {
        "timestamp in another unit": 1,
        "timestamp is no time": 1,
        "timestamp is not after 1970": 1,
    }
    assert events.left_out["item not in the item table"] == 1
    for what, account in artifact.accounts().items():
        account.check(what)
    assert events.kept == sum(len(data.interactions(part)[0]) for part in ("train", "val", "test"))
    table = artifact.table("quarantine.parquet")
    assert "value yesterday" in table.filter(pl.col("reason") == "timestamp is no time")["detail"].item()


def test_the_parts_follow_each_other_in_time(once):
    _, data = once
    times = [data.interactions(part)[2] for part in ("train", "val", "test")]
    assert times[0].max() < times[1].min() <= times[1].max() < times[2].min()


def test_items_first_seen_after_the_cut_are_cold_and_not_trained_on(once):
    _, data = once
    trained = set(data.interactions("train")[1])
    assert {i for i, s in data.samples.select("index", "split").iter_rows() if s == "train"} == trained
    assert set(data.samples.filter(pl.col("slice") == "cold")["index"]) == set(range(data.num_items)) - trained


def test_popularity_and_slices_are_of_training_events_only(once):
    _, data = once
    counts = np.bincount(data.interactions("train")[1], minlength=data.num_items)
    assert data.popularity.tolist() == counts.tolist()
    assert ((data.slices == "cold") == (counts == 0)).all()


def test_numbers_of_users_and_items_follow_the_order_of_their_ids(once):
    _, data = once
    for table, number in ((data.users, "number"), (data.samples, "index")):
        assert table["id"].is_sorted()
        assert table[number].to_list() == list(range(len(table)))


def test_test_events_of_new_users_are_counted_and_kept(once):
    artifact, data = once
    known = set(data.interactions("train")[0])
    users = data.interactions("test")[0]
    warm = sum(user in known for user in users)
    accounts = artifact.accounts()
    assert accounts["test_events_of_warm_users"].kept == warm
    assert accounts["test_events_of_cold_users"].kept == len(users) - warm


def test_users_without_a_kept_event_are_left_out_by_name(copy, tmp_path):
    with (copy / "interactions.csv").open("a") as file:
        file.write("lonely,i00001,1605000000,4.0\n")
    artifact, data = prepared(copy, tmp_path / "o")
    users = artifact.accounts()["users"]
    assert users.left_out["no event left"] >= 1
    assert users.kept == data.num_users
    quarantine = artifact.table("quarantine.parquet").filter(pl.col("what") == "user")
    assert "lonely" in quarantine["item"].to_list()


def test_a_repeated_event_counts_once_at_its_first_time(copy, tmp_path):
    rows = ["u1,i00001,1600000300,5", "u1,i00001,1600000100,2", "u2,i00001,1600000200,5"]
    rows += [f"u2,i{n:05d},{1600001000 + n},3" for n in range(2, 12)]
    write(copy, "log.csv", "user_id,item_id,timestamp,rating\n" + "\n".join(rows) + "\n")
    artifact, data = prepared(copy, tmp_path / "o", interactions="log.csv", min_user=1)
    assert artifact.accounts()["events"].left_out == {"repeated event": 1}
    assert data.interactions("train")[2].min() == 1600000100


def test_unknown_items_can_be_kept_without_features(synthetic, tmp_path):
    artifact, data = prepared(synthetic, tmp_path, unknown_items="keep", min_user=1)
    assert "item not in the item table" not in artifact.accounts()["events"].left_out
    row = data.samples.filter(pl.col("id") == "i99999")["index"].item()
    assert (data.read(row) == 0).all()
    assert data.meta.facts["items_without_features"] == 1


def test_without_a_validation_part_the_test_follows_training(synthetic, tmp_path):
    _, data = prepared(synthetic, tmp_path, train_share=0.9, val_share=0.0)
    assert len(data.interactions("val")[0]) == 0
    assert data.interactions("train")[2].max() < data.interactions("test")[2].min()


def test_parquet_gives_the_same_data_as_csv(copy, once, tmp_path):
    log = pl.read_csv(copy / "interactions.csv", infer_schema=False)
    log.write_parquet(copy / "log.parquet")
    pl.read_csv(copy / "items.csv").write_parquet(copy / "items.parquet")
    _, data = prepared(copy, tmp_path / "o", interactions="log.parquet", items="items.parquet")
    assert (data.tokens == once[1].tokens).all()
    assert (data.interactions("train")[1] == once[1].interactions("train")[1]).all()


def test_text_in_a_numeric_feature_is_missing_and_says_so(copy, tmp_path):
    items = pl.read_csv(copy / "items.csv", infer_schema=False)
    cheap = pl.when(pl.col("item_id") == "i00003").then(pl.lit("3 euros")).otherwise(pl.col("price"))
    items.with_columns(price=cheap).write_csv(copy / "items.csv")
    artifact, _ = prepared(copy, tmp_path / "o", min_user=1)
    assert artifact.accounts()["numeric_values"].failed == {"price is no number": 1}
    row = artifact.table("quarantine.parquet").row(by_predicate=pl.col("what") == "value", named=True)
    assert (row["item"], row["detail"]) == ("i00003", "value 3 euros; treated as missing")


def test_the_k_core_holds_after_preparation(synthetic, tmp_path):
    _, data = prepared(synthetic, tmp_path, min_user=8, min_item=4)
    events = pl.concat(
        [pl.DataFrame(data.interactions(p)[:2], schema=["user", "item"]) for p in ("train", "val", "test")]
    )
    assert events.group_by("user").len()["len"].min() >= 8
    assert events.group_by("item").len()["len"].min() >= 4


def test_a_feature_value_of_later_items_only_is_missing(copy, tmp_path):
    events = pl.read_csv(copy / "interactions.csv", infer_schema=False)
    late = events.sort("timestamp")["item_id"].to_list()[-30:]
    early = set(events.sort("timestamp")["item_id"].to_list()[:-300])
    only_late = [i for i in late if i not in early]
    items = pl.read_csv(copy / "items.csv", infer_schema=False)
    marked = pl.when(pl.col("item_id").is_in(only_late)).then(pl.lit("brand-new")).otherwise(pl.col("category"))
    items.with_columns(category=marked).write_csv(copy / "items.csv")
    _, data = prepared(copy, tmp_path / "out", min_user=1)
    field = data.meta.facts["fields"][0]
    cold = data.samples.filter(pl.col("id").is_in(only_late) & (pl.col("slice") == "cold"))["index"]
    assert all(data.read(row)[field["start"]] == 0 for row in cold)


def test_tokens_lie_in_the_range_of_their_field(once):
    _, data = once
    for field in data.meta.facts["fields"]:
        block = data.tokens[:, field["start"] : field["start"] + field["length"]]
        used = block[block > 0]
        assert used.min() >= field["first"]
        assert used.max() < field["first"] + field["size"]


def test_ratings_and_user_limit_leave_out_with_a_reason(synthetic, tmp_path):
    columns = {"rating": "rating"}
    artifact, data = prepared(synthetic, tmp_path, columns=columns, min_rating=4, limit_users=20, min_user=2)
    assert {"rating below min_rating", "user not in the limit"} <= artifact.accounts()["events"].left_out.keys()
    assert data.num_users <= 20


def write(folder, name, text):
    (folder / name).write_text(text)


def failing(root, out, **values):
    with pytest.raises(DataError) as caught:
        prepared(root, out, **values)
    return str(caught.value)


def test_a_missing_column_is_named_with_those_that_are_there(copy, tmp_path):
    text = failing(copy, tmp_path / "o", columns={"user": "userId"})
    assert "has no column userId; it has user_id, item_id, timestamp, rating" in text


def test_missing_empty_and_strange_tables(copy, tmp_path):
    assert "no such table" in failing(copy, tmp_path / "a", interactions="nothing.csv")
    write(copy, "empty.csv", "user_id,item_id,timestamp\n")
    assert "holds no interactions" in failing(copy, tmp_path / "b", interactions="empty.csv")
    write(copy, "log.txt", "x")
    assert "give a table in CSV or Parquet" in failing(copy, tmp_path / "c", interactions="log.txt")
    write(copy, "zero.csv", "")
    assert "cannot be read" in failing(copy, tmp_path / "d", interactions="zero.csv")


def test_a_parquet_cut_in_the_middle_is_a_clear_error(copy, tmp_path):
    pl.read_csv(copy / "interactions.csv", infer_schema=False).write_parquet(copy / "log.parquet")
    whole = (copy / "log.parquet").read_bytes()
    (copy / "log.parquet").write_bytes(whole[: len(whole) // 2])
    assert "log.parquet: cannot be read" in failing(copy, tmp_path / "o", interactions="log.parquet")


def test_a_path_outside_the_root_is_refused(copy, tmp_path):
    assert "leaves the data root" in failing(copy, tmp_path / "o", interactions="../x.csv")


def test_duplicate_items_are_named(copy, tmp_path):
    with (copy / "items.csv").open("a") as file:
        file.write("i00003,again,c1,t1,2.0\n,nameless,c1,t1,2.0\n")
    text = failing(copy, tmp_path / "o")
    assert "1 item id(s) occur more than once: i00003" in text
    assert "1 row(s) have no item_id: row 82" in text  # after 80 items and the repeated one


def test_an_item_table_that_changes_between_shards_and_merge_is_refused(copy, tmp_path):
    source = build(config())
    writer = ArtifactWriter(tmp_path / "shard", "shard", settings_digest="", inputs={})
    source.prepare(copy, 0, 1, writer)
    shard = writer.finish()
    with (copy / "items.csv").open("a") as file:
        file.write("i00099,late,c1,t1,2.0\n")
    with pytest.raises(DataError, match="changed since the shards were prepared"):
        source.merge(copy, [shard], ArtifactWriter(tmp_path / "data", "data", settings_digest="", inputs={}))


def test_a_single_user_cannot_be_ranked(copy, tmp_path):
    rows = "".join(f"u1,i{n:05d},{1_600_000_000 + n}\n" for n in range(30))
    write(copy, "one.csv", "user_id,item_id,timestamp\n" + rows)
    assert "a single user" in failing(copy, tmp_path / "o", interactions="one.csv")


def test_a_k_core_that_removes_everything_says_what_went_where(copy, tmp_path):
    text = failing(copy, tmp_path / "o", min_user=10_000)
    assert "no event is left" in text
    assert "too few events (k-core)" in text


def test_all_events_at_one_time_cannot_be_divided(copy, tmp_path):
    rows = "".join(f"u{n % 5},i{n:05d},1600000000\n" for n in range(30))
    write(copy, "flat.csv", "user_id,item_id,timestamp\n" + rows)
    assert "train part is empty" in failing(copy, tmp_path / "o", interactions="flat.csv", min_user=1)


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        ("2020-01-01", 1577836800),
        ("2020-01-01 05:00", 1577854800),
        ("2020-01-01T05:00:00", 1577854800),
        ("2020-01-01T05:00:00.25Z", 1577854800),
        ("2020-01-01T05:00:00+02:00", 1577847600),
        (" 1577854800 ", 1577854800),
    ],
)
def test_each_form_of_time_is_read_whatever_stands_in_the_other_rows(tmp_path, text, seconds):
    write(tmp_path, "log.csv", f"u,i,t\na,b,yesterday\na,c,{text}\na,d,1577836801\n")
    (found,) = read_events(tmp_path / "log.csv", Columns(user="u", item="i", timestamp="t"))
    assert found["timestamp"].to_list() == [None, seconds, 1577836801]
    assert [PROBLEMS[number] for number in found["problem"]] == ["timestamp is no time", "", ""]


def test_times_far_below_the_median_are_in_another_unit(copy, tmp_path):
    with (copy / "interactions.csv").open("a") as file:
        file.write("u00001,i00001,444444,3\n")
    artifact, _ = prepared(copy, tmp_path / "o")
    assert artifact.accounts()["events"].failed["timestamp in another unit"] == 2


def test_a_log_in_milliseconds_is_refused(copy, tmp_path):
    rows = "".join(f"u{n % 5},i{n:05d},{1_600_000_000_000 + n}\n" for n in range(30))
    write(copy, "ms.csv", "user_id,item_id,timestamp\n" + rows)
    text = failing(copy, tmp_path / "o", interactions="ms.csv")
    assert "timestamp is not in Unix seconds" in text
    assert "Divide by 1000" in text


def test_iso_times_are_read(copy, tmp_path):
    events = pl.read_csv(copy / "interactions.csv", infer_schema=False).filter(
        pl.col("timestamp").str.contains(r"^\d{10}$")
    )
    iso = pl.from_epoch(pl.col("timestamp").cast(pl.Int64)).dt.strftime("%Y-%m-%dT%H:%M:%SZ")
    events.with_columns(timestamp=iso).write_csv(copy / "iso.csv")
    events.write_csv(copy / "unix.csv")
    one, two = (prepared(copy, tmp_path / n, interactions=f"{n}.csv")[1] for n in ("iso", "unix"))
    assert (one.interactions("train")[2] == two.interactions("train")[2]).all()


def test_settings_that_contradict_themselves_are_refused():
    with pytest.raises(SettingsError, match="nothing is left for the test"):
        config(train_share=0.9, val_share=0.1)
    with pytest.raises(SettingsError, match="name at least one feature"):
        validate(Config, {}, file="r.yaml", owner="sources/recsys")
    with pytest.raises(SettingsError, match=r"patterns.0.regex is not valid: is no regular expression"):
        config(patterns=[{"name": "year", "column": "title", "regex": "(\\d"}])


def test_a_draft_is_a_valid_recipe_block(copy):
    values = draft(copy / "interactions.csv")
    found = validate(Config, values["data"]["source"], file="r.yaml", owner="sources/recsys")
    assert found.columns.user == "user_id"
    assert [m.column for m in found.multi] == ["tags"]
    assert "category" in found.categorical


def test_a_draft_needs_user_item_and_time(copy):
    write(copy, "odd.csv", "a,b\n1,2\n")
    with pytest.raises(DataError, match="no column looks like user, item, timestamp; it has a, b"):
        draft(copy / "odd.csv")


@on_real_data
def test_a_ninety_percent_cut_of_movielens_leaves_a_sixth_of_the_test_to_known_users(tmp_path):
    values = {
        "interactions": "rec/ml-latest-small/ratings.csv",
        "columns": {"user": "userId", "item": "movieId", "rating": "rating"},
        "items": "rec/ml-latest-small/movies.csv",
        "item_id": "movieId",
        "multi": [{"column": "genres"}],
        "patterns": [{"name": "year", "column": "title", "regex": r"\((\d{4})\)"}],
        "train_share": 0.9,
        "val_share": 0.0,
    }
    values |= {"categorical": [], "numeric": [], "title": "title"}
    artifact, _ = prepared(DATA, tmp_path, **values)
    accounts = artifact.accounts()
    assert (accounts["events"].total, accounts["events"].kept) == (100004, 100004)
    warm, cold = (accounts[f"test_events_of_{kind}_users"].kept for kind in ("warm", "cold"))
    assert (warm, warm + cold) == (1671, 10001)


def test_new_items_have_the_tokens_that_training_gave_the_same_features(synthetic, once, tmp_path):
    _, data = once
    items = pl.read_csv(synthetic / "items.csv")
    items.with_columns(item_id=pl.lit("new-") + pl.col("item_id")).write_csv(tmp_path / "new.csv")
    found, left = recsys.open_new(config(), tmp_path / "new.csv", data.meta)
    assert left == []
    assert len(found.samples) == len(items)
    row_of = {item: row for row, item in enumerate(found.samples["id"])}
    for item, row in data.samples.select("id", "index").iter_rows():
        np.testing.assert_array_equal(found.read(row_of[f"new-{item}"]), data.read(row))


def test_a_new_item_without_known_features_is_explained(synthetic, once, tmp_path):
    _, data = once
    row = {"item_id": "x", "title": "t", "category": "never seen", "tags": "none", "price": "much"}
    pl.DataFrame([row]).write_csv(tmp_path / "new.csv")
    found, left = recsys.open_new(config(), tmp_path / "new.csv", data.meta)
    assert not found.read(0).any()
    assert [(q.item, q.outcome, q.reason) for q in left] == [("x", "left_out", "no known feature")]
