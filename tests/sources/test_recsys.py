import polars as pl
import pytest

from appssl.artifact import ArtifactWriter
from appssl.errors import DataError, SettingsError
from appssl.settings import validate
from appssl.sources.recsys import Config, build, draft
from appssl.synthetic.recsys import make

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


def prepared(root, out, shards=1, **values):
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


def test_any_number_of_shards_gives_the_same_bytes(synthetic, tmp_path):
    one, _ = prepared(synthetic, tmp_path / "1")
    three, _ = prepared(synthetic, tmp_path / "3", shards=3)
    assert one.digest == three.digest


def test_accounts_sum_and_every_broken_row_is_named(synthetic, tmp_path):
    artifact, data = prepared(synthetic, tmp_path)
    events = artifact.accounts()["events"]
    assert events.failed == {
        "timestamp in another unit": 1,
        "timestamp is no time": 1,
        "timestamp is not after 1970": 1,
    }
    assert events.left_out["item not in the item table"] == 1
    assert events.kept == sum(len(data.interactions(part)[0]) for part in ("train", "val", "test"))
    table = artifact.table("quarantine.parquet")
    assert "value yesterday" in table.filter(pl.col("reason") == "timestamp is no time")["detail"].item()


def test_the_parts_follow_each_other_in_time(synthetic, tmp_path):
    _, data = prepared(synthetic, tmp_path)
    times = [data.interactions(part)[2] for part in ("train", "val", "test")]
    assert times[0].max() < times[1].min() <= times[1].max() < times[2].min()


def test_items_first_seen_after_the_cut_are_cold_and_not_trained_on(synthetic, tmp_path):
    _, data = prepared(synthetic, tmp_path)
    trained = set(data.interactions("train")[1])
    assert {i for i, s in data.samples.select("index", "split").iter_rows() if s == "train"} == trained
    assert set(data.samples.filter(pl.col("slice") == "cold")["index"]) == set(range(data.num_items)) - trained


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


def test_tokens_lie_in_the_range_of_their_field(synthetic, tmp_path):
    _, data = prepared(synthetic, tmp_path)
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
        file.write("i00003,again,c1,t1,2.0\n")
    assert "1 item id(s) occur more than once: i00003" in failing(copy, tmp_path / "o")


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


def test_synthetic_data_are_the_same_bytes_for_a_seed(synthetic, tmp_path):
    make(tmp_path / "again", size="tiny", seed=0)
    make(tmp_path / "other", size="tiny", seed=1)
    same = (tmp_path / "again" / "interactions.csv").read_bytes()
    assert same == (synthetic / "interactions.csv").read_bytes()
    assert same != (tmp_path / "other" / "interactions.csv").read_bytes()
