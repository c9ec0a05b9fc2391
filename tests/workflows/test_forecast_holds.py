"""What `appssl check --probe` foresees is what the run then takes, within 30 %.

This is the one test of time in the project, and it compares CPU time: seconds of the clock say more of what else a
machine does than of the recipe. Compared are CPU seconds of the whole command `appssl run` with all its children, the
bytes of its results, and the largest memory of any one process. All stages compute with one thread, because threads
that wait for each other on a busy machine spend CPU time too. CPU time is not free of noise either: the forecast is
made again, at most three times, and one has to hold.
"""

import json
import os
import subprocess
import sys
import time

import pytest

from appssl.forecast.measuring import memory_of
from tests.commands import appssl, environment

pytestmark = pytest.mark.slow

WITHIN = 0.3
ATTEMPTS = 3
RECORDINGS = """\
description: few people, whose recordings a probe prepares completely, and more steps than it takes
domain: wearable
data:
  make: {size: small}
  shards: 2
  source: {name: wearable, table: recordings.csv, labels: labels.csv, split: {test: 0.5}}
pretrain:
  backbone: {name: cnn1d}
  views: {name: signal}
  fit: {epochs: 40, batch_size: 64, threads: 1}
pseudolabel: {labeler: {name: self_training}, threads: 1}
finetune:
  finetuner: linear_probe
  label_fraction: 0.5
  fit: {epochs: 60, batch_size: 32, threads: 1}
evaluate: {evaluators: [classification, knn], num_bootstrap: 100, threads: 1}
"""
IMAGES = """\
description: images, of which a probe prepares a share
domain: webnoisy
data:
  make: {size: small}
  source: {name: webnoisy, table: table.csv, columns: {split: split, true_label: true_label}, size: 32}
  shards: 2
  budget: 0.05
pretrain:
  backbone: {name: small_cnn, widths: [16, 32, 64]}
  views: {name: image_two_crop}
  fit: {epochs: 20, batch_size: 64, threads: 1}
pseudolabel: {labeler: small_loss, threads: 1}
finetune:
  finetuner: full
  fit: {epochs: 15, batch_size: 64, threads: 1}
evaluate: {evaluators: [classification, knn], num_bootstrap: 100, threads: 1}
"""


def taken(recipe, folder):
    """What a run of the recipe takes: CPU seconds, bytes, and bytes of memory of its largest process."""
    command = [sys.executable, "-m", "appssl", "run", recipe]
    quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
    run = subprocess.Popen(command, cwd=folder, env=environment(OMP_NUM_THREADS="1"), **quiet)
    memory, ended = 0, 0
    while not ended:
        memory = max([memory, *(memory_of(pid)[0] for pid in alone(run.pid))])
        time.sleep(0.1)
        ended, status, used = os.wait4(run.pid, os.WNOHANG)
    run.returncode = os.waitstatus_to_exitcode(status)
    assert run.returncode in (0, 5)
    return {"cpu_seconds": used.ru_utime + used.ru_stime, "bytes": written(folder / "results"), "memory": memory}


def alone(pid):
    """Processes below one that have no children: stages, not the workflow around them."""
    listed = subprocess.run(["ps", "-eo", "pid=,ppid="], capture_output=True, text=True, check=True).stdout.split()
    parents = dict(zip(map(int, listed[::2]), map(int, listed[1::2]), strict=True))

    def is_below(each):
        while each in parents and each != pid:
            each = parents[each]
        return each == pid

    return [each for each in parents if is_below(each) and each not in set(parents.values())]


def written(results):
    """Bytes of the data and of every stage; pages about all runs and the workflow's own notes belong to no stage."""
    folders = [results / name for name in ("synthetic", "data", "wearable", "webnoisy")]
    return sum(path.stat().st_size for folder in folders for path in folder.rglob("*") if path.is_file())


def foreseen(recipe, folder):
    options = ["--probe", "--json", "--out", "never"]
    done = appssl("check", recipe, *options, cwd=folder, OMP_NUM_THREADS="1")
    assert done.code == 0, done.err
    assert not list(folder.glob(".appssl-probe*")), "the probe left its folder"
    return json.loads(done.out)["totals"]


@pytest.mark.parametrize("recipe", [RECORDINGS, IMAGES], ids=["wearable", "webnoisy"])
def test_the_forecast_is_what_the_run_takes(tmp_path, recipe):
    (tmp_path / "chain.yaml").write_text(recipe)
    real = taken("chain.yaml", tmp_path)
    ratios = []
    for _ in range(ATTEMPTS):
        sums = foreseen("chain.yaml", tmp_path)
        ratios.append({key: sums[key] / value for key, value in real.items()})
        if all(abs(ratio - 1) <= WITHIN for ratio in ratios[-1].values()):
            return
    pytest.fail(f"forecast / run, in {ATTEMPTS} attempts: {ratios}; the run took {real}")
