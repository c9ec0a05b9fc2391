from pathlib import Path

import pytest
import yaml

from appssl.artifact import ArtifactWriter
from appssl.errors import ArtifactError
from appssl.stages.lineage import last_stage, results_root, trace


def artifact(folder, kind, inputs, content=b"x"):
    writer = ArtifactWriter(folder, kind, settings_digest="d" * 64, inputs=inputs)
    writer.bytes("file", content)
    return writer.finish()


@pytest.fixture
def results(tmp_path):
    root = tmp_path / "results"
    data = artifact(root / "data" / "wsi-1", "data", {"table:slides.csv": "t" * 64})
    encoder = artifact(root / "wsi" / "tiny" / "s0" / "pretrain", "encoder", {"data": data.digest})
    inputs = {"data": data.digest, "encoder": encoder.digest}
    artifact(root / "wsi" / "tiny" / "s0" / "finetune", "model", inputs)
    settings = {"finetuner": {"name": "linear_probe"}, "fit": {"epochs": 1}}
    (root / "wsi" / "tiny" / "s0" / "finetune" / "config.yaml").write_text(yaml.safe_dump({"settings": settings}))
    return root


def test_a_result_is_traced_to_the_digests_of_raw_tables(results):
    tree = trace(results / "wsi" / "tiny" / "s0")
    assert (tree["name"], tree["method"]) == ("finetune", "finetuner=linear_probe")
    data, encoder = tree["inputs"]
    assert data["folder"] == str(results / "data" / "wsi-1")
    assert data["inputs"] == [{"name": "table:slides.csv", "digest": "t" * 64, "folder": "raw input", "matches": True}]
    assert encoder["inputs"][0]["digest"] == data["digest"]


def test_an_input_that_was_made_anew_is_shown_as_changed(results):
    artifact(results / "wsi" / "tiny" / "s0" / "pretrain", "encoder", {}, content=b"other")
    _, encoder = trace(results / "wsi" / "tiny" / "s0" / "finetune")["inputs"]
    assert (encoder["folder"], encoder["matches"]) == ("not found", False)


def test_the_last_finished_stage_stands_for_a_run(results):
    run = results / "wsi" / "tiny" / "s0"
    assert last_stage(run) == run / "finetune"
    assert last_stage(run / "pretrain") == run / "pretrain"
    artifact(run / "evaluate", "evaluation", {})
    artifact(run / "report", "report", {})
    assert last_stage(run) == run / "evaluate"
    with pytest.raises(ArtifactError, match=r"no finished stage here. Give a folder such as results/wearable/demo/s0"):
        last_stage(results)


def test_the_results_folder_is_found_from_any_stage(results, monkeypatch):
    assert results_root(results / "wsi" / "tiny" / "s0" / "finetune") == results
    assert results_root(results / "data" / "wsi-1") == results
    assert results_root(results / "data" / "wsi-1" / "shards" / "0") == results
    monkeypatch.chdir(results / "wsi" / "tiny" / "s0")
    assert results_root(Path("finetune")) == results


def test_a_stage_outside_of_results_is_an_error_and_no_crash():
    with pytest.raises(ArtifactError, match="is not in a results folder"):
        results_root(Path("/evaluate"))
