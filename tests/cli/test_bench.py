"""`appssl bench`: claims of recipes are checked before, and measured after, one workflow."""

import json

import polars as pl
import pytest
import yaml

from appssl.plan import complete, make_plan
from tests.bad_input.conftest import cli
from tests.commands import appssl

__all__ = ["cli"]

TRAINED = """\
description: a network on tiny synthetic recordings
domain: wearable
data:
  make: {size: tiny}
  source: {name: wearable, table: recordings.csv, labels: labels.csv, split: {test: 0.5}}
finetune:
  finetuner: full
  backbone: cnn1d
  views: signal
  fit: {steps: 12, batch_size: 8, threads: 1}
evaluate: {evaluators: [classification, knn], num_bootstrap: 100, compare: [frozen], threads: 1}
claims:
- {says: A trained network is more accurate than random features., metric: accuracy, against: frozen, by: 0.01}
- {says: Neighbors are not lost., metric: knn_accuracy, against: frozen, by: -0.9, note: no other rate}
quick: {finetune.fit.steps: 2, evaluate.compare: []}
"""
FROZEN = """\
description: the same, its last layer alone is trained
domain: wearable
data: trained
finetune:
  finetuner: linear_probe
  backbone: cnn1d
  views: signal
  fit: {steps: 2, batch_size: 8, threads: 1}
evaluate: {evaluators: [classification, knn], num_bootstrap: 100, threads: 1}
"""


@pytest.fixture
def project(tmp_path, monkeypatch):
    """A folder with pipelines/bench of two recipes, in which the command is given; returns what changes the first."""
    folder = tmp_path / "pipelines" / "bench"
    folder.mkdir(parents=True)
    (folder / "frozen.yaml").write_text(FROZEN)
    monkeypatch.chdir(tmp_path)

    def change(**changes):
        values = yaml.safe_load(TRAINED)
        values.update(changes)
        (folder / "trained.yaml").write_text(yaml.safe_dump(values, sort_keys=False))

    change()
    return change


def votes(folder, seed):
    """Share of right votes of neighbours, of the first recipe minus the second, from what is kept of each sample."""
    tables = [
        pl.read_parquet(folder / f"results/wearable/{recipe}/s{seed}/evaluate/predictions.parquet")
        for recipe in ("trained", "frozen")
    ]
    ours, theirs = ((table["knn_class"] == table["target"]).mean() for table in tables)
    return ours - theirs


@pytest.mark.slow
def test_claims_are_run_measured_written_and_not_run_again(project, tmp_path):
    done = appssl("bench", "run", "trained", "--seeds", "2", "--write", "docs/claims.md", cwd=tmp_path)
    assert done.code in (0, 5), done.err
    assert "docs/claims.md: 2 claims of 1 method: " in done.out
    first, second = json.loads((tmp_path / "docs/claims.json").read_text())["claims"]
    rows = [
        next(
            r
            for r in json.loads((tmp_path / f"results/wearable/trained/s{seed}/evaluate/comparison.json").read_text())
            if r["metric"] == "accuracy"
        )
        for seed in (0, 1)
    ]
    assert first["by_seed"] == {"0": rows[0]["value"], "1": rows[1]["value"]}
    assert first["value"] == pytest.approx((rows[0]["value"] + rows[1]["value"]) / 2)
    assert first["low"] < first["value"] < first["high"]
    assert first["paired"]
    assert (second["paired"], second["verdict"], second["note"]) == (True, "shown", "no other rate")
    assert second["by_seed"] == pytest.approx({str(seed): votes(tmp_path, seed) for seed in (0, 1)})
    assert first["seconds"] > 0
    text = (tmp_path / "docs/claims.md").read_text()
    assert "| trained | A trained network is more accurate than random features. | frozen | accuracy |" in text

    listed = appssl("bench", "list", "--json", cwd=tmp_path)
    found = [row for row in json.loads(listed.out) if row["method"] == "bench/trained"]
    assert [row["verdict"] for row in found] == [first["verdict"], "shown"]

    manifest = tmp_path / "results/wearable/trained/s1/finetune/manifest.json"
    written = manifest.stat().st_mtime_ns
    again = appssl("bench", "run", "bench/trained", "--seeds", "2", "--write", "docs/claims.md", cwd=tmp_path)
    assert again.code in (0, 5), again.err
    assert manifest.stat().st_mtime_ns == written
    assert (tmp_path / "docs/claims.md").read_text() == text

    # Beside a method that fails, what is finished is measured.
    broken = yaml.safe_load(TRAINED) | {"data": "trained"}
    broken["finetune"]["fit"]["batch_size"] = 100_000
    (tmp_path / "pipelines/bench/broken.yaml").write_text(yaml.safe_dump(broken))
    words = ("bench", "run", "trained", "broken", "--seeds", "2", "--write", "later.md")
    one_failed = appssl(*words, cwd=tmp_path)
    assert one_failed.code == 3
    assert "fit.batch_size is 100000" in one_failed.err
    assert "broken: not finished, so not measured" in one_failed.err
    rows = json.loads((tmp_path / "later.json").read_text())["claims"]
    assert [row["method"] for row in rows] == ["bench/trained", "bench/trained"]


@pytest.mark.slow
def test_the_quick_form_prints_and_says_that_it_says_nothing(project, tmp_path):
    done = appssl("bench", "run", "trained", "--seeds", "2", "--quick", cwd=tmp_path)
    assert done.code in (0, 5), done.err
    assert "QUICK FORM: says nothing of the claims. 0 claims of 0 methods" in done.out
    assert "bench/trained: 2 claim(s) not measured, the quick form makes fewer comparisons" in done.err
    assert not (tmp_path / "docs").exists()


@pytest.mark.parametrize(
    ("words", "code", "message"),
    [
        (("--quick", "--write", "docs/claims.md"), 2, "--write with --quick: the quick form says nothing of a claim"),
        (("--set", "finetune.fit.steps=3", "--write", "docs/claims.md"), 2, "--write with --set finetune.fit.steps"),
        (("--write", "README.md"), 2, "README.md: exists without README.json beside it"),
        (("--write", "claims.txt"), 2, "claims.txt: the table of claims is Markdown"),
        (("--seeds", "1"), 2, "--seeds"),
        (("frozen",), 2, "bench/frozen: claims is missing. 'appssl bench list' names recipes that have claims."),
        (("trainde",), 2, "there is no such recipe. Did you mean bench/trained?"),
    ],
)
def test_what_cannot_enter_the_table_is_refused_before_anything_runs(cli, project, tmp_path, words, code, message):
    (tmp_path / "README.md").write_text("mine")
    said = cli("bench", "run", "trained", *words)
    assert said.code == code
    assert message in " ".join(said.err.split())
    assert not (tmp_path / "results").exists()
    assert (tmp_path / "README.md").read_text() == "mine"


def test_settings_that_only_say_where_may_enter_the_table(cli, project, tmp_path):
    words = ("--set", "needs.finetune.cpus=1", "--set", "data.shards=2", "--write", "docs/claims.md", "--dry-run")
    said = cli("bench", "run", "trained", *words)
    assert said.code == 0, said.err
    assert not (tmp_path / "docs").exists()


@pytest.mark.parametrize(
    ("claims", "messages"),
    [
        ({"says": "x"}, ["claims must be a list, is a group of settings. 'appssl show claims' says of what."]),
        ([3], ["claims.0 must hold `key: value` pairs, is 3."]),
        (
            [{"says": "x", "metric": "acuracy", "against": "frozzen", "by": 0.1}],
            [
                "claims.0.metric is 'acuracy', which no evaluator of this recipe measures. Did you mean accuracy?",
                "claims.0.against is 'frozzen', which this recipe is not compared with. Did you mean frozen?",
            ],
        ),
        (
            [{"says": "", "metric": "accuracy", "against": "frozen", "by": "0.1", "mor": True}],
            [
                "claims.0.says is not valid",
                "claims.0.by is not valid: Input should be a valid number (got '0.1')",
                "claims.0.mor is not a setting of claims. Did you mean more?",
            ],
        ),
        ([{"metric": "accuracy", "against": "frozen"}], ["claims.0.says is missing."]),
    ],
)
def test_claims_that_are_wrong_are_told_before_anything_runs(cli, project, claims, messages):
    project(claims=claims)
    for words in (("check", "bench/trained"), ("bench", "run", "trained"), ("bench", "list")):
        said = cli(*words)
        assert said.code == 2
        for message in messages:
            assert said.err.count(message) == 1, said.err


def test_a_metric_that_the_other_recipe_does_not_measure_is_told_before_anything_runs(cli, project, tmp_path):
    other = tmp_path / "pipelines/bench/frozen.yaml"
    other.write_text(FROZEN.replace("[classification, knn]", "[classification]"))
    said = cli("bench", "run", "trained")
    assert (said.code, "claims.1.metric is not measured of frozen. Add knn to its" in said.err) == (2, True)
    assert "claims.0" not in said.err
    assert not (tmp_path / "results").exists()


def test_metrics_that_are_named_after_the_data_are_not_refused(cli, project):
    claim = {"says": "x", "metric": "macro_f1_without_wrist", "against": "frozen"}
    compared = {"evaluators": ["classification", "device_subsets"], "compare": ["frozen"]}
    project(claims=[claim], evaluate=compared)
    assert cli("check", "bench/trained").code == 0


def test_claims_are_no_input_of_any_stage(project, tmp_path):
    def plan():
        return complete(make_plan(["bench/trained"], seeds=[0], overrides={}, results=tmp_path / "r", quick=False))

    with_claims = plan()
    project(claims=[])
    assert plan() == with_claims


def test_recipes_with_claims_are_listed_with_direction(cli, project):
    said = cli("bench", "list")
    assert said.code == 0, said.err
    lines = said.out.splitlines()
    at = lines.index("bench/trained: Neighbors are not lost.")
    assert lines[at + 1].strip() == "k-NN accuracy at most 0.9 lower against frozen; not run"
    assert "bench/frozen" not in said.out
