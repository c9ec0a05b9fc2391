import json

import numpy as np
import polars as pl
import pytest
import torch

from appssl.artifact import Artifact, ArtifactWriter
from appssl.errors import DataError
from appssl.stages.models import load_model
from appssl.stages.predict import predict
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


def test_a_model_without_vectors_of_items_gives_no_reasons(model, tmp_path):
    table, _ = asked(tmp_path, model, "user_id\neve\n")
    assert table["because"].null_count() == table["because_similarity"].null_count() == 2


@pytest.fixture(scope="module")
def recommended(shop, tmp_path_factory):
    """Five items for ten users of the trained model, as a file."""
    folder = tmp_path_factory.mktemp("recommended")
    ids = Artifact.open(shop.run / "finetune").table("users.parquet")["id"].cast(pl.String)
    pl.DataFrame({"user_id": ids[:10]}).write_csv(folder / "users.csv")
    assert predict(shop.run, folder / "users.csv", folder / "best.csv", top_k=5, accelerator="cpu") == []
    return pl.read_csv(folder / "best.csv", schema_overrides={"user": pl.String, "item": pl.String})


def test_reasons_are_the_nearest_items_of_the_own_history(shop, recommended):
    artifact = Artifact.open(shop.run / "finetune")
    model, _, _ = load_model(artifact)
    vectors = model.item_vectors.double().numpy()
    number_of = {str(i): n for n, i in artifact.table("items.parquet").select("number", "id").iter_rows()}
    user_of = {str(i): n for n, i in artifact.table("users.parquet").select("number", "id").iter_rows()}
    history = dict(artifact.table("seen.parquet").group_by("user").agg("item").iter_rows())
    named = 0
    for row in recommended.iter_rows(named=True):
        because = [number_of[name] for name in json.loads(row["because"])]
        told = json.loads(row["because_similarity"])
        past = history.get(user_of[row["user"]], [])
        own = vectors[number_of[row["item"]]]
        cosine = {p: own @ vectors[p] / np.linalg.norm(own) / np.linalg.norm(vectors[p]) for p in past}
        assert number_of[row["item"]] not in past
        assert len(because) == len(set(because)) == min(3, len(past))
        np.testing.assert_allclose(told, sorted(cosine.values(), reverse=True)[:3], atol=1e-4)
        np.testing.assert_allclose(told, [cosine[p] for p in because], atol=1e-4)
        named += len(because)
    assert named > 100


def test_the_items_are_the_best_unseen_ones_of_the_scores(shop, recommended):
    artifact = Artifact.open(shop.run / "finetune")
    model, _, _ = load_model(artifact)
    users, items = (artifact.table(f"{name}.parquet").sort("number")["id"].to_list() for name in ("users", "items"))
    with torch.no_grad():
        scores = model.score_users(torch.arange(10)).numpy()
    for user, item in artifact.table("seen.parquet").iter_rows():
        if user < 10:
            scores[user, item] = -np.inf
    for user in range(10):
        rows = recommended.filter(pl.col("user") == str(users[user]))
        best = np.argsort(-scores[user], kind="stable")[:5]
        assert rows["item"].to_list() == [str(items[item]) for item in best]
        np.testing.assert_allclose(rows["score"], scores[user, best], rtol=1e-6)
        assert rows["rank"].to_list() == [1, 2, 3, 4, 5]
