"""Over seeds: the mean of their differences, with ends that seeds and groups both move."""

from dataclasses import replace
from math import hypot

import numpy as np
import polars as pl
import pytest

from appssl.artifact import ArtifactWriter, write_json
from appssl.contracts import BagScores, Metric
from appssl.errors import DataError
from appssl.evaluators import classification, mil
from appssl.ops.bootstrap import bootstrap_mean
from appssl.reports.effects import effects
from appssl.reports.folds import over_folds
from appssl.reports.reading import read_run
from tests.reports.conftest import CLASSES, beside, plain, scored, write_data

NUM = 400
HOW = {"num_bootstrap": NUM}
NEAR = {1: (0.52, 0.41, 0.62), 2: (0.43, 0.33, 0.54)}  # k-NN accuracy with its interval, no predictions


def table(of, chosen, names=None):
    name, ids = names or ("id", of.ids)
    values = pl.Series(of.probabilities[chosen], dtype=pl.Array(pl.Float64, len(CLASSES)))
    columns = {name: ids[chosen], "group": of.groups[chosen], "target": np.array(CLASSES)[of.target[chosen]]}
    return pl.DataFrame({**columns, "probabilities": values})


def write(folder, of, *, against=None, near=None, chosen=slice(None), bags=False):
    """An evaluation as the stage writes it. against: (name, predictions) of what it is compared with."""
    out = ArtifactWriter(folder, "evaluation", settings_digest="c" * 64, inputs={"data": "0" * 64})
    seed = int(folder.parent.name.removeprefix("s"))
    found = {"classification": plain(classification.Classification().evaluate(of, seed=seed, **HOW))}
    if near is not None:
        found["knn"] = {"knn_accuracy": vars(Metric(*near, 12))}
    if bags:
        found["mil"] = plain(mil.MIL().evaluate(of, seed=seed, **HOW))
        out.table("bags.parquet", table(of.bags, slice(None), names=("bag", of.bags.names)))
    out.json("metrics.json", found)
    rows = classification.paired(of, against[1], seed=seed, **HOW) if against else {}
    out.json("comparison.json", [{"against": against[0], "metric": key, **vars(m)} for key, m in rows.items()])
    out.table("predictions.parquet", table(of, chosen))
    beside(folder, "evaluate", {"num_bootstrap": NUM, "compare": [against[0]] if against else []}, 1.0)
    out.finish()


@pytest.fixture
def root(tmp_path):
    write_data(tmp_path / "results" / "data" / "d")
    return tmp_path / "results"


def runs(root, recipe, seeds):
    return [read_run(root / "wearable" / recipe / f"s{seed}", root / "data" / "d") for seed in seeds]


@pytest.fixture
def repeats(root):
    """Three seeds of two recipes on the same test samples: makes them, and returns (runs, runs, predictions)."""

    def make(skills=(0.7, 0.8, 0.9), same=False):
        made = []
        for seed, skill in enumerate(skills):
            ours, theirs = scored(3 if same else 3 + seed, skill), scored(80 if same else 80 + seed, 0.5)
            write(root / "wearable/theirs" / f"s{seed}" / "evaluate", theirs, near=NEAR[2])
            write(root / "wearable/ours" / f"s{seed}" / "evaluate", ours, against=("theirs", theirs), near=NEAR[1])
            made.append((ours, theirs))
        seeds = range(len(skills))
        return runs(root, "ours", seeds), runs(root, "theirs", seeds), made

    return make


def right(of):
    return (of.probabilities.argmax(1) == of.target).astype(float)


def test_the_value_is_the_mean_over_seeds_and_the_ends_are_those_of_groups_and_seeds_together(repeats):
    ours, theirs, made = repeats()
    found = effects(ours, theirs, ["accuracy"])["accuracy"]
    differences = [right(one) - right(two) for one, two in made]
    means = np.array([d.mean() for d in differences])
    stacked, groups = np.concatenate(differences), np.concatenate([one.groups for one, _ in made])
    over_groups = bootstrap_mean(stacked, groups, num=NUM, seed=0)
    over_seeds = bootstrap_mean(means, np.arange(3), num=NUM, seed=0)
    assert found.value == pytest.approx(means.mean(), abs=1e-12)
    assert found.by_seed == pytest.approx(dict(enumerate(means)), abs=1e-12)
    assert found.low == pytest.approx(
        means.mean() - hypot(over_groups.value - over_groups.low, over_seeds.value - over_seeds.low), abs=1e-9
    )
    assert found.high == pytest.approx(
        means.mean() + hypot(over_groups.high - over_groups.value, over_seeds.high - over_seeds.value), abs=1e-9
    )
    assert found.paired


def test_it_is_close_to_a_bootstrap_that_draws_seeds_and_groups_at_once(repeats):
    ours, theirs, made = repeats((0.5, 0.65, 0.8, 0.9, 0.6, 0.75))
    found = effects(ours, theirs, ["accuracy"])["accuracy"]
    names = np.unique(made[0][0].groups)
    cells = np.array([[(right(a) - right(b))[a.groups == name].mean() for name in names] for a, b in made])
    rng, drawn = np.random.default_rng(0), []
    for _ in range(4000):  # groups are of equal size, so the mean of cells is the mean of samples
        seeds, groups = rng.integers(0, len(made), len(made)), rng.integers(0, len(names), len(names))
        drawn.append(cells[np.ix_(seeds, groups)].mean())
    low, high = np.quantile(drawn, [0.025, 0.975])
    assert found.high - found.low == pytest.approx(high - low, rel=0.15)  # quantiles of 400 and 4,000 draws
    assert (found.low + found.high) / 2 == pytest.approx((low + high) / 2, abs=0.1 * (high - low))


@pytest.mark.parametrize("metric", ["accuracy", "macro_f1", "calibration_error"])
def test_seeds_that_are_all_the_same_are_one(repeats, metric):
    ours, theirs, made = repeats((0.7, 0.7, 0.7), same=True)
    found = effects(ours, theirs, [metric])[metric]
    one = classification.paired(*made[0], seed=0, **HOW)[metric]
    assert (found.value, found.low, found.high) == pytest.approx((one.value, one.low, one.high), abs=1e-9)


def test_a_metric_without_predictions_is_a_difference_of_independent_values(repeats):
    ours, theirs, _ = repeats()
    found = effects(ours, theirs, ["knn_accuracy"])["knn_accuracy"]
    assert not found.paired
    assert found.value == pytest.approx(0.09)
    assert found.low == pytest.approx(0.09 - hypot(0.11, 0.11))  # all seeds the same: only groups move it
    assert found.high == pytest.approx(0.09 + hypot(0.10, 0.10))


def with_votes(root, recipe, seed, skill):
    """Puts votes of neighbours into a written evaluation; returns which of them are right."""
    path = root / "wearable" / recipe / f"s{seed}" / "evaluate" / "predictions.parquet"
    rows = pl.read_parquet(path)
    draw = np.random.default_rng([seed, int(100 * skill)]).random(len(rows)) < skill
    votes = [target if good else CLASSES[0] for target, good in zip(rows["target"], draw, strict=True)]
    rows.with_columns(knn_class=pl.Series(votes)).write_parquet(path)
    return rows["target"].to_numpy() == np.array(votes)


def test_votes_of_neighbours_are_compared_sample_by_sample(repeats, root):
    ours, theirs, made = repeats()
    pairs = [(with_votes(root, "ours", s, 0.7), with_votes(root, "theirs", s, 0.4)) for s in range(3)]
    found = effects(ours, theirs, ["knn_accuracy"])["knn_accuracy"]
    differences = [one.astype(float) - other for one, other in pairs]
    over_groups = bootstrap_mean(
        np.concatenate(differences), np.concatenate([one.groups for one, _ in made]), num=NUM, seed=0
    )
    stated = NEAR[1][0] - NEAR[2][0]  # of metrics.json, which a real evaluation has from the same votes
    assert found.paired
    assert found.value == pytest.approx(stated)
    assert found.value - found.low == pytest.approx(over_groups.value - over_groups.low, abs=1e-9)
    assert found.high - found.value == pytest.approx(over_groups.high - over_groups.value, abs=1e-9)


def test_seeds_of_which_one_has_no_votes_are_not_paired(repeats, root):
    ours, theirs, _ = repeats()
    for seed in range(3):
        with_votes(root, "ours", seed, 0.7)
    with_votes(root, "theirs", 0, 0.4)
    assert not effects(ours, theirs, ["knn_accuracy"])["knn_accuracy"].paired
    assert effects(ours, theirs, ["accuracy"])["accuracy"].paired


def test_without_predictions_of_both_the_ends_are_the_mean_of_the_seeds_own_paired_ones(repeats):
    ours, theirs, made = repeats((0.7, 0.7), same=True)
    for run in theirs:
        del run.stages["evaluate"].artifact.manifest["files"]["predictions.parquet"]
    found = effects(ours, theirs, ["accuracy"])["accuracy"]
    rows = [classification.paired(*pair, seed=seed, **HOW)["accuracy"] for seed, pair in enumerate(made)]
    assert found.paired
    assert (found.low, found.high) == pytest.approx(
        (np.mean([row.low for row in rows]), np.mean([row.high for row in rows])), abs=1e-9
    )


def test_seeds_that_are_folds_are_one_evaluation(root):
    write_json(root / "data/d/config.yaml", {"settings": {"source": {"name": "wsi", "split": {"folds": 2}}}})
    ours, theirs = scored(3, 0.9), scored(80, 0.5)
    for fold in (0, 1):
        chosen = np.array([int(group[1:]) % 2 == fold for group in ours.groups])
        for recipe, of, other in (("theirs", theirs, None), ("ours", ours, ("theirs", theirs))):
            write(root / "wearable" / recipe / f"s{fold}" / "evaluate", of, against=other, chosen=chosen)
    seeds = runs(root, "ours", (0, 1))
    found = effects(seeds, runs(root, "theirs", (0, 1)), ["accuracy", "auroc"])
    expected = {name: metric for _, name, metric in over_folds(seeds).comparisons}
    for name, effect in found.items():
        assert (effect.value, effect.low, effect.high) == pytest.approx(
            (expected[name].value, expected[name].low, expected[name].high), abs=1e-12
        )


def test_evaluators_see_bags_and_what_the_data_tell_of_samples(root):
    """tile_auroc is of the samples whose class is known, which the predictions do not say."""
    known = ["walking" if i % 3 else None for i in range(240)]
    made = {}
    for recipe, seed, skill in (("theirs", 80, 0.5), ("ours", 3, 0.9)):
        of = scored(seed, skill)
        bags = BagScores(of.ids[:24], of.groups[:24], of.target[:24], of.probabilities[:24])
        made[recipe] = replace(of, bags=bags, columns=pl.DataFrame({"id": of.ids, "true_label": known}))
    data = ArtifactWriter(root / "data" / "d", "data", settings_digest="d" * 64, inputs={})
    data.json("meta.json", {"classes": CLASSES, "facts": {"bag": "bag"}})
    data.table("samples.parquet", made["ours"].columns.with_columns(group=pl.lit("elsewhere")))
    data.finish()
    for seed in (0, 1):
        for recipe, of in made.items():
            against = ("theirs", made["theirs"]) if recipe == "ours" else None
            write(root / "wearable" / recipe / f"s{seed}" / "evaluate", of, against=against, bags=True)
    found = effects(runs(root, "ours", (0, 1)), runs(root, "theirs", (0, 1)), ["tile_auroc", "bag_accuracy"])
    expected = mil.paired(made["ours"], made["theirs"], seed=0, **HOW)
    for name, effect in found.items():
        assert effect.paired
        one = expected[name]
        assert (effect.value, effect.low, effect.high) == pytest.approx((one.value, one.low, one.high), abs=1e-9)


def test_with_one_group_there_is_no_interval(root):
    for recipe, of, other in (("theirs", scored(80, 0.5), None), ("ours", scored(3, 0.9), True)):
        one = replace(of, groups=np.full(len(of.ids), "p0"))
        against = ("theirs", replace(scored(80, 0.5), groups=one.groups)) if other else None
        for seed in (0, 1):
            write(root / "wearable" / recipe / f"s{seed}" / "evaluate", one, against=against)
    found = effects(runs(root, "ours", (0, 1)), runs(root, "theirs", (0, 1)), ["accuracy"])["accuracy"]
    assert (found.low, found.high) == (None, None)
    assert found.value == pytest.approx((right(scored(3, 0.9)) - right(scored(80, 0.5))).mean())


def test_a_metric_that_was_not_measured_is_named(repeats):
    ours, theirs, _ = repeats()
    with pytest.raises(DataError, match=r"ours/s0: acuracy was not measured. Did you mean accuracy\?"):
        effects(ours, theirs, ["acuracy"])
