"""What recipes mean as stages: which settings reach which stage, what runs share, what is refused."""

import json

import pytest

from appssl.errors import DataError, SettingsError
from appssl.plan import complete, config_of, make_plan, read_config
from appssl.recipe import parse_overrides
from appssl.sweep import Point, Sweep

FULL = """\
description: every stage
domain: wearable
data: {make: {size: tiny}, source: {name: wearable, table: recordings.csv, labels: labels.csv}}
pretrain: {backbone: cnn1d, views: signal, fit: {epochs: 2}}
pseudolabel: {labeler: self_training}
finetune: {finetuner: full, label_fraction: 0.2}
evaluate: {evaluators: [classification]}
quick: {pretrain.fit.epochs: 1}
"""
OTHER = """\
description: another model of the same encoder
domain: wearable
data: full
pretrain: {from: full}
finetune: {finetuner: linear_probe}
evaluate: {evaluators: [classification], compare: [full]}
"""


@pytest.fixture
def plan(tmp_path):
    def make(*names, seeds=(0,), quick=False, overrides=(), points=None, **texts):
        for name, text in {"full": FULL, **texts}.items():
            (tmp_path / f"{name}.yaml").write_text(text)
        files = [str(tmp_path / f"{name}.yaml") for name in names or ("full",)]
        sweep = Sweep("grid", "", tuple(Point(name, given) for name, given in points.items())) if points else None
        given = parse_overrides(list(overrides))
        made = make_plan(files, seeds=seeds, overrides=given, results=tmp_path / "r", quick=quick, sweep=sweep)
        return complete(made)

    return make


def stages(plan, recipe="full", seed=0):
    return plan["runs"]["wearable"][recipe][f"s{seed}"]["stages"]


def test_what_is_no_setting_changes_no_config(plan):
    before = plan()["configs"]
    text = "# a comment\n" + FULL.replace("every stage", "other words") + "needs: {pretrain: {minutes: 5, gpus: 1}}\n"
    assert plan(full=text)["configs"] == before


def test_a_setting_changes_the_config_of_its_stage_only(plan):
    before, after = plan()["configs"], plan(full=FULL.replace("label_fraction: 0.2", "label_fraction: 0.3"))["configs"]
    changed = {name.rpartition("/")[2] for name in before if before[name] != after[name]}
    assert changed == {"finetune", "pseudolabel"}  # labels are judged with no more labels than the model gets


def test_defaults_are_written_out(plan, tmp_path):
    settings = stages(plan())["pretrain"]["settings"]
    assert settings["fit"]["batch_size"] == 128
    assert settings["learner"]["objective"]["name"] == "ntxent"
    text = json.loads(plan()["configs"]["wearable/full/s0/pretrain"])
    (tmp_path / "config.yaml").write_text(json.dumps(text))
    assert read_config(tmp_path / "config.yaml", "pretrain").settings.fit.epochs == 2


def test_seeds_share_the_data_and_differ_in_everything_else(plan):
    made = plan(seeds=(0, 1))
    assert len(made["data"]) == 1
    assert made["targets"] == [["wearable", "full", 0], ["wearable", "full", 1]]
    assert stages(made, seed=1)["finetune"]["inputs"]["encoder"] == "wearable/full/s1/pretrain"
    one, two = (json.loads(config_of(made, stage="pretrain", run=("wearable", "full", seed))) for seed in (0, 1))
    assert (one.pop("seed"), two.pop("seed")) == (0, 1)
    assert one == two


def test_folds_are_those_of_the_seeds_and_each_has_its_own_data(plan):
    made = plan(seeds=(0, 1, 3), overrides=["data.source.split.folds=3"])
    data = [stages(made, seed=seed)["pretrain"]["inputs"]["data"] for seed in (0, 1, 3)]
    assert data[0] == data[2] != data[1]
    folds = [made["data"][name.removeprefix("data/")]["settings"]["source"]["split"]["fold"] for name in data]
    assert folds == [0, 1, 0]
    named = plan(seeds=(0, 1), overrides=["data.source.split.folds=3", "data.source.split.fold=2"])
    assert len(named["data"]) == 1


def test_pseudo_labels_are_trained_on_where_they_are_made_and_only_there(plan):
    made = stages(plan())
    assert made["finetune"]["settings"]["labels"] == "pseudo"
    assert made["finetune"]["inputs"]["labels"] == "wearable/full/s0/pseudolabel"
    assert made["pseudolabel"]["settings"]["label_fraction"] == 0.2
    given = stages(plan(full=FULL.replace("label_fraction: 0.2", "label_fraction: 0.2, labels: given")))
    assert "labels" not in given["finetune"]["inputs"]


def test_other_recipes_are_planned_with_what_is_needed_of_them(plan):
    made = plan("other", other=OTHER)
    assert len(made["data"]) == 1
    found = stages(made, "other")
    assert found["finetune"]["inputs"]["encoder"] == "wearable/full/s0/pretrain"
    assert found["evaluate"]["inputs"]["compare:full"] == "wearable/full/s0/evaluate"
    assert made["targets"] == [["wearable", "other", 0]]


def test_quick_runs_lie_apart(plan):
    made = plan(quick=True)
    assert made["results"].endswith("r/quick")
    assert stages(made)["pretrain"]["settings"]["fit"]["epochs"] == 1


def test_the_command_line_wins_over_recipe_and_quick(plan):
    made = plan(quick=True, overrides=["pretrain.fit.epochs=7"])
    assert stages(made)["pretrain"]["settings"]["fit"]["epochs"] == 7


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"other": OTHER.replace("data: full", "data: fll")}, "Did you mean"),
        ({"other": OTHER.replace("from: full", "from: third"), "third": OTHER}, "has no pretrain block of its own"),
        ({"other": OTHER.replace("data: full", "data: third"), "third": OTHER}, "itself uses the data of full"),
        ({"other": OTHER, "full": FULL.replace("classification]", "classification], compare: [other]")}, "in turn"),
        ({"other": OTHER.replace("domain: wearable", "domain: recsys")}, "a recipe of wearable, not of recsys"),
    ],
)
def test_wrong_references_are_refused(plan, changes, message):
    with pytest.raises(SettingsError, match=message):
        plan("other", **changes)


def test_missing_tables_and_folders_are_named_with_what_to_give(plan, tmp_path):
    text = FULL.replace("make: {size: tiny}", f"root: {tmp_path}")
    with pytest.raises(DataError, match=r"needs .*recordings\.csv, which does not exist. Give the folder that holds"):
        plan(full=text)
    with pytest.raises(SettingsError, match="which is no folder"):
        plan(full=text.replace(str(tmp_path), "nowhere"))


@pytest.mark.parametrize("pair", ["a", "=1", ".a=1", "a..b=1"])
def test_an_override_that_is_no_pair_says_how_to_write_it(pair):
    with pytest.raises(SettingsError, match="write it as key=value"):
        parse_overrides([pair])


def test_an_override_of_nothing_in_the_recipe_is_refused(plan):
    with pytest.raises(SettingsError, match=r"pretrain\.fit\.epocs is not a setting of pretrain\. Did you mean epochs"):
        plan(overrides=["pretrain.fit.epocs=3"])


SHARES = {"few": {"finetune.label_fraction": 0.1}, "all": {"finetune.label_fraction": 1.0}}


def test_a_point_of_a_sweep_is_a_run_of_its_own_with_the_encoder_of_the_recipe(plan):
    found = plan(points=SHARES)
    assert found["targets"] == [["wearable", "full@few", 0], ["wearable", "full@all", 0]]
    for name, share in (("few", 0.1), ("all", 1.0)):
        point = stages(found, f"full@{name}")
        assert "pretrain" not in point
        assert point["finetune"]["inputs"]["encoder"] == "wearable/full/s0/pretrain"
        assert point["finetune"]["settings"]["label_fraction"] == share
        assert point["report"]["inputs"]["evaluate"] == f"wearable/full@{name}/s0/evaluate"
    assert stages(found)["finetune"]["settings"]["label_fraction"] == 0.2


def test_points_of_equal_pretraining_share_it_and_others_have_their_own(plan):
    points = {
        f"{lr}-{share}": {"pretrain.fit.lr": lr, "finetune.label_fraction": share}
        for lr in (0.1, 0.2) for share in (0.5, 1.0)
    }  # fmt: skip
    found = plan(points=points, seeds=(0, 1))
    encoders = [
        stages(found, f"full@{name}", seed)["evaluate"]["inputs"]["encoder"] for name in points for seed in (0, 1)
    ]
    trained = [[f"wearable/full@{lr}-0.5/s{seed}/pretrain" for seed in (0, 1)] for lr in (0.1, 0.2)]
    assert encoders == [folder for pair in trained for folder in (*pair, *pair)]


def test_a_point_is_compared_with_the_same_point_of_recipes_that_were_named(plan):
    texts = {"other": OTHER, "third": OTHER.replace("another", "a third")}
    both = plan("other", "full", points=SHARES, **texts)
    evaluate = stages(both, "other@few")["evaluate"]
    assert evaluate["inputs"]["compare:full@few"] == "wearable/full@few/s0/evaluate"
    assert evaluate["settings"]["compare"] == ["full@few"]
    alone = stages(plan("other", points=SHARES, **texts), "other@few")["evaluate"]
    assert alone["settings"]["compare"] == []
    assert not [name for name in alone["inputs"] if name.startswith("compare:")]


def test_a_point_may_change_the_data_that_a_recipe_names(plan):
    points = {"short": {"data.source.window_seconds": 2.0}, "long": {"data.source.window_seconds": 8.0}}
    found = plan("other", "full", points=points, other=OTHER)
    keys = {
        found["runs"]["wearable"][f"{name}@{point}"]["s0"]["data"] for name in ("other", "full") for point in points
    }
    assert len(keys) == 2


def test_an_encoder_of_another_recipe_is_that_of_the_same_data(plan):
    points = {"short": {"data.source.window_seconds": 2.0}, "long": {"data.source.window_seconds": 8.0}}
    for names in (("other", "full"), ("other",)):
        found = plan(*names, points=points, other=OTHER)
        for point in points:
            assert (
                stages(found, f"other@{point}")["finetune"]["inputs"]["encoder"] == f"wearable/full@{point}/s0/pretrain"
            )
    found = plan("other", points=SHARES, other=OTHER)
    assert stages(found, "other@few")["finetune"]["inputs"]["encoder"] == "wearable/full/s0/pretrain"


def test_a_point_with_a_setting_that_a_recipe_lacks_is_refused(plan):
    with pytest.raises(SettingsError, match=r"pretrain\.fit is not a setting of pretrain"):
        plan("other", points={"x": {"pretrain.fit.lr": 0.1}}, other=OTHER)


FIRST = FULL.replace("{backbone: cnn1d, views: signal,", "{onward: true, backbone: cnn1d, views: signal,")
NEXT = """\
description: the next stage
domain: wearable
data: full
pretrain: {backbone: cnn1d, views: signal, after: full}
finetune: {finetuner: linear_probe}
evaluate: {evaluators: [classification, forgetting], compare: [full]}
"""


def test_a_training_that_goes_on_reads_the_one_before(plan):
    made = plan("next", full=FIRST, next=NEXT)
    assert stages(made, "next")["pretrain"]["inputs"]["start"] == "wearable/full/s0/pretrain"
    assert stages(made, "next")["finetune"]["inputs"]["encoder"] == "wearable/next/s0/pretrain"


def test_at_a_point_of_a_sweep_it_goes_on_from_that_point(plan):
    made = plan("full", "next", full=FIRST, next=NEXT, points={"lr": {"pretrain.fit.lr": 0.01}})
    assert stages(made, "next@lr")["pretrain"]["inputs"]["start"] == "wearable/full@lr/s0/pretrain"


@pytest.mark.parametrize(
    ("texts", "message"),
    [
        ({"next": NEXT}, r"pretrain.after names full, which keeps nothing to go on from. Set its onward: true"),
        ({"full": FIRST, "next": NEXT.replace("compare: [full]", "compare: []")}, r"evaluate.compare lacks full"),
        ({"full": FIRST, "next": NEXT.replace("after: full", "after: fulll")}, r"fulll"),
        (
            {
                "full": FIRST.replace("{onward: true,", "{onward: true, after: next,"),
                "next": NEXT.replace("{backbone", "{onward: true, backbone"),
            },
            r"or goes on from this one in turn",
        ),
        (
            {"full": FIRST, "next": NEXT.replace("after: full", "after: full, fit: {schedule: infinite}")},
            r"needs first_stage: false",
        ),
    ],
)
def test_what_a_training_cannot_go_on_from_is_refused(plan, texts, message):
    with pytest.raises(SettingsError, match=message):
        plan("next", **texts)
