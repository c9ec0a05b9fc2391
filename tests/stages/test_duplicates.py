import numpy as np
import polars as pl
import pytest

from appssl.artifact import Artifact
from appssl.engine.loading import embed
from appssl.errors import ArtifactError
from appssl.ops.images.semantic_duplicates import NearDuplicates
from appssl.stages.duplicates import as_table, duplicates
from appssl.stages.models import load_encoder, open_data


def test_similarity_is_the_cosine_of_centred_features_over_all_parts(crawl, tmp_path):
    found = duplicates(crawl.run, crawl.data.folder, tmp_path, threshold=0.6, accelerator="cpu")
    encoder, views, _ = load_encoder(Artifact.open(crawl.run / "pretrain"))
    data = open_data(crawl.data)
    x = embed(encoder, data, np.arange(len(data.samples)), views).astype(np.float64)
    x -= x.mean(axis=0)
    x /= np.linalg.norm(x, axis=1, keepdims=True)
    cosine = x @ x.T
    np.fill_diagonal(cosine, -1)
    best = cosine.max(axis=1)
    names = data.samples["id"].to_list()
    assert (best >= 0.6).sum() > 0
    assert set(found.table["id"]) == {names[i] for i in np.flatnonzero(best >= 0.6)}
    for row in found.table.to_dicts():
        i = names.index(row["id"])
        assert row["similarity"] == pytest.approx(best[i], abs=1e-4)
        assert cosine[i, names.index(row["nearest"])] == pytest.approx(best[i], abs=1e-5)
    assert found.num_images == len(names)


def test_an_encoder_a_model_or_a_run_will_do_and_both_files_are_equal(crawl, tmp_path):
    tables = []
    for name in ("", "pretrain", "finetune"):
        found = duplicates(
            crawl.run / name, crawl.data.folder, tmp_path / f"of{name}", threshold=0.9, accelerator="cpu"
        )
        tables.append(pl.read_parquet(found.path))
        assert pl.read_csv(found.path.with_suffix(".csv"), schema=tables[-1].schema).equals(tables[-1])
    assert tables[0].equals(tables[1])
    assert tables[0].equals(tables[2])


def test_leaks_come_first_then_the_most_similar():
    ids = list("abcdefg")
    samples = pl.DataFrame(
        {"id": ids, "split": ["train"] * 6 + ["test"], "label": [None] * 7}, schema_overrides={"label": pl.String}
    )
    found = NearDuplicates(
        group=np.array([0, 0, 2, 2, -1, 5, 5]),
        similarity=np.array([0.98, 0.98, 0.99, 0.99, np.nan, 0.975, 0.975], np.float32),
        nearest=np.array([1, 0, 3, 2, -1, 6, 5]),
        crosses=np.array([False] * 5 + [True] * 2),
    )
    table = as_table(found, samples)
    assert table.columns == ["group", "id", "split", "label", "similarity", "nearest", "leak"]
    assert table.select("group", "id", "nearest", "leak").rows() == [
        (1, "f", "g", True), (1, "g", "f", True), (2, "c", "d", False), (2, "d", "c", False), (3, "a", "b", False),
        (3, "b", "a", False),
    ]  # fmt: skip
    assert table["similarity"][0] == 0.975


def test_nothing_alike_is_an_empty_table(crawl, tmp_path):
    found = duplicates(crawl.run, crawl.data.folder, tmp_path, threshold=1.0, accelerator="cpu")
    assert (len(found.table), found.num_groups, len(found.leaks)) == (0, 0, 0)
    assert pl.read_parquet(found.path).columns == found.table.columns


def test_a_folder_without_encoder_is_refused(crawl, tmp_path):
    with pytest.raises(ArtifactError, match="no encoder here"):
        duplicates(crawl.data.folder, crawl.data.folder, tmp_path)
