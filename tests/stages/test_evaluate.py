"""Evaluation: each sample passes the same network once."""

import numpy as np
import pytest
from safetensors.torch import load_file

from appssl.artifact import Artifact, ArtifactWriter
from appssl.engine import features
from appssl.plan import MODELS, StageConfig
from appssl.settings import validate
from appssl.stages.evaluate import evaluate
from appssl.stages.models import save_state


@pytest.fixture
def embedded_rows(monkeypatch):
    """The rows of every call that computes features for evaluators."""
    calls, original = [], features.embed

    def noting(network, data, rows, views, **how):
        calls.append(rows)
        return original(network, data, rows, views, **how)

    monkeypatch.setattr(features, "embed", noting)
    return calls


def evaluated(crawl, out, encoder):
    given = {"evaluators": [{"name": "classification"}, {"name": "knn"}], "num_bootstrap": 100, "threads": 1}
    config = StageConfig("evaluate", "webnoisy", "tiny", 0, validate(MODELS["evaluate"], given, file="r", owner="e"))
    folders = {"encoder_dir": encoder, "model_dir": crawl.run / "finetune"}
    return evaluate(config, crawl.data.folder, out, **folders, accelerator="cpu").json("metrics.json")


def changed(crawl, folder):
    """The encoder with one other weight."""
    known = Artifact.open(crawl.run / "pretrain", "encoder")
    weights = load_file(known.path("encoder.safetensors"))
    name = next(name for name in weights if weights[name].dim() > 1)
    weights[name] = weights[name] + 0.1
    writer = ArtifactWriter(folder, "encoder", settings_digest="", inputs={})
    writer.json("encoder.json", known.json("encoder.json"))
    save_state(writer, "encoder.safetensors", weights)
    writer.finish()
    return folder


def test_the_encoder_that_a_model_left_as_it_was_is_not_asked_again(crawl, tmp_path, embedded_rows):
    found = evaluated(crawl, tmp_path / "out", crawl.run / "pretrain")
    assert sorted(np.concatenate(embedded_rows)) == list(range(16))  # 8 of the test part, 8 that neighbours come from
    assert set(found) == {"classification", "knn"}


def test_another_encoder_is_asked_for_all_of_its_own_features(crawl, tmp_path, embedded_rows):
    evaluated(crawl, tmp_path / "out", changed(crawl, tmp_path / "encoder"))
    assert len(np.concatenate(embedded_rows)) == 8 + 16
