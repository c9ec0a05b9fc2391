"""The recipes on real data, in their quick form. The full form is run by hand; its results are in docs/results."""

import json

import pytest

from tests.commands import appssl
from tests.real_data import DATA, real_data

RECIPES = (
    "wsi/her2st",
    "wsi/her2st_ins",
    "wsi/idc_ins",
    "wsi/monuseg_organ",
    "bench/ins_mil",
    "wearable/dsads",
    "wearable/dsads_collossl",
    "wearable/dsads_mv_dhel",
    "wearable/spsw_collossl",
    "webnoisy/cifar10n",
    "webnoisy/cifar10n_pls_lsa",
    "webnoisy/cifar10n_simcore",
    "webnoisy/flowers_crawl",
    "webnoisy/longtail_sade_backward",
    "recsys/ml_small",
    "recsys/ml_small_itemssl",
    "recsys/beauty_itemssl",
    "recsys/ml_small_selftraining",
    "recsys/ml_small_simgcl",
)
pytestmark = [*real_data, pytest.mark.slow]


@pytest.mark.parametrize("recipe", RECIPES)
def test_a_real_recipe_runs_end_to_end(recipe, tmp_path):
    done = appssl("run", recipe, "--quick", "--json", "--set", f"data.root={DATA}", cwd=tmp_path)
    assert done.code in (0, 5), done.err
    row = json.loads(done.out)["runs"][0]
    assert 0 <= row["value"] <= 1  # a quick form may get nothing right
    assert row["low"] is None or row["low"] <= row["value"] <= row["high"]
    assert (tmp_path / row["report"]).stat().st_size > 10_000
    run = (tmp_path / row["report"]).parents[1]
    for evaluator in json.loads((run / "evaluate" / "metrics.json").read_text()).values():
        assert evaluator
