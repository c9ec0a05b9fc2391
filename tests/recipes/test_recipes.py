"""Every recipe that comes with the package is valid, and a dry run of the demos plans all stages."""

import pytest

from appssl import bundle
from appssl.plan import make_plan
from tests.commands import appssl

DEMOS = ("wsi/demo", "wearable/demo", "webnoisy/demo", "recsys/demo")
LAYOUT = ("wsi", "imu", "images", "rec")


@pytest.mark.parametrize("quick", [False, True])
@pytest.mark.parametrize("name", bundle.recipes())
def test_a_recipe_is_valid(name, quick, tmp_path, monkeypatch):
    monkeypatch.setattr("appssl.plan.Planner._tables", lambda *arguments: [])  # the data need not be here
    plan = make_plan([name], seeds=[0], overrides={"data.root": str(tmp_path)}, results=tmp_path / "r", quick=quick)
    assert plan["targets"]


def test_all_domains_have_a_demo():
    assert set(DEMOS) <= set(bundle.recipes())


def test_a_dry_run_of_the_demos_plans_every_stage(tmp_path):
    done = appssl("run", *DEMOS, "--dry-run", cwd=tmp_path)
    assert done.code == 0, done.err
    for stage in ("make", "prepare_shard", "prepare", "pretrain", "pseudolabel", "finetune", "evaluate", "report"):
        assert f"rule {stage}:" in done.out + done.err
