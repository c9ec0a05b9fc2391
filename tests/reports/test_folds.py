"""Over all folds: the metrics of all predictions together, which equal those of one evaluation of everything."""

from dataclasses import replace

import numpy as np
import polars as pl
import pytest

from appssl.artifact import ArtifactWriter, write_json
from appssl.contracts import BagScores
from appssl.evaluators import classification, mil
from appssl.reports.folds import over_folds
from appssl.reports.reading import read_run
from appssl.reports.summary import summarize
from tests.reports.conftest import CLASSES, beside, scored, write_data

HOW = {"num_bootstrap": 100, "seed": 0}


def bags_of(all_scored):
    first = slice(0, 24)
    return BagScores(
        all_scored.ids[first],
        *(a[first] for a in (all_scored.groups, all_scored.target)),
        all_scored.probabilities[first],
    )


def table(name, ids, groups, target, probabilities):
    values = pl.Series(probabilities, dtype=pl.Array(pl.Float64, len(CLASSES)))
    return pl.DataFrame({name: ids, "group": groups, "target": np.array(CLASSES)[target], "probabilities": values})


def write_fold(folder, ours, groups):
    out = ArtifactWriter(folder, "evaluation", settings_digest="c" * 64, inputs={"data": "0" * 64})
    out.json("metrics.json", {"classification": {}, "mil": {}})
    out.json("comparison.json", [])
    for file, name, of in (("predictions", "id", ours), ("bags", "bag", ours.bags)):
        chosen = np.isin(of.groups, groups)
        ids = of.ids if name == "id" else of.names
        parts = (values[chosen] for values in (ids, of.groups, of.target, of.probabilities))
        out.table(f"{file}.parquet", table(name, *parts))
    beside(folder, "evaluate", {"num_bootstrap": 100, "compare": ["other"], "threads": 2}, 1.0)
    out.finish()


@pytest.fixture
def folds(tmp_path):
    """Runs of seeds 0 and 1 of two recipes, and the predictions of each recipe over both folds."""
    root = tmp_path / "results"
    write_data(root / "data" / "d")
    meta = {"source": {"name": "wsi", "split": {"folds": 2}}}
    write_json(root / "data" / "d" / "config.yaml", {"stage": "prepare", "settings": meta})
    every = {}
    for recipe, seed, skill in (("ours", 3, 0.9), ("other", 4, 0.4)):
        whole = scored(seed, skill)
        every[recipe] = replace(whole, bags=bags_of(whole))
        for fold in (0, 1):
            groups = [f"p{i}" for i in range(12) if i % 2 == fold]
            write_fold(root / "wearable" / recipe / f"s{fold}" / "evaluate", every[recipe], groups)
    runs = [read_run(root / "wearable" / "ours" / f"s{fold}", root / "data" / "d") for fold in (0, 1)]
    return runs, every


def ordered(values):
    """As the predictions are read back: sorted by id, names of bags too."""
    rows, bags = np.argsort(values.ids), np.argsort(values.bags.names)
    b = values.bags
    bags = BagScores(b.names[bags], b.groups[bags], b.target[bags], b.probabilities[bags])
    names = ("ids", "groups", "target", "probabilities")
    return replace(values, bags=bags, **{name: getattr(values, name)[rows] for name in names})


def test_all_folds_together_are_one_evaluation(folds):
    runs, every = folds
    found = over_folds(runs)
    ours, other = ordered(every["ours"]), ordered(every["other"])
    assert found.num_folds == 2
    assert found.metrics["classification"] == classification.Classification().evaluate(ours, **HOW)
    assert found.metrics["mil"] == mil.MIL().evaluate(ours, **HOW)
    assert found.metrics["mil"]["bag_accuracy"].num_groups == 12
    expected = {**classification.paired(ours, other, **HOW), **mil.paired(ours, other, **HOW)}
    assert {name: metric for _, name, metric in found.comparisons} == expected


def test_the_summary_shows_them(folds):
    runs, _ = folds
    text = summarize([run.folder for run in runs], command="x", data_dir=runs[0].data.folder)
    assert "## Over all folds" in text
    assert "The predictions of 2 folds together" in text
    assert "| other | bag accuracy |" in text


def test_runs_that_are_no_folds_are_not_put_together(folds):
    runs, _ = folds
    assert over_folds(runs[:1]) is None
    assert over_folds([runs[0], runs[0]]) is None  # the same groups twice
    data = runs[0].data.folder
    write_json(data / "config.yaml", {"stage": "prepare", "settings": {"source": {"split": {"folds": None}}}})
    assert over_folds(runs) is None


def test_a_comparison_that_was_not_run_for_every_fold_is_left_out(folds):
    runs, _ = folds
    (runs[0].folder.parents[1] / "other" / "s1" / "evaluate" / "manifest.json").unlink()
    found = over_folds(runs)
    assert found.comparisons == []
    assert found.metrics
