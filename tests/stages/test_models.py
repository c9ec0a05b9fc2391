import numpy as np
import pytest
import torch
from torch import nn

from appssl.artifact import Artifact, ArtifactWriter
from appssl.contracts import Context, Meta
from appssl.errors import ArtifactError, SettingsError
from appssl.stages.models import load_encoder, load_model, load_state, method, open_data, read_meta, save_model
from tests.stages.conftest import CLASSES, config


def test_an_encoder_is_rebuilt_from_its_files_alone(crawl):
    encoder, views, about = load_encoder(Artifact.open(crawl.run / "pretrain", "encoder"))
    assert not encoder.training
    assert (encoder.num_features, views.input_shape) == (6, (3, 16, 16))
    assert about["meta"]["classes"] == list(CLASSES)
    again, _, _ = load_encoder(Artifact.open(crawl.run / "pretrain", "encoder"))
    images = torch.randn(2, 3, 16, 16)
    assert torch.equal(encoder(images), again(images))


def test_a_model_is_rebuilt_and_its_encoder_is_the_one_it_was_made_from(crawl):
    model, _, about = load_model(Artifact.open(crawl.run / "finetune", "model"))
    encoder, _, _ = load_encoder(Artifact.open(crawl.run / "pretrain", "encoder"))
    images = torch.randn(2, 3, 16, 16)
    assert model(images).shape == (2, 2)
    assert torch.equal(model.backbone(images), encoder(images))
    assert about["facts"] == {"class_counts": [4.0, 4.0]}


def test_facts_that_are_arrays_come_back_as_tensors_and_others_as_they_were(crawl, tmp_path):
    facts = {"class_counts": [1.0, 2.0], "table": np.arange(3), "share": torch.tensor([0.5])}
    about = Artifact.open(crawl.run / "finetune").json("model.json")
    model, _, _ = load_model(Artifact.open(crawl.run / "finetune"))
    meta = read_meta(about["meta"])
    context = Context(meta, model.backbone, (3, 16, 16), num_samples=1, facts=facts)
    learner = nn.Module()
    writer = ArtifactWriter(tmp_path / "m", "model", settings_digest="", inputs={})
    save_model(writer, learner, about=about, finetuner=config("finetuners", "linear_probe"), context=context)
    artifact = writer.finish()
    assert artifact.json("model.json")["facts"] == {"class_counts": [1.0, 2.0]}
    from safetensors.torch import load_file

    loaded = load_file(artifact.path("facts.safetensors"))
    assert (loaded["table"].tolist(), loaded["share"].tolist()) == ([0, 1, 2], [0.5])


def test_meta_survives_json():
    import json
    from dataclasses import asdict

    meta = Meta("s", "wsi", "classification", ("a", "b"), "patient", {"spacing_um": 0.5})
    assert read_meta(json.loads(json.dumps(asdict(meta)))) == meta


def test_prepared_data_opens_through_the_source_that_made_it(crawl):
    data = open_data(crawl.data)
    assert (len(data.samples), data.meta.classes) == (16, CLASSES)


def test_weights_of_another_network_are_refused(crawl):
    with pytest.raises(ArtifactError, match=r"does not fit the network it belongs to: .*Run the stage again"):
        load_state(nn.Linear(2, 2), crawl.run / "pretrain" / "encoder.safetensors")


def test_stored_settings_that_this_version_does_not_know_are_named_with_their_file():
    with pytest.raises(
        SettingsError, match=r"x/encoder.json: widhts is not a setting of backbones/small_cnn\. Did you"
    ):
        method("backbones", {"name": "small_cnn", "widhts": [3]}, file="x/encoder.json")


def test_a_damaged_model_is_not_opened(crawl, tmp_path):
    import shutil

    copy = tmp_path / "finetune"
    shutil.copytree(crawl.run / "finetune", copy)
    content = bytearray((copy / "model.safetensors").read_bytes())
    content[-1] ^= 1
    (copy / "model.safetensors").write_bytes(content)
    with pytest.raises(ArtifactError, match=r"damaged: model\.safetensors has changed"):
        load_model(Artifact.open(copy, "model"))
