"""Training with row-wise updates: the same bytes after a resume and with workers, and one training on two processes."""

import subprocess
import sys
import textwrap

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from torch import nn

from appssl.backbones import two_tower
from appssl.contracts import Context, Meta, Step
from appssl.engine.fit import fit, make_optimizer
from appssl.finetuners import retrieval
from tests.commands import REPOSITORY, environment
from tests.engine.training import Kept, Noisy, Plain, settings

ROWWISE = {"optimizer": "rowwise_adagrad", "lr": 0.05}
FIELDS = [{"name": "a", "start": 0, "length": 1}, {"name": "b", "start": 1, "length": 1}]


class Log:
    meta = Meta(source="recsys", domain="recsys", task="ranking", facts={"fields": FIELDS, "vocab_size": 8})
    num_users, num_items = 30, 50

    def __init__(self):
        rng = np.random.default_rng(0)
        self.tokens = np.stack([rng.integers(1, 6, 50), rng.integers(6, 9, 50)], axis=1)
        self.events = rng.integers(0, 30, 200), (50 * rng.random(200) ** 2).astype(np.int64), np.arange(200)

    def interactions(self, split):
        return self.events


def two_towers(**values):
    config = retrieval.Config(dim=8, history=3, table_lr=2.0, **values)
    examples = retrieval.Interactions(config, Log())
    torch.manual_seed(0)
    backbone = two_tower.build(two_tower.Config(token_dim=4, hidden=(8,), out=8), (2,), Log.meta)
    context = Context(meta=Log.meta, backbone=backbone, input_shape=(2,), num_samples=200, facts=examples.facts)
    return retrieval.build(config, context), examples


def train(folder, values, workers=0, **fit_values):
    learner, examples = two_towers(**values)
    how = {"state_dir": folder, "journal": Kept(), "seed": 0, "accelerator": "cpu", "workers": workers}
    fit(learner, examples, settings(**{**ROWWISE, **fit_values}), **how)
    return learner.state_dict()


def same(one, two):
    return one.keys() == two.keys() and all(torch.equal(one[name], two[name]) for name in one)


BOTH = pytest.mark.parametrize("values", [{"negatives": "shared", "num_negatives": 8}, {"frequencies": "streaming"}])


@BOTH
def test_a_resumed_training_ends_with_the_same_bytes(tmp_path, values):
    whole = train(tmp_path / "whole", values, schedule={"name": "constant"})
    train(tmp_path / "parts", values, steps=6, schedule={"name": "constant"})
    assert same(train(tmp_path / "parts", values, schedule={"name": "constant"}), whole)


@BOTH
def test_workers_do_not_change_the_bytes(tmp_path, values):
    assert same(train(tmp_path / "none", values), train(tmp_path / "two", values, workers=2))


def test_it_trains_tables_and_all_else(tmp_path):
    before = two_towers(negatives="shared")[0].state_dict()
    after = train(tmp_path, {"negatives": "shared"})
    assert all(not torch.equal(before[name], after[name]) for name in before)


class Rows(nn.Module):
    """A table of more rows than any batch has, and a network."""

    def __init__(self, is_sparse):
        super().__init__()
        torch.manual_seed(0)
        self.table, self.net = nn.Embedding(40, 6), nn.Linear(6, 2)
        self.is_sparse = is_sparse

    def forward(self, batch):
        self.table.sparse = self.is_sparse
        found = self.table(batch["index"] % 40)
        return Step(nn.functional.cross_entropy(self.net(found + batch["input"]), batch["target"]))


@pytest.mark.parametrize("values", [{"clip_norm": 0.1}, {"accumulate": 2}, {"clip_norm": 0.1, "accumulate": 4}])
def test_sparse_and_dense_gradients_train_alike_also_when_clipped_or_added_up(tmp_path, values):
    states = []
    for is_sparse in (True, False):
        learner, journal = Rows(is_sparse), Kept()
        how = {"state_dir": tmp_path / str(is_sparse), "journal": journal, "seed": 0, "accelerator": "cpu"}
        fit(learner, Noisy(), settings(**ROWWISE, **values), **how)
        states.append((learner.state_dict(), [row["train/loss"] for _, row in journal.rows]))
        if "clip_norm" in values:
            assert all(row["train/grad_norm"] > 0.1 for _, row in journal.rows)
    for name, tensor in states[0][0].items():
        torch.testing.assert_close(tensor, states[1][0][name], rtol=1e-5, atol=1e-6)
    assert states[0][1] == pytest.approx(states[1][1], rel=1e-5)


def test_settings_reach_both_parts_and_the_learner_scales_its_tables():
    learner, _ = two_towers(negatives="shared")
    optimizer = make_optimizer(learner, settings(**ROWWISE, weight_decay=0.3, beta1=0.8))
    tables, others = optimizer.param_groups
    assert (tables["lr"], tables["lr_scale"], len(tables["params"])) == (0.05, 2.0, 3)
    assert (others["lr"], others["weight_decay"], others["betas"]) == (0.05, 0.3, (0.8, 0.999))
    assert "lr_scale" not in others
    assert len(tables["params"]) + len(others["params"]) == len(list(learner.parameters()))


TWO = """
    import sys
    from pathlib import Path
    from appssl.artifact import write_bytes
    from appssl.engine.fit import fit
    from safetensors.torch import save
    from tests.engine.test_rowwise_adagrad import ROWWISE, Rows
    from tests.engine.training import Kept, Plain, settings
    learner, folder = Rows(True), Path(sys.argv[1])
    where = {"accelerator": "cpu", "devices": 2, "strategy": sys.argv[2]}
    fit(learner, Plain(), settings(**ROWWISE), state_dir=folder, journal=Kept(), seed=0, **where)
    write_bytes(folder / "final", save(learner.state_dict()))
"""


def on_two_processes(tmp_path, strategy):
    script = tmp_path / "train.py"
    script.write_text(textwrap.dedent(TWO))
    run = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2", "--standalone"]
    command = [*run, str(script), str(tmp_path / "two"), strategy]
    return subprocess.run(
        command, cwd=REPOSITORY, env=environment(OMP_NUM_THREADS="1"), capture_output=True, text=True, check=False
    )


@pytest.mark.slow
def test_two_processes_train_as_one(tmp_path):
    done = on_two_processes(tmp_path, "ddp")
    assert done.returncode == 0, done.stderr
    learner = Rows(True)
    how = {"state_dir": tmp_path / "one", "journal": Kept(), "seed": 0, "accelerator": "cpu"}
    fit(learner, Plain(), settings(**ROWWISE), **how)
    for name, tensor in load_file(tmp_path / "two" / "final").items():
        # gradients are summed in another order
        torch.testing.assert_close(tensor, learner.state_dict()[name], atol=1e-6, rtol=1e-5)


@pytest.mark.slow
def test_a_divided_model_is_refused(tmp_path):
    done = on_two_processes(tmp_path, "fsdp")
    assert done.returncode != 0
    assert "rowwise_adagrad: strategy fsdp divides the rows. Use strategy ddp, or adamw." in done.stderr
