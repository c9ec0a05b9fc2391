import json
import sys

import numpy as np
import polars as pl
import pytest
import torch

from appssl.artifact import Artifact
from appssl.errors import ArtifactError, DataError, SettingsError
from appssl.stages.models import load_model
from appssl.stages.predict import stage_folder
from appssl.stages.vectors import export_vectors
from tests.bad_input.conftest import cli

__all__ = ["cli"]


@pytest.fixture(scope="module")
def exported(shop, tmp_path_factory):
    pytest.importorskip("faiss", reason="NOT TESTED: the extra recsys is not installed")
    out = tmp_path_factory.mktemp("exported") / "vectors"
    export_vectors(stage_folder(shop.run, "finetune"), out, index="faiss")
    return out


def model_of(shop):
    artifact = Artifact.open(shop.run / "finetune")
    return load_model(artifact)[0], artifact


def test_the_product_of_both_tables_is_the_score_of_the_model(shop, exported):
    users, items = (pl.read_parquet(exported / f"{name}.parquet") for name in ("users", "items"))
    model, artifact = model_of(shop)
    with torch.no_grad():
        scores = model.score_users(torch.arange(len(users))).numpy()
    np.testing.assert_allclose(users["embedding"].to_numpy() @ items["embedding"].to_numpy().T, scores, atol=1e-6)
    for name, table in (("users", users), ("items", items)):
        assert table["id"].to_list() == artifact.table(f"{name}.parquet").sort("number")["id"].cast(pl.String).to_list()
        assert table["embedding"].dtype == pl.Array(pl.Float32, 16)


def test_search_in_the_index_names_the_items_that_exact_scoring_names(shop, exported):
    import faiss

    index = faiss.read_index(str(exported / "items.faiss"))
    ids = pl.read_parquet(exported / "items.faiss.ids.parquet")
    users = pl.read_parquet(exported / "users.parquet")
    model, artifact = model_of(shop)
    names = artifact.table("items.parquet").sort("number")["id"].cast(pl.String).to_list()
    with torch.no_grad():
        scores = model.score_users(torch.arange(len(users))).numpy()
    assert ids["row"].to_list() == list(range(index.ntotal))
    found, rows = index.search(users["embedding"].to_numpy(), 5)
    for user, best in enumerate(np.argsort(-scores, axis=1, kind="stable")[:, :5]):
        np.testing.assert_allclose(found[user], scores[user, best], rtol=1e-5)
        assert [ids["id"][int(row)] for row in rows[user]] == [names[item] for item in best]
    facts = json.loads((exported / "items.faiss.json").read_text())
    assert (facts["kind"], facts["exact"], facts["num_vectors"]) == ("flat", True, len(names))


def test_an_index_does_not_outlive_its_vectors(shop, tmp_path):
    pytest.importorskip("faiss", reason="NOT TESTED: the extra recsys is not installed")
    folder = stage_folder(shop.run, "finetune")
    export_vectors(folder, tmp_path / "v", index="faiss")
    export_vectors(folder, tmp_path / "v")
    assert sorted(path.name for path in (tmp_path / "v").iterdir()) == ["items.parquet", "users.parquet"]


def test_the_command_writes_the_folder_and_an_index_on_demand(cli, shop, tmp_path):
    said = cli("embed", str(shop.run), "--out", str(tmp_path / "vectors"))
    assert (said.code, said.out.strip()) == (0, str(tmp_path / "vectors"))
    assert sorted(path.name for path in (tmp_path / "vectors").iterdir()) == ["items.parquet", "users.parquet"]


def test_an_index_of_a_table_and_an_unknown_index_are_refused(cli, shop, tmp_path):
    said = cli("embed", str(shop.run), "items.csv", "--out", str(tmp_path / "v.parquet"), "--index", "faiss")
    assert (said.code, "leave out the table items.csv" in said.err) == (2, True)
    with pytest.raises(SettingsError, match=r"--index annoy: there is no such index\. Give faiss"):
        export_vectors(shop.run / "finetune", tmp_path / "v", index="annoy")


def test_a_missing_extra_is_told_before_any_work(shop, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "faiss", None)
    with pytest.raises(SettingsError, match=r"pip install 'appssl\[recsys\]'"):
        export_vectors(tmp_path / "no model is here", tmp_path / "v", index="faiss")
    assert not (tmp_path / "v").exists()


def test_a_file_name_and_a_model_without_vectors_are_refused(crawl, shop, tmp_path):
    with pytest.raises(DataError, match=r"v\.parquet: gets the vectors of users and of items, so give a folder"):
        export_vectors(shop.run / "finetune", tmp_path / "v.parquet")
    with pytest.raises(ArtifactError, match=r"has no vectors of users and items.*Give a table of new data"):
        export_vectors(crawl.run / "finetune", tmp_path / "v")
