"""What a change re-runs: exactly what it touches."""

import re
import shutil
from pathlib import Path

import pytest

from appssl.outcome import is_current
from appssl.plan import complete, make_plan
from tests.commands import appssl
from tests.workflows.conftest import CHAIN

pytestmark = pytest.mark.slow  # every test runs whole commands

STAGES = ("make", "prepare_shard", "prepare", "pretrain", "pseudolabel", "finetune", "evaluate", "report")


@pytest.fixture
def project(finished, tmp_path):
    """A copy of the finished project, times kept."""
    shutil.copytree(finished, tmp_path / "p", copy_function=shutil.copy2)
    return tmp_path / "p"


def planned(project, *arguments):
    """Stages that a dry run names; plug-ins are found in the project's folder."""
    done = appssl("run", "chain.yaml", "--dry-run", *arguments, cwd=project, PYTHONPATH=str(project))
    assert done.code == 0, done.err
    text = done.out + done.err
    return [stage for stage in STAGES if re.search(rf"^(local)?rule {stage}:", text, re.MULTILINE)]


def test_a_finished_run_has_nothing_to_do(project):
    assert planned(project) == []


def current(**overrides):
    """Stages whose results are those that the recipe asks for now."""
    found = complete(make_plan(["chain.yaml"], seeds=[0], overrides=overrides, results=Path("results"), quick=False))
    return {place.rpartition("/")[2] for place in found["configs"] if is_current(found, place)} & set(STAGES)


def test_a_result_is_current_with_the_settings_and_inputs_that_are_wanted(project, monkeypatch):
    monkeypatch.chdir(project)
    run = {"pretrain", "pseudolabel", "finetune", "evaluate", "report"}
    assert current() == run
    assert current(**{"finetune.fit.batch_size": 6}) == {"pretrain", "pseudolabel"}
    assert current(**{"needs.pretrain.minutes": 7}) == run
    assert current(**{"data.source.split.test": 0.4}) == set()  # of other data
    manifest = project / "results/wearable/chain/s0/pseudolabel/manifest.json"
    manifest.write_text(manifest.read_text() + " ")  # another one than finetune has read
    assert current() == {"pretrain", "pseudolabel"}
    manifest.write_text("{")
    assert current() == {"pretrain"}


def test_a_comment_reruns_nothing(project):
    (project / "chain.yaml").write_text("# a comment\n" + CHAIN.replace("every stage", "really every stage"))
    assert planned(project) == []


def test_a_finetuning_setting_reruns_finetune_and_later_only(project):
    (project / "chain.yaml").write_text(CHAIN.replace("batch_size: 8", "batch_size: 6"))
    assert planned(project) == ["finetune", "evaluate", "report"]


def test_a_setting_on_the_command_line_counts_as_one_in_the_recipe(project):
    assert planned(project, "--set", "evaluate.num_bootstrap=200") == ["evaluate", "report"]


def test_a_pretraining_setting_reruns_all_but_the_data(project):
    assert planned(project, "--set", "pretrain.fit.lr=1e-4") == [
        "pretrain",
        "pseudolabel",
        "finetune",
        "evaluate",
        "report",
    ]


def test_needs_never_rerun_anything(project):
    assert planned(project, "--set", "needs.pretrain.minutes=7") == []


def test_another_number_of_shards_is_prepared_apart_and_changes_no_byte(project):
    one = next(project.glob("results/data/*/manifest.json"))
    done = appssl("run", "chain.yaml", "--set", "data.shards=1", cwd=project)
    assert done.code in (0, 5), done.err
    other = next(path for path in project.glob("results/data/*/manifest.json") if path.parent != one.parent)
    assert other.read_bytes() == one.read_bytes()


def test_a_default_changed_in_code_reruns_its_stage_and_later(finished, tmp_path):
    plugin = (
        "from appssl.schedules.cosine import Config as Base, build\n"
        "class Config(Base):\n    name: str = 'mylab.slow'\n    extra: int = {}\n"
    )
    project = tmp_path / "p"
    shutil.copytree(finished, project, copy_function=shutil.copy2)
    (project / "mylab").mkdir()
    (project / "mylab" / "__init__.py").write_text("")
    (project / "mylab" / "slow.py").write_text(plugin.format(1))
    set_ = ("--set", "finetune.fit.schedule={name: mylab.slow}")
    done = appssl("run", "chain.yaml", *set_, cwd=project, PYTHONPATH=str(project))
    assert done.code in (0, 5), done.err
    assert planned(project, *set_) == []
    (project / "mylab" / "slow.py").write_text(plugin.format(2))
    assert planned(project, *set_) == ["finetune", "evaluate", "report"]


def test_a_misspelt_key_stops_before_anything_runs(tmp_path):
    (tmp_path / "chain.yaml").write_text(CHAIN.replace("batch_size: 16", "batchsize: 16"))
    done = appssl("run", "chain.yaml", cwd=tmp_path)
    assert done.code == 2
    assert "chain.yaml: pretrain.fit.batchsize is not a setting of pretrain. Did you mean batch_size?" in done.err
    assert not (tmp_path / "results").exists()
