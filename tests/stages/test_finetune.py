"""What the stage makes of a finetuner that judges its samples."""

import json

import polars as pl
import pytest
import torch

from appssl.artifact import Artifact, ArtifactWriter
from appssl.contracts import LABEL_COLUMNS
from appssl.errors import SettingsError
from appssl.plan import MODELS, StageConfig
from appssl.settings import validate
from appssl.stages.finetune import finetune
from appssl.stages.models import load_encoder, load_model, open_data


def config(finetuner, **values):
    given = {
        "finetuner": finetuner,
        "labels": "given",
        "backbone": {"name": "small_cnn", "widths": [4, 6]},
        "views": {"name": "image_two_crop", "size": 16},
        "fit": {"epochs": 2, "batch_size": 2, "log_every": 1, "threads": 1},
        **values,
    }
    settings = validate(MODELS["finetune"], given, file="r.yaml", owner="finetune")
    return StageConfig("finetune", "webnoisy", "tiny", 0, settings)


def train(crawl, out, finetuner, labels_dir=None, **values):
    return finetune(config(finetuner, **values), crawl.data.folder, out, labels_dir=labels_dir, accelerator="cpu")


def training_samples(crawl):
    return open_data(crawl.data).samples.filter(pl.col("split") == "train").sort("index")


def test_findings_become_labels_with_ids_and_class_names(crawl, tmp_path):
    found = train(crawl, tmp_path, {"name": "tests.stages.judging"}).table("labels.parquet")
    samples = training_samples(crawl)
    assert found.columns == [*LABEL_COLUMNS, "p_clean"]
    assert found["id"].to_list() == samples["id"].to_list()
    odd = samples["index"] % 2 == 1
    expected = [None if is_odd else label for is_odd, label in zip(odd, samples["label"], strict=True)]
    assert found["label"].to_list() == expected
    assert (found["kind"] == "ood_noise").to_list() == odd.to_list()


def test_their_metrics_lie_beside_them_and_in_the_journal(crawl, tmp_path):
    made = train(crawl, tmp_path, {"name": "tests.stages.judging"})
    metrics = {name: m["value"] for name, m in made.json("metrics.json").items()}
    assert metrics["share_ood_noise"] == metrics["share_clean"] == 0.5
    lines = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    last = [line for line in lines if "labels/share_clean" in line.get("values", {})][-1]
    assert last["values"]["labels/share_clean"] == 0.5
    assert last["step"] == 9  # 8 samples, 2 a step, 2 epochs, and one more


def test_only_the_labels_that_are_seen_are_judged(crawl, tmp_path):
    made = train(crawl, tmp_path, {"name": "tests.stages.judging"}, label_fraction=0.5)
    assert len(made.table("labels.parquet")) == 4


def test_pseudo_labels_are_what_is_judged(crawl, tmp_path):
    """The labels of a labeler are turned round here; they are trained on, so they are what was given."""
    samples = training_samples(crawl)
    other = {"red": "blue", "blue": "red"}
    made = samples.select("id", label=pl.col("label").replace_strict(other), weight=pl.lit(1.0))
    writer = ArtifactWriter(tmp_path / "labels", "labels", settings_digest="", inputs={})
    writer.table("labels.parquet", made)
    writer.finish()
    found = train(
        crawl, tmp_path / "out", {"name": "tests.stages.judging"}, tmp_path / "labels", labels="pseudo"
    ).table("labels.parquet")
    kept = found.filter(pl.col("kind") == "clean").join(samples.select("id", given="label"), on="id")
    assert len(kept) == 4
    assert (kept["label"] != kept["given"]).all()


@pytest.mark.parametrize("finetuner", [{"name": "tests.stages.judging", "silent": True}, {"name": "full"}])
def test_without_findings_a_model_is_a_model_only(crawl, tmp_path, finetuner):
    made = train(crawl, tmp_path, finetuner)
    assert not made.has("labels.parquet")
    assert not made.has("metrics.json")


def test_the_model_of_such_a_finetuner_is_built_again(crawl, tmp_path):
    model, _, about = load_model(train(crawl, tmp_path, {"name": "tests.stages.judging"}))
    assert about["facts"]["num_rows"] == 16
    assert not model.training


STILL = {"views": {"name": "tests.stages.still_views"}}


def test_features_computed_once_train_what_features_of_every_epoch_train(crawl, tmp_path):
    """Where views do not change, there is no difference; the model has the whole encoder, as it was."""
    made = {
        how: train(crawl, tmp_path / how, {"name": "linear_probe", "features": how}, **STILL)
        for how in ("once", "every_epoch")
    }
    once, anew = (load_model(artifact)[0].state_dict() for artifact in made.values())
    assert once.keys() == anew.keys()
    assert any(name.startswith("backbone.") for name in once)
    for name, weights in once.items():
        torch.testing.assert_close(weights, anew[name], rtol=1e-4, atol=1e-5)
    assert json.loads((tmp_path / "once/run.json").read_text())["feature_seconds"] > 0


def test_features_are_kept_of_an_encoder_that_stays_as_it_is(crawl, tmp_path):
    """The encoder of a pretraining, with views that it was trained with: augmented otherwise, here as they are."""
    run = finetune(
        config({"name": "linear_probe", "features": "once"}),
        crawl.data.folder,
        tmp_path,
        encoder_dir=crawl.run / "pretrain",
        accelerator="cpu",
    )
    encoder, views, _ = load_encoder(Artifact.open(crawl.run / "pretrain", "encoder"))
    model, seen, _ = load_model(run)
    sample = open_data(crawl.data).read(0)
    with torch.no_grad():
        own = model.backbone(seen.plain(sample)[None])
        torch.testing.assert_close(own, encoder(views.plain(sample)[None]))
    assert not (tmp_path / "state").exists()


@pytest.mark.parametrize("finetuner", ["abmil", "mil_pooling"])
def test_features_of_a_trained_encoder_are_not_kept(finetuner):
    with pytest.raises(SettingsError, match="features: once is for an encoder that stays as it is: set freeze: true"):
        config({"name": finetuner, "features": "once"})
