"""Wrong recipes: exit code 2 (settings) or 3 (a table that is missing), everything in one report."""

import pytest

RECIPE = """\
description: own recordings
domain: wearable
data: {make: {size: tiny}, source: {name: wearable, table: recordings.csv, labels: labels.csv}}
pretrain: {backbone: cnn1d, views: signal, fit: {epochs: 1}}
finetune: {finetuner: full}
evaluate: {evaluators: [classification]}
"""


@pytest.fixture
def checked(cli, tmp_path):
    def call(change, by):
        assert change in RECIPE
        (tmp_path / "own.yaml").write_text(RECIPE.replace(change, by))
        return cli("check", tmp_path / "own.yaml")

    return call


def test_the_recipe_without_a_fault_is_sound(checked):
    assert checked("epochs: 1", "epochs: 2").code == 0


def test_an_unknown_recipe_is_answered_with_the_nearest(cli):
    said = cli("run", "wearable/dmo")
    assert said.code == 2
    assert "wearable/dmo: there is no such recipe. Did you mean wearable/demo?" in said.err


@pytest.mark.parametrize(
    ("change", "by", "message"),
    [
        ("cnn1d", "cnn1", "pretrain.backbone is wrong: 'cnn1' is not one of the backbones. Did you mean cnn1d?"),
        ("epochs", "epoch", "pretrain.fit.epoch is not a setting of pretrain. Did you mean epochs?"),
        ("pretrain:", "pretain:", "pretain is not a setting of recipe. Did you mean pretrain?"),
        ("epochs: 1", "epochs: many", "pretrain.fit.epochs is not valid: Input should be a valid number (got 'many')"),
        ("epochs: 1", "epochs: 1, lr: -1", "pretrain.fit.lr is not valid: Input should be greater than 0 (got -1)"),
        ("epochs: 1", "epochs: 1, steps: 3", "give epochs or steps, not both"),
        ("domain: wearable", "domain: wareable", "(got 'wareable'). Did you mean wearable?"),
    ],
)
def test_a_wrong_setting_is_named_with_what_is_allowed(checked, change, by, message):
    said = checked(change, by)
    assert said.code == 2
    assert message in said.err
    assert "own.yaml" in said.err


def test_all_problems_are_in_one_report(cli, tmp_path):
    wrong = (
        RECIPE.replace("cnn1d", "cnn1").replace("epochs: 1", "epoch: 1").replace("finetuner: full", "finetuner: ful")
    )
    (tmp_path / "own.yaml").write_text(wrong)
    said = cli("check", tmp_path / "own.yaml")
    assert said.code == 2
    for name in ("pretrain.backbone", "pretrain.fit.epoch ", "finetune.finetuner"):
        assert name in said.err


def test_a_python_tag_is_refused_and_not_run(checked, tmp_path):
    said = checked("own recordings", f"!!python/object/apply:os.mkdir ['{tmp_path}/made']")
    assert said.code == 2
    assert "own.yaml" in said.err
    assert "tag" in said.err
    assert not (tmp_path / "made").exists()


def test_broken_yaml_names_the_line(checked):
    said = checked("finetune: {finetuner: full}", "finetune: {finetuner: full")
    assert said.code == 2
    assert "line" in said.err


def test_a_missing_table_is_named(prepare, tmp_path):
    said = prepare(tmp_path, "webnoisy", table="images.csv")
    assert said.code == 3
    assert "images.csv" in said.err
    assert "data.root" in said.err


def test_a_table_outside_the_data_root_is_refused(prepare, tmp_path):
    (tmp_path / "root").mkdir()
    (tmp_path / "secret.csv").write_text("id,path\na,b\n")
    said = prepare(tmp_path / "root", "webnoisy", table="../secret.csv")
    assert said.code in (2, 3)
    assert "leaves the data root" in said.err


def test_an_unknown_profile_is_answered_with_the_nearest(cli, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    said = cli("run", "wearable/demo", "--profile", "slrum", "--dry-run")
    assert said.code == 2
    assert "--profile slrum: no such profile. Did you mean slurm?" in said.err


def test_debug_shows_where(cli, monkeypatch, capsys):
    monkeypatch.setenv("APPSSL_DEBUG", "")
    monkeypatch.setattr("sys.argv", ["appssl", "--debug", "check", "wearable/dmo"])
    from appssl.cli.main import main

    with pytest.raises(SystemExit) as end:
        main()
    assert end.value.code == 2
    assert "Traceback" in capsys.readouterr().err
