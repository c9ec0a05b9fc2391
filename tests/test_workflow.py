"""What the Snakefile asks of the plan."""

import pytest

from appssl.errors import SettingsError
from appssl.outcome import folders
from appssl.plan import make_plan
from appssl.workflow import load_plan, num_workers, targets

FIRST = """\
description: an encoder and a model
domain: wearable
data: {make: {size: tiny}, source: {name: wearable, table: recordings.csv, labels: labels.csv}}
pretrain: {backbone: cnn1d, views: signal}
finetune: {finetuner: full}
evaluate: {evaluators: [classification]}
"""
SECOND = """\
description: another model of the same encoder
domain: wearable
data: first
pretrain: {from: first}
finetune: {finetuner: linear_probe}
evaluate: {evaluators: [classification]}
"""


def test_targets_are_all_results_a_run_stands_on_and_no_others(tmp_path):
    (tmp_path / "first.yaml").write_text(FIRST)
    (tmp_path / "second.yaml").write_text(SECOND)
    plan = make_plan([str(tmp_path / "second.yaml")], seeds=[3], overrides={}, results=tmp_path, quick=False)
    found = {path.removeprefix(plan["results"] + "/").removesuffix("/manifest.json") for path in targets(plan)}
    own = {f"wearable/second/s3/{stage}" for stage in ("finetune", "evaluate", "report")}
    assert found == {f"data/{next(iter(plan['data']))}", "wearable/first/s3/pretrain", *own}
    listed = {folder.relative_to(tmp_path).as_posix() for _, folder in folders(plan)}
    assert {folder for folder in listed if "/shards/" not in folder} == found


def test_nothing_to_run_is_told():
    with pytest.raises(SettingsError, match="use 'appssl run RECIPE'"):
        load_plan({})


@pytest.mark.parametrize(
    ("cpus", "gpus", "threads", "workers"),
    [(2, 0, 2, 0), (2, 0, 1, 1), (8, 0, 2, 6), (1, 0, 2, 0), (8, 1, 2, 7), (8, 4, 2, 1), (1, 1, 2, 1)],
)
def test_cpus_that_do_not_compute_make_batches(cpus, gpus, threads, workers):
    stage = {"needs": {"cpus": cpus, "gpus": gpus}, "settings": {"fit": {"threads": threads}}}
    assert num_workers(stage) == workers


def test_stages_that_are_no_training_have_threads_of_their_own():
    assert num_workers({"needs": {"cpus": 6, "gpus": 0}, "settings": {"threads": 2}}) == 4
    assert num_workers({"needs": {"cpus": 6, "gpus": 1}, "settings": {"threads": 2}}) == 5
