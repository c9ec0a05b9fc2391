import numpy as np
import polars as pl
import pytest
import torch

from appssl.artifact import Artifact
from appssl.contracts import Quarantined
from appssl.errors import ArtifactError, DataError
from appssl.stages.models import load_encoder, load_model
from appssl.stages.predict import embed_table, load_array_model, predict, write_left_out
from tests.stages.conftest import CLASSES, draw


@pytest.fixture(scope="module")
def new(tmp_path_factory):
    """Eight new images, one of them damaged, without labels."""
    folder = tmp_path_factory.mktemp("new")
    draw(folder, 8, seed=5)
    pl.read_csv(folder / "table.csv").select("id", "path").write_csv(folder / "new.csv")
    (folder / "03.png").write_bytes((folder / "03.png").read_bytes()[:60])
    return folder / "new.csv"


def test_predictions_are_those_of_the_model_on_plain_views(crawl, new, tmp_path):
    left = predict(crawl.run, new, tmp_path / "out.parquet", accelerator="cpu")
    assert [(q.item, q.outcome) for q in left] == [("i03", "failed")]
    table = pl.read_parquet(tmp_path / "out.parquet")
    assert table["id"].to_list() == ["i00", "i01", "i02", "i04", "i05", "i06", "i07"]
    assert {"prediction", "confidence", "p_blue", "p_red"} <= set(table.columns)
    assert not {"label", "true_label", "split", "index"} & set(table.columns)
    model, views, _ = load_model(Artifact.open(crawl.run / "finetune"))
    from PIL import Image

    inputs = torch.stack([views.plain(np.asarray(Image.open(new.parent / f"{i[1:]}.png"))) for i in table["id"]])
    expected = torch.softmax(model(inputs), 1).detach().numpy()
    np.testing.assert_allclose(table.select("p_blue", "p_red").to_numpy(), expected, rtol=1e-5)
    assert table["prediction"].to_list() == [CLASSES[k] for k in expected.argmax(1)]
    np.testing.assert_allclose(table["confidence"], expected.max(1), rtol=1e-5)


def test_a_run_and_its_stage_give_the_same_and_csv_holds_it_too(crawl, new, tmp_path):
    predict(crawl.run, new, tmp_path / "a.csv", accelerator="cpu")
    predict(crawl.run / "finetune", new, tmp_path / "b.csv", accelerator="cpu")
    assert (tmp_path / "a.csv").read_bytes() == (tmp_path / "b.csv").read_bytes()
    assert pl.read_csv(tmp_path / "a.csv")["prediction"].is_in(CLASSES).all()


def test_features_are_those_of_the_encoder_for_a_run_an_encoder_or_a_model(crawl, new, tmp_path):
    for name in ("", "pretrain", "finetune"):
        left = embed_table(crawl.run / name, new, tmp_path / f"of{name}.parquet", accelerator="cpu")
        assert [q.item for q in left] == ["i03"]
    tables = [pl.read_parquet(tmp_path / f"of{name}.parquet") for name in ("", "pretrain", "finetune")]
    assert tables[0]["embedding"].dtype == pl.Array(pl.Float32, 6)
    assert tables[0].equals(tables[1])
    np.testing.assert_allclose(tables[0]["embedding"].to_numpy(), tables[2]["embedding"].to_numpy(), rtol=1e-6)
    embed_table(crawl.run, new, tmp_path / "e.csv", accelerator="cpu")
    csv = pl.read_csv(tmp_path / "e.csv").select(f"f{k}" for k in range(6))
    np.testing.assert_allclose(csv.to_numpy(), tables[0]["embedding"].to_numpy(), rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("apply", [predict, embed_table])
def test_workers_that_load_the_data_change_nothing(crawl, new, tmp_path, apply):
    for workers in (0, 2):
        apply(crawl.run, new, tmp_path / f"{workers}.parquet", accelerator="cpu", workers=workers)
    assert (tmp_path / "0.parquet").read_bytes() == (tmp_path / "2.parquet").read_bytes()


def test_the_served_model_maps_arrays_to_probabilities(crawl):
    model = load_array_model(crawl.run / "finetune")
    found = model.predict_array(np.zeros((2, 3, 16, 16), dtype=np.float32))
    assert (found.shape, found.dtype) == ((2, 2), np.float32)
    np.testing.assert_allclose(found.sum(1), 1, rtol=1e-6)


def test_a_wrong_output_name_is_refused_before_any_work(crawl, tmp_path):
    with pytest.raises(DataError, match=r"--out .*x\.txt: give a file name that ends in \.parquet or \.csv"):
        predict(crawl.run, tmp_path / "missing.csv", tmp_path / "x.txt")


def test_a_missing_table_is_named(crawl, tmp_path):
    with pytest.raises(DataError, match=r"missing\.csv: no such table"):
        predict(crawl.run, tmp_path / "missing.csv", tmp_path / "x.csv")


def test_a_folder_without_a_model_says_what_to_give(tmp_path):
    with pytest.raises(ArtifactError, match=r"no finished model here. Give a folder such as results/wsi/demo/s0"):
        predict(tmp_path, tmp_path / "t.csv", tmp_path / "x.csv")


def test_an_encoder_cannot_predict(crawl, new, tmp_path):
    with pytest.raises(ArtifactError, match="holds a result of kind encoder, needed is model"):
        predict(crawl.run / "pretrain", new, tmp_path / "x.csv")


def test_a_table_of_which_nothing_can_be_used_says_why(crawl, tmp_path):
    (tmp_path / "bad.png").write_bytes(b"no image")
    (tmp_path / "new.csv").write_text("id,path\none,bad.png\ntwo,gone.png\n")
    with pytest.raises(DataError, match=r"new\.csv: cannot be used: .* 1 missing_file, 1 not_an_image"):
        predict(crawl.run, tmp_path / "new.csv", tmp_path / "x.csv")
    assert not (tmp_path / "x.csv").exists()


def test_nothing_is_left_behind_in_the_folder_of_the_table(crawl, new, tmp_path):
    before = sorted(new.parent.iterdir())
    embed_table(crawl.run, new, tmp_path / "x.parquet", accelerator="cpu")
    assert sorted(new.parent.iterdir()) == before


def test_the_encoder_is_not_changed_by_use(crawl, new, tmp_path):
    before, _, _ = load_encoder(Artifact.open(crawl.run / "pretrain"))
    embed_table(crawl.run, new, tmp_path / "x.parquet", accelerator="cpu")
    Artifact.open(crawl.run / "pretrain", "encoder").check()
    assert not before.training


def test_everything_that_was_not_used_is_listed_beside_the_result(crawl, new, tmp_path):
    left = predict(crawl.run, new, tmp_path / "out.csv", accelerator="cpu")
    left.append(Quarantined("tile", "t1", "row 3", "left_out", "blank", "0.1 of tissue"))
    path = write_left_out(left, tmp_path / "out.csv")
    assert path == tmp_path / "out.left_out.csv"
    listed = pl.read_csv(path)
    assert listed.select("item", "outcome").rows() == [("i03", "failed"), ("t1", "left_out")]
    assert {*listed["item"], *pl.read_csv(tmp_path / "out.csv")["id"]} == {*pl.read_csv(new)["id"], "t1"}
    assert write_left_out([], tmp_path / "out.csv") is None
    assert not path.exists()
