import itertools
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import textwrap
import time

import cv2
import numpy as np
import polars as pl
import pytest
import torch
from safetensors.torch import load_file
from torch import nn

from appssl.contracts import Meta, Step
from appssl.engine.fit import InterruptedTraining, fit, make_optimizer
from appssl.errors import DataError, DivergedError, SettingsError
from appssl.learners.joint_embedding import JointEmbedding
from appssl.objectives.ntxent import NTXent
from appssl.ops.random import permutation
from appssl.recipe import Fit
from appssl.samplers import uniform
from appssl.views import image_two_crop
from tests.commands import REPOSITORY, environment
from tests.engine.training import Kept, Noisy, Plain, settings, small, tracking


def train(folder, learner=None, examples=None, seed=0, journal=None, **values):
    learner = learner or small()
    journal = journal or Kept()
    result = fit(
        learner,
        examples or Noisy(),
        settings(**values),
        state_dir=folder,
        journal=journal,
        seed=seed,
        accelerator="cpu",
    )
    return learner, result, journal


def equal(one, two):
    first, second = one.state_dict(), two.state_dict()
    return first.keys() == second.keys() and all(torch.equal(first[k], second[k]) for k in first)


def test_update_rules_are_made_with_their_settings():
    rules = {
        name: make_optimizer(small(), settings(optimizer=name, beta1=0.8, beta2=0.95))
        for name in ("adamw", "sgd", "lars")
    }
    assert [type(rule).__name__ for rule in rules.values()] == ["AdamW", "SGD", "LARS"]
    assert rules["adamw"].param_groups[0]["betas"] == (0.8, 0.95)
    assert all(rule.param_groups[0]["weight_decay"] == 1e-4 for rule in rules.values())
    assert rules["sgd"].param_groups[0]["momentum"] == rules["lars"].param_groups[0]["momentum"] == 0.9


def test_equals_a_plain_loop_written_out(tmp_path):
    learner, _, _ = train(tmp_path, steps=6, schedule={"name": "constant"})
    plain = small()
    optimizer = torch.optim.AdamW(plain.parameters(), lr=1e-3, weight_decay=1e-4)
    examples = Noisy()
    torch.manual_seed(0)
    for step in range(6):
        epoch, within = divmod(step, 4)
        batch = examples.batch(permutation(0, epoch, 64)[16 * within : 16 * within + 16], seed=0, epoch=epoch)
        optimizer.zero_grad()
        plain(batch).loss.backward()
        optimizer.step()
        plain.after_update(None)
    assert equal(learner, plain)


def test_the_same_seed_gives_the_same_bytes_and_another_seed_others(tmp_path):
    one, two, other = (train(tmp_path / str(n), seed=s)[0] for n, s in enumerate((5, 5, 6)))
    assert equal(one, two)
    assert not equal(one, other)


def test_workers_change_nothing(tmp_path):
    alone = train(tmp_path / "0")[0]
    learner = small()
    fit(learner, Noisy(), settings(), state_dir=tmp_path / "2", journal=Kept(), seed=0, accelerator="cpu", workers=2)
    assert equal(alone, learner)


def test_every_epoch_sees_every_example_at_most_once(tmp_path):
    examples = Noisy(70)
    train(tmp_path, examples=examples, steps=8)
    for epoch in (examples.asked[:4], examples.asked[4:]):
        seen = list(itertools.chain(*epoch))
        assert len(seen) == len(set(seen)) == 64
    assert set(examples.asked[0]) != set(examples.asked[4])


def test_epochs_become_steps(tmp_path):
    assert train(tmp_path / "a", steps=None, epochs=2.5)[1].num_steps == 10
    assert train(tmp_path / "b", steps=None, epochs=0.1)[1].num_steps == 1


class Linear(nn.Module):
    """No batch normalization: micro-batches give the gradient of the whole batch."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.layer = nn.Linear(6, 2)

    def forward(self, batch):
        return Step(nn.functional.cross_entropy(self.layer(batch["input"]), batch["target"]))


def test_micro_batches_give_the_gradient_of_the_whole_batch(tmp_path):
    whole = train(tmp_path / "1", learner=Linear())[0]
    parts = train(tmp_path / "4", learner=Linear(), accumulate=4)[0]
    for one, two in zip(whole.parameters(), parts.parameters(), strict=True):
        torch.testing.assert_close(one, two, atol=1e-6, rtol=1e-5)  # sums in another order


def test_clipping_bounds_the_step_of_sgd(tmp_path):
    learner = Linear()
    before = [p.detach().clone() for p in learner.parameters()]
    _, _, journal = train(
        tmp_path, learner=learner, steps=1, optimizer="sgd", momentum=0.0, weight_decay=0.0, lr=1.0,
        clip_norm=0.01, schedule={"name": "constant"},
    )  # fmt: skip
    moved = torch.sqrt(sum(((a - b) ** 2).sum() for a, b in zip(before, learner.parameters(), strict=True)))
    assert float(moved.detach()) == pytest.approx(0.01, rel=1e-3)
    assert journal.rows[0][1]["train/grad_norm"] > 0.01


def test_after_update_is_called_once_per_step_with_the_progress(tmp_path):
    learner, _, _ = train(tmp_path, steps=6)
    assert [p.step for p in learner.progress] == [1, 2, 3, 4, 5, 6]
    assert [p.epoch for p in learner.progress] == [0, 0, 0, 0, 1, 1]


def test_all_samples_are_tracked_once_after_every_whole_epoch(tmp_path):
    examples = Plain(70)
    learner, _, _ = train(tmp_path, learner=tracking(size=70), examples=examples, steps=10)
    assert [(call["epoch"], call["step"]) for call in learner.calls] == [(0, 4), (1, 8)]  # the third is not whole
    for call in learner.calls:
        seen = {key: torch.cat([batch[key] for batch in call["batches"]]) for key in ("index", "input", "target")}
        expected = examples.plain(np.arange(70))
        assert seen.keys() == expected.keys()
        assert all(torch.equal(seen[key], expected[key]) for key in seen)
        assert (call["training"], call["gradient"]) == (False, False)
    assert learner.training


def test_tracking_finds_what_the_network_is_after_the_epoch(tmp_path):
    learner, _, _ = train(tmp_path, learner=tracking(), examples=Plain(), steps=4)
    expected = learner.eval().net(Plain().plain(np.arange(64))["input"])
    torch.testing.assert_close(learner.found, expected, rtol=1e-5, atol=1e-6)  # batches of another size
    assert learner.calls[0]["dtype"] == torch.float32


def test_tracking_has_the_precision_of_training(tmp_path):
    learner, _, _ = train(tmp_path, learner=tracking(), examples=Plain(), steps=4, precision="bf16")
    assert learner.calls[0]["dtype"] == torch.bfloat16


def test_workers_that_make_plain_batches_change_nothing(tmp_path):
    alone = train(tmp_path / "0", learner=tracking(), examples=Plain())[0]
    learner = tracking()
    fit(learner, Plain(), settings(), state_dir=tmp_path / "2", journal=Kept(), seed=0, accelerator="cpu", workers=2)
    assert equal(alone, learner)


@pytest.mark.parametrize(("checkpoint_steps", "resumed_from"), [(3, 6), (4, 4)])  # within an epoch, and at its end
def test_resumed_training_that_tracks_equals_uninterrupted_training(tmp_path, checkpoint_steps, resumed_from):
    values = {"checkpoint_steps": checkpoint_steps, "log_every": 1}
    whole, _, _ = train(tmp_path / "whole", learner=tracking(), examples=Plain(), **values)

    class Stop(Exception):
        pass

    class Stopping(Plain):
        def batch(self, indices, *, seed, epoch):
            if len(self.asked) == 7:
                raise Stop
            return super().batch(indices, seed=seed, epoch=epoch)

    with pytest.raises(Stop):
        train(tmp_path / "cut", learner=tracking(), examples=Stopping(), **values)
    resumed, result, _ = train(tmp_path / "cut", learner=tracking(seed=9), examples=Plain(), **values)
    assert result.resumed_from == resumed_from
    assert [call["epoch"] for call in resumed.calls] == [1, 2]
    assert equal(whole, resumed)
    assert resumed.found.abs().sum() > 0


def test_a_learner_that_does_not_track_is_shown_nothing(tmp_path):
    class Never(Noisy):
        def plain(self, indices):
            raise AssertionError("nobody asked for these")

    assert equal(train(tmp_path / "1", examples=Never())[0], train(tmp_path / "2")[0])


def test_tracking_without_plain_batches_is_refused_before_training(tmp_path):
    examples = Noisy()
    with pytest.raises(SettingsError, match="sees all samples after each epoch; its examples give no plain batches"):
        train(tmp_path, learner=tracking(), examples=examples)
    assert examples.asked == []


def test_logged_means_are_those_of_the_interval(tmp_path):
    _, _, each = train(tmp_path / "1", log_every=1)
    _, _, third = train(tmp_path / "3", log_every=3)
    losses = [row["train/loss"] for _, row in each.rows]
    assert [step for step, _ in third.rows] == [3, 6, 9, 12]
    for number, (_, row) in enumerate(third.rows):
        assert row["train/loss"] == pytest.approx(np.mean(losses[3 * number : 3 * number + 3]), rel=1e-5)
        assert "train/loss_half" in row
        assert row["time/samples_per_second"] > 0
        assert 0 <= row["time/data_wait_share"] <= 1


def test_resumed_training_equals_uninterrupted_training_bit_for_bit(tmp_path):
    whole, _, journal = train(tmp_path / "whole")

    class Stop(Exception):
        pass

    class Stopping(Noisy):
        def batch(self, indices, *, seed, epoch):
            if len(self.asked) == 7:
                raise Stop
            return super().batch(indices, seed=seed, epoch=epoch)

    with pytest.raises(Stop):
        train(tmp_path / "cut", examples=Stopping())
    resumed, result, rest = train(tmp_path / "cut", learner=small(seed=9))
    assert result.resumed_from == 6
    assert equal(whole, resumed)
    tail = [(s, {k: v for k, v in r.items() if k.startswith("train/")}) for s, r in journal.rows[2:]]
    assert [(s, {k: v for k, v in r.items() if k.startswith("train/")}) for s, r in rest.rows] == tail


def test_a_damaged_newest_checkpoint_falls_back_to_the_one_before(tmp_path, capsys):
    whole, _, _ = train(tmp_path / "whole")
    train(tmp_path / "cut")
    newest = sorted((tmp_path / "cut" / "checkpoints").iterdir())[-1]
    content = bytearray((newest / "model.safetensors").read_bytes())
    content[-3] ^= 4
    (newest / "model.safetensors").write_bytes(content)
    resumed, result, _ = train(tmp_path / "cut", learner=small(seed=3))
    assert result.resumed_from == 9
    assert "damaged: model.safetensors changed. Taking the one before" in capsys.readouterr().err
    assert equal(whole, resumed)


def test_only_the_newest_checkpoints_are_kept(tmp_path):
    train(tmp_path)
    assert [p.name for p in sorted((tmp_path / "checkpoints").iterdir())] == ["step-0000000009", "step-0000000012"]


def test_a_non_finite_loss_stops_and_saves_the_batch_for_replay(tmp_path):
    bad = int(permutation(0, 0, 64)[16 * 1 + 5])  # an example of the second step
    with pytest.raises(DivergedError, match="not finite at step 2"):
        train(tmp_path, examples=Noisy(bad=bad))
    saved = load_file(tmp_path / "diverged" / "batch-0-0.safetensors")
    assert bad in saved["index"].tolist()
    assert torch.isnan(saved["input"]).any()
    assert json.loads((tmp_path / "diverged" / "info.json").read_text())["step"] == 2
    assert not (tmp_path / "checkpoints").exists()  # nothing non-finite is ever saved


class Photos:
    """64 smooth images of 24 pixels."""

    samples = pl.DataFrame({"index": range(64), "split": ["train"] * 64})

    def read(self, row):
        coarse = np.random.default_rng(row).integers(0, 256, (5, 5, 3), dtype=np.uint8)
        return cv2.resize(coarse, (24, 24), interpolation=cv2.INTER_CUBIC)


def crops_of_photos(data=None, **values):
    facts = {"size_px": 24, "rgb_mean": [0.5] * 3, "rgb_std": [0.25] * 3}
    views = image_two_crop.build(
        image_two_crop.Config(size=16, blur=0.5, **values), Meta("test", "webnoisy", "classification", facts=facts)
    )
    return uniform.build(uniform.Config(), data or Photos(), views)


def seeing(seed=0):
    torch.manual_seed(seed)
    body = nn.Sequential(nn.Conv2d(3, 8, 5, stride=3), nn.BatchNorm2d(8), nn.ReLU(), nn.Flatten(), nn.Linear(128, 8))
    return JointEmbedding(body, nn.Linear(8, 8), NTXent(0.5))


def losses(journal):
    return np.array([row["train/loss"] for _, row in journal.rows])


def test_views_rendered_on_the_device_train_as_those_of_the_loader(tmp_path):
    """They are a quarter of a level of 255 apart on average, 0.1 %, and losses about as much; steps are by 5 %."""
    found = {}
    for where in ("loader", "device"):
        values = {"learner": seeing(), "examples": crops_of_photos(render=where), "log_every": 1}
        found[where] = losses(train(tmp_path / where, **values)[2])
    assert not np.array_equal(found["loader"], found["device"])
    np.testing.assert_allclose(found["device"], found["loader"], rtol=5e-3)
    assert np.ptp(found["loader"]) > 0.02 * found["loader"].mean()


def test_workers_change_nothing_where_views_are_rendered_on_the_device(tmp_path):
    alone = train(tmp_path / "0", learner=seeing(), examples=crops_of_photos(render="device"))[0]
    learner = seeing()
    fit(
        learner,
        crops_of_photos(render="device"),
        settings(),
        state_dir=tmp_path / "2",
        journal=Kept(),
        seed=0,
        accelerator="cpu",
        workers=2,
    )
    assert equal(alone, learner)


def test_resumed_training_equals_uninterrupted_training_where_views_are_rendered_on_the_device(tmp_path):
    whole = train(tmp_path / "whole", learner=seeing(), examples=crops_of_photos(render="device"))[0]

    class Stop(Exception):
        pass

    class Stopping(Photos):
        reads = 0

        def read(self, row):
            self.reads += 1
            if self.reads > 7 * 16:
                raise Stop
            return super().read(row)

    with pytest.raises(Stop):
        train(tmp_path / "cut", learner=seeing(), examples=crops_of_photos(Stopping(), render="device"))
    examples = crops_of_photos(render="device")
    resumed, result, _ = train(tmp_path / "cut", learner=seeing(9), examples=examples)
    assert result.resumed_from == 6
    assert equal(whole, resumed)


def test_micro_batches_are_rendered_on_the_device(tmp_path):
    examples = crops_of_photos(render="device")
    assert train(tmp_path, learner=seeing(), examples=examples, accumulate=4)[1].num_steps == 12


def test_images_of_several_sizes_cannot_be_rendered_on_the_device(tmp_path):
    class Uneven(Photos):
        def read(self, row):
            return super().read(row)[: 24 - row % 2]

    with pytest.raises(DataError, match=r"images of one size.*24 x 23, 24 x 24 pixels.*Set views.render to loader"):
        train(tmp_path, learner=seeing(), examples=crops_of_photos(Uneven(), render="device"))


def test_a_batch_that_diverged_is_saved_with_its_views_rendered(tmp_path):
    class Diverging(nn.Module):
        def __init__(self):
            super().__init__()
            self.weight, self.seen = nn.Parameter(torch.ones(())), []

        def forward(self, batch):
            self.seen.append(batch["views"])
            return Step(self.weight * (float("nan") if len(self.seen) == 2 else 1.0))

    learner = Diverging()
    with pytest.raises(DivergedError, match="not finite at step 2"):
        train(tmp_path, learner=learner, examples=crops_of_photos(render="device"))
    saved = load_file(tmp_path / "diverged" / "batch-0-0.safetensors")
    assert saved.keys() == {"index", "views.0", "views.1"}
    assert saved["views.0"].shape == (16, 3, 16, 16)
    assert all(torch.equal(saved[f"views.{n}"], view) for n, view in enumerate(learner.seen[1]))


def test_fewer_examples_than_a_batch_is_a_clear_error(tmp_path):
    with pytest.raises(DataError, match=r"batch_size is 16, but there are only 10 training examples\. Set"):
        train(tmp_path, examples=Noisy(10))


def test_a_batch_that_does_not_divide_is_a_clear_error(tmp_path):
    with pytest.raises(DataError, match="does not divide into 1 device"):
        train(tmp_path, accumulate=3)


def test_nothing_to_train_is_a_clear_error():
    with pytest.raises(SettingsError, match="nothing to train"):
        make_optimizer(small().requires_grad_(False), Fit())


def test_sigterm_saves_and_the_same_call_goes_on(tmp_path):
    whole, _, _ = train(tmp_path / "whole")

    class Signalling(Noisy):
        def batch(self, indices, *, seed, epoch):
            if len(self.asked) == 4:
                os.kill(os.getpid(), signal.SIGTERM)
            return super().batch(indices, seed=seed, epoch=epoch)

    with pytest.raises(InterruptedTraining, match="after step 6 of 12"):
        train(tmp_path / "cut", examples=Signalling(), checkpoint_steps=100)
    assert equal(whole, train(tmp_path / "cut", learner=small(seed=4))[0])


class WithBackbone(nn.Module):
    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.backbone = nn.Sequential(nn.Linear(6, 32), nn.GELU(), nn.LayerNorm(32), nn.Linear(32, 2))

    def forward(self, batch):
        return Step(nn.functional.cross_entropy(self.backbone(batch["input"]), batch["target"]))


@pytest.mark.slow
@pytest.mark.skipif(
    not any(map(shutil.which, ("g++", "clang++"))),
    reason="COMPILED TRAINING NOT TESTED: no C++ compiler on this machine",
)
def test_a_compiled_backbone_learns_the_same_within_rounding_and_goes_on(tmp_path):
    plain, _, _ = train(tmp_path / "plain", learner=WithBackbone(), schedule="constant")
    first, _, _ = train(tmp_path / "compiled", learner=WithBackbone(), schedule="constant", steps=6, compile=True)
    assert first.backbone._compiled_call_impl is not None
    compiled, result, _ = train(tmp_path / "compiled", learner=WithBackbone(), schedule="constant", compile=True)
    assert result.resumed_from == 6
    assert list(compiled.state_dict()) == list(plain.state_dict())
    for one, other in zip(plain.parameters(), compiled.parameters(), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-5)


def test_compiling_what_cannot_be_compiled_says_what_is_missing(tmp_path, monkeypatch):
    with pytest.raises(SettingsError, match=r"fit\.compile: this method has no backbone"):
        train(tmp_path / "without", compile=True)
    monkeypatch.setattr("shutil.which", lambda name: None)
    with pytest.raises(SettingsError, match=r"fit\.compile: a C\+\+ compiler is needed"):
        train(tmp_path / "no_compiler", learner=WithBackbone(), compile=True)


SCRIPT = """
    import sys
    from pathlib import Path
    from appssl.artifact import write_bytes
    from appssl.engine.fit import fit
    from safetensors.torch import save
    from tests.engine.training import Kept, Noisy, settings, small
    folder, steps, workers = Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3])
    learner, given = small(), settings(steps=steps)
    fit(learner, Noisy(256), given, state_dir=folder, journal=Kept(), seed=1, accelerator="cpu", workers=workers)
    write_bytes(folder / "final", save(learner.state_dict()))
"""


def start(folder, *, steps=240, workers=0):
    command = [sys.executable, "-c", textwrap.dedent(SCRIPT), *map(str, (folder, steps, workers))]
    return subprocess.Popen(
        command,
        cwd=REPOSITORY,
        env=environment(OMP_NUM_THREADS="1"),
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )


@pytest.mark.parametrize("notice", [signal.SIGTERM, signal.SIGUSR1])
def test_a_notice_to_every_process_of_a_job_stops_it_when_its_step_is_saved(tmp_path, notice):
    process = start(tmp_path, steps=100_000, workers=2)
    deadline = time.monotonic() + 300
    while not list(tmp_path.glob("checkpoints/step-*")) and time.monotonic() < deadline:
        time.sleep(0.01)
    os.killpg(process.pid, notice)
    _, said = process.communicate(timeout=180)
    assert "InterruptedTraining: stopped on request after step" in said, said[-2000:]


def test_killed_at_random_moments_it_ends_with_the_same_bytes(tmp_path):
    assert start(tmp_path / "whole").wait() == 0
    cut = tmp_path / "cut"
    chosen = random.Random(7)
    kills = 0
    for _ in range(12):
        process = start(cut)
        deadline = time.monotonic() + 60
        before = len(list(cut.glob("checkpoints/step-*")))
        while kills < 4 and process.poll() is None and time.monotonic() < deadline:
            if len(list(cut.glob("checkpoints/step-*"))) > before or before:
                time.sleep(chosen.uniform(0.0, 0.25))
                process.kill()
                kills += 1
                break
            time.sleep(0.01)
        process.wait()
        if (cut / "final").exists():
            break
    assert kills >= 3
    assert (cut / "final").read_bytes() == (tmp_path / "whole" / "final").read_bytes()


class Deep(nn.Module):
    """Two blocks with parameters, which are divided each by itself."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.net = nn.Sequential(nn.Linear(6, 5), nn.ReLU(), nn.Linear(5, 2))

    def forward(self, batch):
        return Step(nn.functional.cross_entropy(self.net(batch["input"]), batch["target"]))


class DeepTracking(Deep):
    """Keeps the logits of all samples in a buffer, and whether the first class is the likelier one."""

    def __init__(self):
        super().__init__()
        self.register_buffer("found", torch.zeros(64, 2))
        self.register_buffer("first", torch.zeros(64, dtype=torch.bool))

    def forward(self, batch):
        step = super().forward(batch)
        return Step(step.loss + self.net(batch["input"]).sub(self.found[batch["index"]]).square().mean())

    def track(self, batches, epoch):
        for batch in batches:
            logits = self.net(batch["input"])
            self.found[batch["index"]] = logits
            self.first[batch["index"]] = logits[:, 0] > logits[:, 1]


class Contrasting(nn.Module):
    """Batch normalization in the encoder and in the projector, and a loss of the whole batch."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        body = nn.Sequential(nn.Linear(6, 16), nn.BatchNorm1d(16), nn.ReLU(), nn.Linear(16, 8))
        head = nn.Sequential(nn.Linear(8, 8), nn.BatchNorm1d(8))
        self.learner = JointEmbedding(body, head, NTXent(0.5))

    def forward(self, batch):
        return self.learner({"views": [batch["input"], batch["input"].flip(1)]})


class Convolving(nn.Module):
    """Filters that lie in memory with channels last, as those of small_cnn do."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.net = nn.Sequential(nn.Conv2d(3, 4, 2), nn.ReLU(), nn.Flatten(), nn.Linear(4, 2))
        self.net.to(memory_format=torch.channels_last)

    def forward(self, batch):
        images = batch["input"].reshape(-1, 3, 1, 2).repeat(1, 1, 2, 1)
        return Step(nn.functional.cross_entropy(self.net(images), batch["target"]))


class InParts(nn.Module):
    """Has a backbone that takes batches in parts, and a loss of the whole batch."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.backbone = nn.Sequential(nn.Linear(6, 16), nn.GELU(), nn.Linear(16, 8))
        self.objective = NTXent(0.5)

    def forward(self, batch):
        return Step(self.objective(self.backbone(batch["input"]), self.backbone(batch["input"].flip(1))).total)


TWO = """
    import json
    import sys
    from pathlib import Path
    from appssl.artifact import write_bytes
    from appssl.engine import sharding
    from appssl.engine.fit import fit
    from safetensors.torch import save
    from tests.engine.training import Kept, Plain, settings
    from tests.engine import test_fit
    sharding._SMALLEST_BLOCK = 4  # so that blocks are divided too
    folder, strategy, steps = Path(sys.argv[1]), sys.argv[2], int(sys.argv[3])
    learner, processes, kept = getattr(test_fit, sys.argv[4])(), int(sys.argv[5]), Kept()
    where = {"accelerator": "cpu", "devices": processes, "strategy": strategy}
    how = {"optimizer": "sgd", "lr": 0.01} if sys.argv[4] == "Contrasting" else {}
    if sys.argv[4] == "InParts":
        how = {"backbone_batch": 3}
    config = settings(steps=steps, clip_norm=1.0, checkpoint_steps=4, **how)
    fit(learner, Plain(), config, state_dir=folder, journal=kept, seed=0, **where)
    write_bytes(folder / "final", save(learner.state_dict()))
    if kept.rows:
        write_bytes(folder / "losses.json", json.dumps([values["train/loss"] for _, values in kept.rows]).encode())
"""


def train_on_two(tmp_path, folder, strategy, steps, learner="Deep", processes=2):
    script = tmp_path / "train.py"
    script.write_text(textwrap.dedent(TWO))
    run = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", str(processes), "--standalone"]
    command = [*run, str(script), str(folder), strategy, str(steps), learner, str(processes)]
    env = environment(OMP_NUM_THREADS="1")
    done = subprocess.run(command, cwd=REPOSITORY, env=env, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return load_file(folder / "final")


@pytest.mark.slow
@pytest.mark.parametrize("strategy", ["ddp", "fsdp"])
def test_two_processes_train_as_one(tmp_path, strategy):
    two = train_on_two(tmp_path, tmp_path / "two", strategy, steps=12)
    alone = train(tmp_path / "one", learner=Deep(), steps=12, clip_norm=1.0)[0].state_dict()
    assert two.keys() == alone.keys()
    for name, tensor in two.items():
        torch.testing.assert_close(tensor, alone[name], atol=1e-6, rtol=1e-5)  # gradients are summed in another order


@pytest.mark.slow
def test_filters_with_channels_last_can_be_divided(tmp_path):
    assert not Convolving().net[0].weight.is_contiguous()
    two = train_on_two(tmp_path, tmp_path / "two", "fsdp", 12, "Convolving")
    alone = train(tmp_path / "one", learner=Convolving(), steps=12, clip_norm=1.0)[0].state_dict()
    for name, tensor in two.items():
        torch.testing.assert_close(tensor, alone[name], atol=1e-6, rtol=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("strategy", ["ddp", "fsdp"])
def test_two_processes_with_batches_in_parts_train_as_one_with_whole_batches(tmp_path, strategy):
    two = train_on_two(tmp_path, tmp_path / "two", strategy, 12, "InParts")
    alone = train(tmp_path / "one", learner=InParts(), steps=12, clip_norm=1.0)[0].state_dict()
    for name, tensor in alone.items():
        torch.testing.assert_close(two[name], tensor, atol=1e-5, rtol=1e-4)  # gradients are summed in another order


@pytest.mark.slow
@pytest.mark.parametrize(("strategy", "processes"), [("ddp", 2), ("ddp", 4), ("fsdp", 2)])
def test_the_loss_curve_with_batch_normalization_and_contrast_is_that_of_one_process(tmp_path, strategy, processes):
    final = train_on_two(tmp_path, tmp_path / "more", strategy, 12, "Contrasting", processes)
    # SGD: biases before a normalization have no gradient but rounding, which AdamW would make as large as any.
    how = {"steps": 12, "clip_norm": 1.0, "optimizer": "sgd", "lr": 0.01}
    alone, _, journal = train(tmp_path / "one", learner=Contrasting(), **how)
    losses = [values["train/loss"] for _, values in journal.rows]
    assert json.loads((tmp_path / "more" / "losses.json").read_text()) == pytest.approx(losses, rel=1e-5)
    for name, tensor in alone.state_dict().items():
        torch.testing.assert_close(final[name], tensor, atol=2e-6, rtol=1e-4)  # sums in another order, 12 times


@pytest.mark.slow
@pytest.mark.parametrize("strategy", ["ddp", "fsdp"])
def test_two_processes_track_as_one(tmp_path, strategy):
    two = train_on_two(tmp_path, tmp_path / "two", strategy, steps=9, learner="DeepTracking")
    alone = train(tmp_path / "one", learner=DeepTracking(), examples=Plain(), steps=9, clip_norm=1.0)[0].state_dict()
    assert two.keys() == alone.keys()
    for name, tensor in two.items():
        torch.testing.assert_close(tensor, alone[name], atol=1e-6, rtol=1e-5)  # gradients are summed in another order


@pytest.mark.slow
def test_a_divided_model_goes_on_from_the_checkpoint_of_one_process(tmp_path):
    """A checkpoint is whole: one process trains 6 of 12 steps, two with shards do the rest."""
    whole = train(tmp_path / "whole", learner=Deep(), steps=12, clip_norm=1.0, checkpoint_steps=4)[0].state_dict()
    shutil.copytree(tmp_path / "whole" / "checkpoints", tmp_path / "two" / "checkpoints")
    shutil.rmtree(max((tmp_path / "two" / "checkpoints").glob("step-*")))
    assert max(path.name for path in (tmp_path / "two" / "checkpoints").glob("step-*")).endswith("06")
    two = train_on_two(tmp_path, tmp_path / "two", "fsdp", steps=12)
    for name, tensor in two.items():
        torch.testing.assert_close(tensor, whole[name], atol=1e-6, rtol=1e-5)
