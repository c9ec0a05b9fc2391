"""Stages of pretraining one after the other, each on its part of the data."""

import pytest
import torch
from safetensors.torch import load_file

from appssl.artifact import Artifact
from appssl.engine.checkpoint import read_checkpoint
from appssl.errors import AppsslError, SettingsError
from appssl.plan import MODELS, StageConfig
from appssl.settings import validate
from appssl.stages.evaluate import evaluate
from appssl.stages.finetune import finetune
from appssl.stages.pretrain import pretrain

ENCODER = {
    "backbone": {"name": "small_cnn", "widths": [8]},
    "views": {"name": "image_two_crop", "size": 16},
    "probe": {"times": 0},
}
INFINITE = {"name": "infinite", "constant_end": 0.5}


def stage(name, recipe, values):
    return StageConfig(
        name, "webnoisy", recipe, 0, validate(MODELS[name], values, file="r.yaml", owner=name, prefix=name)
    )


def pretrained(crawl, out, recipe="first", start=None, fit=None, **values):
    given = {"steps": 4, "batch_size": 4, "log_every": 1, "threads": 1, **(fit or {})}
    config = stage("pretrain", recipe, {**ENCODER, "fit": given, **values})
    return pretrain(config, crawl.data.folder, out, start_dir=start, accelerator="cpu")


def tuned_and_judged(crawl, folder, recipe, labels, earlier=()):
    fit = {"steps": 2, "batch_size": 2, "threads": 1}
    finetune(
        stage("finetune", recipe, {"labels": "given", "where": {"label": labels}, "fit": fit}),
        crawl.data.folder,
        folder / "finetune",
        encoder_dir=folder / "pretrain",
        accelerator="cpu",
    )
    settings = {"evaluators": ["classification", "forgetting"], "num_bootstrap": 100, "compare": list(earlier)}
    return evaluate(
        stage("evaluate", recipe, settings),
        crawl.data.folder,
        folder / "evaluate",
        encoder_dir=folder / "pretrain",
        model_dir=folder / "finetune",
        compare={name: folder.parent / name / "evaluate" for name in earlier},
        accelerator="cpu",
    )


@pytest.fixture(scope="module")
def chain(crawl, tmp_path_factory):
    root = tmp_path_factory.mktemp("chain")
    parts = {"first": ["red"], "second": ["blue"]}
    start = None
    for recipe, labels in parts.items():
        later = {"first_stage": start is None}
        pretrained(
            crawl,
            root / recipe / "pretrain",
            recipe,
            start,
            fit={"schedule": {**INFINITE, **later}},
            where={"label": labels},
            onward=True,
            after="first" if start else None,
        )
        start = root / recipe / "pretrain"
    tuned_and_judged(crawl, root / "first", "first", ["red"])
    tuned_and_judged(crawl, root / "second", "second", ["red", "blue"], ["first"])
    return root


def test_the_encoder_is_the_annealed_one_and_the_next_stage_gets_the_one_before(chain):
    onward = read_checkpoint(chain / "first/pretrain/onward")
    assert onward.step == 2  # of four
    finished = load_file(chain / "first/pretrain/encoder.safetensors")
    handed_on = {name: onward.model[f"backbone.{name}"] for name in finished}
    assert any(not torch.equal(finished[name], handed_on[name]) for name in finished)
    manifest = Artifact.open(chain / "second/pretrain").manifest
    assert manifest["inputs"]["start"] == Artifact.open(chain / "first/pretrain").digest


def test_stages_and_losses_of_the_whole_chain_are_kept(chain):
    found = Artifact.open(chain / "second/pretrain").json("stages.json")
    assert [each["recipe"] for each in found["stages"]] == ["first", "second"]
    assert [each["where"] for each in found["stages"]] == [{"label": ["red"]}, {"label": ["blue"]}]
    assert [len(row) for row in found["losses"]] == [1, 2]
    assert found["losses"][:1] == Artifact.open(chain / "first/pretrain").json("stages.json")["losses"]
    assert '"stage_loss/2"' in (chain / "second/pretrain/metrics.jsonl").read_text()


def test_measuring_the_losses_changes_no_result(crawl, chain, tmp_path):
    quiet = pretrained(crawl, tmp_path / "quiet", where={"label": ["red"]}, fit={"schedule": INFINITE})
    loud = Artifact.open(chain / "first/pretrain").manifest["files"]["encoder.safetensors"]
    assert quiet.manifest["files"]["encoder.safetensors"] == loud
    assert not quiet.has("stages.json")
    assert not quiet.has("onward/state.json")


def test_forgetting_is_measured_against_the_models_of_earlier_stages(chain):
    found = Artifact.open(chain / "second/evaluate").json("metrics.json")["forgetting"]
    assert {"average_accuracy", "forgetting", "loss_rise", "after_1_on_1", "after_2_on_1"} <= found.keys()
    assert found["after_1_on_1"]["value"] == 1.0  # it knows one class, and says nothing else
    assert list(Artifact.open(chain / "first/evaluate").json("metrics.json")["forgetting"]) == ["average_accuracy"]


def test_a_stage_whose_earlier_models_are_not_given_is_refused(crawl, chain, tmp_path):
    settings = stage("evaluate", "second", {"evaluators": ["forgetting"], "num_bootstrap": 100})
    with pytest.raises(AppsslError, match=r"Add first to compare"):
        evaluate(
            settings,
            crawl.data.folder,
            tmp_path / "out",
            encoder_dir=chain / "second/pretrain",
            model_dir=chain / "second/finetune",
            accelerator="cpu",
        )


def test_what_cannot_be_gone_on_from_is_refused(crawl, chain, tmp_path):
    bare = pretrained(crawl, tmp_path / "bare").folder
    with pytest.raises(SettingsError, match=r"keeps nothing to go on from. Set pretrain.onward: true"):
        pretrained(crawl, tmp_path / "a", "next", bare, after="bare")
    with pytest.raises(SettingsError, match=r"trained with adamw, this stage with sgd.*pretrain.moments: false"):
        pretrained(crawl, tmp_path / "b", "next", chain / "first/pretrain", after="first", fit={"optimizer": "sgd"})
    sgd = pretrained(
        crawl, tmp_path / "c", "next", chain / "first/pretrain", after="first", fit={"optimizer": "sgd"}, moments=False
    )
    assert sgd.has("stages.json")
    wider = {"backbone": {"name": "small_cnn", "widths": [12]}}
    with pytest.raises(SettingsError, match="has other weights"):
        pretrained(crawl, tmp_path / "d", "next", chain / "first/pretrain", after="first", **wider)
