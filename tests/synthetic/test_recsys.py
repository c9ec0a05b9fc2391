import numpy as np
import polars as pl
import pytest
from scipy import stats

from appssl.synthetic import recsys
from appssl.synthetic.recsys import make

FILES = ("interactions.csv", "items.csv", "truth/users.csv", "truth/items.csv", "truth/broken.csv")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("made")
    make(folder, size="small", seed=0)
    return folder


def table(folder, name):
    return pl.read_csv(folder / name, infer_schema=False)


@pytest.fixture(scope="module")
def events(folder):
    """Events that are not broken, with the item's features and the user's taste."""
    bad = table(folder, "truth/broken.csv")["row"].cast(pl.Int64)
    log = table(folder, "interactions.csv").with_row_index("row", 1).filter(~pl.col("row").is_in(bad.implode()))
    log = log.join(table(folder, "items.csv"), on="item_id").join(table(folder, "truth/users.csv"), on="user_id")
    return log.with_columns(pl.col("timestamp").cast(pl.Int64), likes=pl.col("category") == pl.col("category_right"))


def test_the_same_bytes_for_a_seed_and_others_for_another(folder, tmp_path):
    make(tmp_path / "again", size="small", seed=0)
    make(tmp_path / "other", size="small", seed=1)
    for name in FILES:
        assert (tmp_path / "again" / name).read_bytes() == (folder / name).read_bytes()
    assert (tmp_path / "other" / FILES[0]).read_bytes() != (folder / FILES[0]).read_bytes()


def test_writing_in_blocks_changes_rows_but_not_their_order(folder, tmp_path, monkeypatch):
    monkeypatch.setattr(recsys, "_ROWS_AT_ONCE", 777)
    make(tmp_path, size="small", seed=0)
    columns = ["user_id", "item_id", "timestamp"]
    assert table(tmp_path, FILES[0]).select(columns).equals(table(folder, FILES[0]).select(columns))


def test_popularity_has_a_long_tail(events):
    counts = events.group_by("item_id").len()["len"].sort(descending=True).to_numpy()
    half = int(np.searchsorted(np.cumsum(counts), counts.sum() / 2)) + 1
    assert half < 0.15 * len(counts)
    slope = stats.linregress(np.log(np.arange(1, 201)), np.log(counts[:200])).slope
    assert -1.3 < slope < -0.5


def test_taste_predicts_the_events_of_tail_items_as_well(events):
    counts = events.group_by("item_id").len()
    tail = events.join(counts.filter(pl.col("len") <= counts["len"].median()), on="item_id", how="semi")
    assert len(tail) > 1000
    assert tail["likes"].mean() > 3 / recsys._CATEGORIES  # an event without taste matches in 1 of 8 cases


def test_choices_follow_popularity_times_taste():
    rng = np.random.default_rng(0)
    popularity = np.array([[1.0, 2.0, 12.0], [12.0, 2.0, 1.0]])
    tags = np.array([[0, 1, 2], [3, 4, 5], [0, 3, 6]])
    likes = np.zeros((2, recsys._TAGS), dtype=bool)
    likes[0, [0, 1]], likes[1, [3]] = True, True
    who = np.repeat([0, 1], 40_000)
    chosen = recsys._choices(rng, who, popularity, np.array([0, 1]), tags, likes)
    for user in (0, 1):
        matches = likes[user][tags].sum(axis=1)
        weight = popularity[user] * np.exp(1.2 * matches)
        found = np.bincount(chosen[who == user], minlength=3) / 40_000
        np.testing.assert_allclose(found, weight / weight.sum(), atol=0.012)  # five standard errors of a share


def test_nothing_happens_before_an_item_is_born_and_some_are_born_late(folder, events):
    born = table(folder, "truth/items.csv").with_columns(pl.col("born").cast(pl.Int64))
    joined = events.join(born, on="item_id")
    assert (joined["timestamp"] > joined["born"]).all()
    assert (born["born"] > born["born"].min()).mean() == pytest.approx(0.3, abs=0.05)


def test_events_of_an_item_do_not_pile_up_on_one_second(events):
    assert events.group_by("item_id", "timestamp").len()["len"].max() < 5


def test_the_log_is_in_order_of_time(events):
    assert events["timestamp"].is_sorted()


def test_every_broken_row_is_listed_and_broken(folder):
    log, broken = table(folder, "interactions.csv"), table(folder, "truth/broken.csv")
    rows = {problem: log.row(int(row) - 1, named=True) for row, problem in broken.iter_rows()}
    assert rows["timestamp is no time"]["timestamp"] == "yesterday"
    assert rows["timestamp is not after 1970"]["timestamp"] == "0"
    assert len(rows["timestamp in another unit"]["timestamp"]) == 13
    assert rows["unknown item"]["item_id"] not in set(table(folder, "items.csv")["item_id"])


@pytest.fixture(scope="module")
def blocks(tmp_path_factory):
    """A log of 60,000 events in files of about 10,000."""
    folder = tmp_path_factory.mktemp("blocks")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(recsys, "_EVENTS_OF_FILE", 10_000)
        make(folder, size="60000", seed=0)
    return folder


def test_a_log_of_so_many_events_has_them_in_files_one_after_the_other_in_time(blocks):
    files = sorted((blocks / "interactions").iterdir())
    assert [file.name for file in files] == [f"{n:05d}.parquet" for n in range(6)]
    log = pl.read_parquet(files)
    assert len(log) == 60_000
    times = log["timestamp"].drop_nulls()
    assert times.is_sorted()
    assert recsys._START <= times.min() <= times.max() < recsys._START + recsys._SPAN
    broken = table(blocks, "truth/broken.csv")
    assert log["timestamp"].null_count() == len(broken) == 1


def test_in_many_files_nothing_happens_before_an_item_is_born(blocks):
    born = table(blocks, "truth/items.csv").with_columns(pl.col("born").cast(pl.Int64))
    log = pl.read_parquet(blocks / "interactions" / "*.parquet").drop_nulls().join(born, on="item_id")
    assert (log["timestamp"] >= log["born"]).all()
    assert (born["born"] > recsys._START + recsys._SPAN / 6).any()


def test_many_files_have_the_tail_and_the_taste_of_one(blocks):
    log = pl.read_parquet(blocks / "interactions" / "*.parquet")
    counts = log.group_by("item_id").len()["len"].sort(descending=True).to_numpy()
    assert np.searchsorted(np.cumsum(counts), counts.sum() / 2) + 1 < 0.2 * len(counts)
    tastes = table(blocks, "truth/users.csv").select("user_id", liked="category")
    log = log.join(table(blocks, "items.csv"), on="item_id").join(tastes, on="user_id")
    assert (log["category"] == log["liked"]).mean() > 3 / recsys._CATEGORIES
