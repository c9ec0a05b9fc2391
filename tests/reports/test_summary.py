import json
import shutil

import pytest

from appssl.artifact import Artifact
from appssl.errors import ArtifactError, DataError
from appssl.evaluators import classification, knn
from appssl.recipe import Evaluate
from appssl.reports.summary import differing, find_data, summarize
from appssl.sources import recsys
from tests.reports.conftest import write_labels

COMMAND = "appssl run wearable/tiny --seed 0 --seed 1"


@pytest.fixture
def runs(results):
    return [results / "wearable/tiny/s1", results / "wearable/tiny/s0"]


def test_says_what_was_measured_per_seed_and_over_seeds(runs):
    text = summarize(runs, command=COMMAND)
    first, second = (
        json.loads((run / "evaluate/metrics.json").read_text())["classification"]["macro_f1"] for run in reversed(runs)
    )
    assert text.startswith("# wearable/tiny\n\nA tiny run \\<for tests\\>.\n\n```\nappssl run")
    assert "| metric | seed 0 | seed 1 | groups | mean over seeds | range |" in text
    line = next(line for line in text.splitlines() if line.startswith("| macro F1"))
    assert f"{first['value']:.4f} ({first['low']:.4f} to {first['high']:.4f})" in line
    assert f"| 12 | {(first['value'] + second['value']) / 2:.4f} |" in line
    assert "> Two subjects wore the device on the other wrist." in text


def test_comparisons_have_a_row_per_seed_and_a_plain_verdict(runs):
    lines = summarize(runs, command=COMMAND).splitlines()
    scratch = [line for line in lines if line.startswith("| scratch | macro F1")]
    twin = [line for line in lines if line.startswith("| twin | AUROC")]
    assert len(scratch) == len(twin) == 2
    assert all(line.endswith("| 12 | better |") for line in scratch)
    assert any(line.endswith("| no difference shown |") for line in twin)


def test_deciles_of_items_are_left_to_the_report(results):
    ranked = next(results.glob("recsys/*/s*/evaluate")).parent
    assert any("decile" in name for name in json.loads((ranked / "evaluate/metrics.json").read_text())["ranking"])
    text = summarize([ranked], command=COMMAND)
    assert "| recall@20 tail |" in text
    assert "decile" not in text


def test_what_the_labeler_found_is_stated_per_seed(runs):
    text = summarize(runs, command=COMMAND)
    assert "## Labels" in text
    assert "| noise AUROC | 0.9100 | 0.9100 | 0.9100 | 0.9100 to 0.9100 |" in text
    assert "| noise AUROC | 0.9100 |" in summarize(runs[:1], command=COMMAND)


def test_what_was_found_in_training_is_stated_too(results, runs):
    text = summarize(runs, command=COMMAND)
    assert "### Judged before training" in text
    assert "### Judged in training" not in text
    for run in runs:
        write_labels(run / "finetune", Artifact.open(results / "data/wearable-1", "data"))
        shutil.rmtree(run / "pseudolabel")
    text = summarize(runs, command=COMMAND)
    assert "### Judged before training" not in text
    assert "| noise AUROC | 0.9100 |" in text.partition("### Judged in training")[2]


def test_accounts_and_versions_are_stated(runs):
    text = summarize(runs, command=COMMAND)
    assert "| windows | 1,000 | 940 | 55 (too short 45, blank 10) | 5 (truncated 5) |" in text
    assert "torch 2.9.0" in text
    assert "/somewhere" not in text


def test_settings_that_differ_are_stated_and_those_of_an_absent_plugin_are_complete(runs):
    text = summarize(runs, command=COMMAND)
    assert "| evaluate | `num_bootstrap` | 100 |" in text
    assert "| evaluate | `compare` | scratch, twin |" in text
    assert "`threads`" not in text
    assert "`shards`" not in text
    assert "| pretrain (all settings) | `learner.objective.temperature` | 0.1 |" in text


def test_differing_settings_may_be_lists_of_what_is_no_method():
    source = recsys.Config(categorical=("kind",), multi=(recsys.Multi(column="tags"),))
    assert differing(source)["multi.0"] == {"column": "tags"}


def test_differing_settings_name_methods_that_are_not_the_default():
    assert differing(Evaluate()) == {}
    assert differing(Evaluate(evaluators=(classification.Config(),), num_bootstrap=200)) == {"num_bootstrap": 200}
    chosen = differing(Evaluate(evaluators=(classification.Config(), knn.Config(k=5))))
    assert chosen == {"evaluators.0": {"name": "classification"}, "evaluators.1": {"name": "knn", "k": 5}}


def test_data_is_found_by_digest(results, runs):
    assert find_data(runs[0]) == (results / "data/wearable-1").resolve()
    (results / "data/wearable-1/manifest.json").unlink()
    with pytest.raises(ArtifactError, match="prepared data it was made from is not in"):
        find_data(runs[0])


def test_refuses_several_recipes_unfinished_runs_and_nothing(results, runs):
    with pytest.raises(DataError, match="several: recsys/tiny_rank, wearable/tiny"):
        summarize([runs[0], results / "recsys/tiny_rank/s0"], command=COMMAND)
    (runs[0] / "evaluate/manifest.json").unlink()
    with pytest.raises(ArtifactError, match=r"not evaluated: .*s1"):
        summarize(runs, command=COMMAND)
    with pytest.raises(DataError, match="no run to summarize"):
        summarize([], command=COMMAND)
