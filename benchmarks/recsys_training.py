"""Samples per second of two-tower training, and what a step costs with 10^4, 10^5 and 10^6 items.

python benchmarks/recsys_training.py [--threads 2] [--batch 16384] [--items 10000 100000 1000000]
                                     [--recbole PYTHON] [--cornac PYTHON]

Dimension 64, numbers of users and items and two features of items, one hidden layer, 256 shared negatives; 100,000
users. For each number of items, in one run: our training loop with row-wise updates and with dense AdamW; the same
row-wise step on batches that lie ready, which shows what the loop costs; and the same model and loss in plain PyTorch,
written as is usual. `--recbole` names the Python of an environment with RecBole, whose BPR (no features, one negative)
is trained on the same log, with batches of the same size and with its own default of 2,048; our rate is compared with
the better one. `--cornac` likewise: its BPR has no features, one negative and no batches, a step of plain gradient
descent for each event in C++. Rates are of the fastest ten steps of fifty by the clock; beside them stands the time of
all CPUs for a step, of the median ten: on a busy machine only that says something, and with one thread. With two
threads on free cores set OMP_WAIT_POLICY=active: a step has many short parallel parts, and a thread that sleeps between
them wakes too late.
"""

import argparse
import itertools
import json
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from appssl.backbones import two_tower
from appssl.contracts import Context, Meta
from appssl.engine.fit import fit, make_optimizer
from appssl.engine.loading import Order, make_batch
from appssl.finetuners import retrieval
from appssl.ops.shared_negatives import log_probability
from appssl.recipe import Fit

GOAL = 500_000  # samples per second of row-wise updates
RECBOLE_GOAL, RECBOLE_BATCH = 5, 2048  # our rate, as a multiple of RecBole's; its default batch
GROWTH = 1.25  # CPU time of a step with the most items, as a multiple of that with the fewest, at most
USERS, EVENTS, FEATURES = 100_000, 1_000_000, (1000, 100)
EVERY, TIMES = 10, 6  # steps that are timed together, and how often; the first are left out

RECBOLE = """
import itertools, json, sys, time
import torch
from recbole.config import Config
from recbole.data import create_dataset, data_preparation
from recbole.model.general_recommender import BPR
from recbole.trainer import Trainer

folder, batch, threads, every, times = sys.argv[1], *map(int, sys.argv[2:])
sys.argv = sys.argv[:1]
torch.set_num_threads(threads)
settings = {
    "data_path": folder, "checkpoint_dir": folder, "use_gpu": False, "embedding_size": 64, "train_batch_size": batch,
    "load_col": {"inter": ["user_id", "item_id"]}, "show_progress": False,
    "eval_args": {"split": {"RS": [0.98, 0.01, 0.01]}, "order": "RO", "group_by": None, "mode": "full"},
}
config = Config(model="BPR", dataset="log", config_dict=settings)
dataset = create_dataset(config)
train = data_preparation(config, dataset)[0]
model = BPR(config, train.dataset)
optimizer = Trainer(config, model).optimizer
marks = [(time.perf_counter(), time.process_time())]
for number, interaction in enumerate(itertools.islice(train, every * times), 1):
    optimizer.zero_grad()
    model.calculate_loss(interaction).backward()
    optimizer.step()
    if number % every == 0:
        marks.append((time.perf_counter(), time.process_time()))
print(json.dumps({"items": dataset.item_num - 1, "marks": marks}))
"""


CORNAC = """
import json, sys, time
import numpy as np
from cornac.data import Dataset
from cornac.models import BPR

file, threads = sys.argv[1], int(sys.argv[2])
log = np.load(file)
events = zip(log["users"].tolist(), log["items"].tolist(), np.ones(len(log["users"])).tolist())
train = Dataset.from_uir(list(events), seed=0)
found = []
for rounds in (1, 5):
    model = BPR(k=64, max_iter=rounds, num_threads=threads, seed=None)
    begun = time.perf_counter(), time.process_time()
    model.fit(train)
    found.append((time.perf_counter() - begun[0], time.process_time() - begun[1]))
pairs = len(train.uir_tuple[0])
print(json.dumps({"pairs": pairs, "seconds": (found[1][0] - found[0][0]) / 4, "cpu": (found[1][1] - found[0][1]) / 4}))
"""


class Log:
    """Users drawn uniformly; items by Zipf's law, and each once."""

    def __init__(self, num_items: int) -> None:
        rng = np.random.default_rng(0)
        self.num_users, self.num_items = USERS, num_items
        first, second = FEATURES
        fields = [{"name": name, "start": number, "length": 1} for number, name in enumerate(("brand", "kind"))]
        self.meta = Meta("recsys", "recsys", "ranking", facts={"fields": fields, "vocab_size": first + second})
        columns = rng.integers(1, first + 1, num_items), rng.integers(first + 1, first + second + 1, num_items)
        self.tokens = np.stack(columns, axis=1)
        reach = np.cumsum(1 / np.arange(1, num_items + 1))
        drawn = np.searchsorted(reach, rng.random(EVENTS) * reach[-1]).clip(max=num_items - 1)
        self.items = np.concatenate([drawn, np.arange(num_items)])
        self.users = rng.integers(0, USERS, len(self.items))

    def interactions(self, split: str) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        return self.users, self.items, np.arange(len(self.items))


class Enough(Exception):
    """Ends a training before it saves anything."""


class Marks:
    """A journal that keeps the times, and ends the training."""

    def __init__(self) -> None:
        self.times = [(time.perf_counter(), time.process_time())]

    def metrics(self, step: int, values: dict[str, float]) -> None:
        self.times.append((time.perf_counter(), time.process_time()))
        if len(self.times) > TIMES:
            raise Enough


class Plain(nn.Module):
    """The model and its loss as one would write them in PyTorch."""

    def __init__(self, log: Log, ranked: Tensor) -> None:
        super().__init__()
        self.users, self.items = (nn.Embedding(number, 64, sparse=True) for number in (USERS, log.num_items))
        self.tokens = nn.Embedding(sum(FEATURES) + 1, 32, sparse=True)
        self.tower = nn.Sequential(nn.Linear(64, 128), nn.ReLU(), nn.Linear(128, 64), nn.Linear(64, 64))
        self.of_items, self.ranked = torch.from_numpy(log.tokens), ranked
        self.log_q = log_probability(torch.arange(log.num_items), log.num_items, "log_uniform").float()

    def vectors(self, items: Tensor) -> Tensor:
        return functional.normalize(self.tower(self.tokens(self.of_items[items]).flatten(1)) + self.items(items), dim=1)

    def forward(self, users: Tensor, items: Tensor) -> Tensor:
        number = len(self.ranked)
        ranks = torch.expm1(torch.rand(256, dtype=torch.float64) * np.log(number + 1)).long().clamp(max=number - 1)
        negatives = self.ranked[ranks]
        queries = functional.normalize(self.users(users), dim=1) / 0.07
        scores = queries @ self.vectors(negatives).T - self.log_q[ranks] - np.log(256)
        scores = scores.masked_fill(items[:, None] == negatives, -torch.inf)
        positive = (queries * self.vectors(items)).sum(1, keepdim=True)
        first = torch.zeros(len(users), dtype=torch.int64)
        return functional.cross_entropy(torch.cat([positive, scores], dim=1), first)


def settings(optimizer: str, batch: int, threads: int) -> Fit:
    steps = EVERY * (TIMES + 1)
    return Fit(steps=steps, batch_size=batch, optimizer=optimizer, log_every=EVERY, threads=threads)  # type: ignore[arg-type]


def prepared(log: Log) -> tuple[retrieval.Interactions, retrieval.Retrieval]:
    config = retrieval.Config(history=0, negatives="shared", table_lr=30.0)
    examples = retrieval.Interactions(config, log)
    torch.manual_seed(0)
    backbone = two_tower.build(two_tower.Config(), (2,), log.meta)
    context = Context(
        meta=log.meta, backbone=backbone, input_shape=(2,), num_samples=len(examples), facts=examples.facts
    )
    return examples, retrieval.build(config, context)


def in_the_loop(log: Log, optimizer: str, batch: int, threads: int) -> list[tuple[float, float]]:
    examples, learner = prepared(log)
    marks = Marks()
    with tempfile.TemporaryDirectory() as folder:
        where: dict[str, Any] = {"state_dir": Path(folder), "journal": marks, "seed": 0, "accelerator": "cpu"}
        with suppress(Enough):
            fit(learner, examples, settings(optimizer, batch, threads), **where)
    return marks.times


def bare(step: Callable[[Any], None], batches: list[Any]) -> list[tuple[float, float]]:
    marks = [(time.perf_counter(), time.process_time())]
    for number, batch in enumerate(itertools.islice(itertools.cycle(batches), EVERY * TIMES), 1):
        step(batch)
        if number % EVERY == 0:
            marks.append((time.perf_counter(), time.process_time()))
    return marks


def ready_batches(examples: retrieval.Interactions, batch: int) -> list[Any]:
    order = Order(len(examples), batch, 0)
    return [make_batch(examples, order, step, 0) for step in range(EVERY * TIMES)]


def same_step(log: Log, batch: int, threads: int) -> list[tuple[float, float]]:
    examples, learner = prepared(log)
    optimizer = make_optimizer(learner, settings("rowwise_adagrad", batch, threads))

    def step(ready: Any) -> None:
        learner(ready).loss.backward()
        optimizer.step()
        optimizer.zero_grad()

    return bare(step, ready_batches(examples, batch))


def plain_pytorch(log: Log, batch: int) -> list[tuple[float, float]]:
    examples = retrieval.Interactions(retrieval.Config(history=0, negatives="shared"), log)
    torch.manual_seed(0)
    model = Plain(log, examples.facts["ranked"])
    tables = [part.weight for part in (model.users, model.items, model.tokens)]
    optimizers = torch.optim.SparseAdam(tables), torch.optim.AdamW(model.tower.parameters())

    def step(ready: Any) -> None:
        model(ready["input"], ready["target"]).backward()
        for optimizer in optimizers:
            optimizer.step()
            optimizer.zero_grad()

    return bare(step, ready_batches(examples, batch))


def recbole(log: Log, python: str, batch: int, threads: int) -> list[tuple[float, float]]:
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name) / "log"
        folder.mkdir()
        lines = (f"{user}\t{item}\n" for user, item in zip(log.users, log.items, strict=True))
        with (folder / "log.inter").open("w") as file:
            file.write("user_id:token\titem_id:token\n")
            file.writelines(lines)
        numbers = [str(number) for number in (batch, threads, EVERY, TIMES)]
        done = subprocess.run(
            [python, "-c", RECBOLE, name, *numbers], cwd=name, capture_output=True, text=True, check=False
        )
    if done.returncode:
        sys.exit(f"--recbole {python}: {done.stderr[-500:]}")
    found = json.loads(done.stdout.splitlines()[-1])
    assert found["items"] == log.num_items
    return found["marks"]  # type: ignore[no-any-return]


def cornac(log: Log, python: str, threads: int) -> None:
    with tempfile.TemporaryDirectory() as name:
        np.savez(Path(name) / "log.npz", users=log.users, items=log.items)
        done = subprocess.run(
            [python, "-c", CORNAC, f"{name}/log.npz", str(threads)], capture_output=True, text=True, check=False
        )
    if done.returncode:
        sys.exit(f"--cornac {python}: {done.stderr[-500:]}")
    found = json.loads(done.stdout.splitlines()[-1])
    rate, used = found["pairs"] / found["seconds"], 1e6 * found["cpu"] / found["pairs"]
    print(f"  {'cornac BPR, single steps':34} {rate:9,.0f} samples/s   {used:7.2f} us of CPU a sample", flush=True)


def told(name: str, times: list[tuple[float, float]], batch: int) -> tuple[float, float]:
    """Samples per second of the fastest interval by the clock, and CPU milliseconds of a step in the median one."""
    clock, cpu = np.diff(np.array(times)[1:], axis=0).T / EVERY
    rate, used = batch / clock.min(), statistics.median(cpu)
    print(f"  {name:34} {rate:9,.0f} samples/s   {used * 1e3:7.2f} ms of CPU a step", flush=True)
    return rate, used


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--batch", type=int, default=16384)
    parser.add_argument("--items", type=int, nargs="+", default=[10_000, 100_000, 1_000_000])
    parser.add_argument("--recbole", metavar="PYTHON")
    parser.add_argument("--cornac", metavar="PYTHON")
    given = parser.parse_args()
    torch.set_num_threads(given.threads)
    ours, ratios = [], []
    for number in given.items:
        log = Log(number)
        print(f"{number:,} items, batches of {given.batch}, {given.threads} thread(s)")
        ours.append(
            told("row-wise updates", in_the_loop(log, "rowwise_adagrad", given.batch, given.threads), given.batch)
        )
        told("dense AdamW", in_the_loop(log, "adamw", given.batch, given.threads), given.batch)
        told("row-wise, without the loop", same_step(log, given.batch, given.threads), given.batch)
        told("plain PyTorch, SparseAdam", plain_pytorch(log, given.batch), given.batch)
        if given.cornac:
            cornac(log, given.cornac, given.threads)
        if given.recbole:
            theirs = [
                told(f"RecBole BPR, batches of {size}", recbole(log, given.recbole, size, given.threads), size)[0]
                for size in (given.batch, RECBOLE_BATCH)
            ]
            ratios.append(ours[-1][0] / max(theirs))
            print(f"  {ratios[-1]:.1f} times the better rate of RecBole (goal {RECBOLE_GOAL})")
    slowest, growth = min(rate for rate, _ in ours), ours[-1][1] / ours[0][1]
    print(f"row-wise updates: at least {slowest:,.0f} samples/s (goal {GOAL:,}); {growth:.2f} times the CPU time of a "
          f"step with {given.items[-1]:,} items (goal at most {GROWTH})")  # fmt: skip
    sys.exit(0 if slowest >= GOAL and growth <= GROWTH and min(ratios, default=RECBOLE_GOAL) >= RECBOLE_GOAL else 1)


if __name__ == "__main__":
    main()
