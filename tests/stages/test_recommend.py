import polars as pl
import pytest
import torch

from appssl.artifact import ArtifactWriter
from appssl.errors import DataError
from appssl.stages.recommend import recommend

# Scores of five items for three users; the higher the better.
SCORES = torch.tensor([[5.0, 4.0, 3.0, 2.0, 1.0], [1.0, 2.0, 3.0, 4.0, 5.0], [0.0, 9.0, 0.5, 9.5, 0.0]])
SEEN = {0: [0, 1], 2: [3]}


class Model:
    def score_users(self, users):
        return SCORES[users].clone()


@pytest.fixture
def model(tmp_path):
    out = ArtifactWriter(tmp_path / "model", "model", settings_digest="", inputs={})
    out.table("users.parquet", pl.DataFrame({"number": [0, 1, 2], "id": ["ann", "bob", "eve"]}))
    out.table("items.parquet", pl.DataFrame({"number": [4, 3, 2, 1, 0], "id": ["e", "d", "c", "b", "a"]}))
    pairs = [(user, item) for user, items in SEEN.items() for item in items]
    out.table("seen.parquet", pl.DataFrame(pairs, schema=["user", "item"], orient="row"))
    out.json("model.json", {"source": {"name": "recsys", "columns": {"user": "customer"}}})
    return out.finish()


def asked(tmp_path, model, text, top_k=2, name="users.csv"):
    (tmp_path / name).write_text(text)
    return recommend(model, Model(), tmp_path / name, top_k)


def test_the_best_items_that_a_user_has_not_seen_in_order(model, tmp_path):
    table, left = asked(tmp_path, model, "user_id\neve\nann\nbob\n")
    assert left == []
    assert table.select("user", "rank", "item", "score").rows() == [
        ("eve", 1, "b", 9.0), ("eve", 2, "c", 0.5),
        ("ann", 1, "c", 3.0), ("ann", 2, "d", 2.0),
        ("bob", 1, "e", 5.0), ("bob", 2, "d", 4.0),
    ]  # fmt: skip


def test_more_items_than_there_are_gives_all_that_are_new(model, tmp_path):
    table, _ = asked(tmp_path, model, "user\nann\n", top_k=50)
    assert table["item"].to_list() == ["c", "d", "e"]


def test_unknown_and_empty_users_are_named_and_the_others_go_on(model, tmp_path):
    table, left = asked(tmp_path, model, 'userId,x\nzoe,1\nbob,1\n"",2\nbob,3\n')
    assert table["user"].unique().to_list() == ["bob"]
    assert len(table) == 2
    assert [(q.item, q.reason, q.outcome) for q in left] == [
        ("zoe", "unknown user", "failed"),
        ("(empty)", "unknown user", "failed"),
    ]


def test_the_column_may_have_the_name_that_training_used(model, tmp_path):
    assert asked(tmp_path, model, "customer,user_id\nbob,zoe\n")[0]["user"].to_list() == ["bob", "bob"]


def test_a_parquet_file_of_numbers_is_read_too(tmp_path, model):
    pl.DataFrame({"user_id": [7, 8]}).write_parquet(tmp_path / "u.parquet")
    with pytest.raises(DataError, match=r"none of its 2 users was known in training, such as 7"):
        recommend(model, Model(), tmp_path / "u.parquet", 2)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("name\nbob\n", "needs a column user_id or customer; it has name"),
        ("user_id\n", "holds no users in column user_id"),
        ("", "cannot be read: .*Give a CSV or Parquet file with a column user_id"),
    ],
)
def test_a_table_that_cannot_be_used_says_what_is_needed(model, tmp_path, text, message):
    with pytest.raises(DataError, match=rf"users\.csv: {message}"):
        asked(tmp_path, model, text)


def test_a_file_that_is_no_parquet_and_a_missing_one_are_named(model, tmp_path):
    with pytest.raises(DataError, match=r"u\.parquet: cannot be read"):
        asked(tmp_path, model, "no parquet", name="u.parquet")
    with pytest.raises(DataError, match=r"gone\.csv: no such table"):
        recommend(model, Model(), tmp_path / "gone.csv", 2)
