"""A training that goes on where another one stopped: from its weights before the annealing, not after it."""

from dataclasses import replace

import pytest
import torch
from torch import nn

from appssl.engine.checkpoint import newest_checkpoint, read_checkpoint
from appssl.engine.fit import InterruptedTraining, fit
from appssl.errors import SettingsError
from tests.engine.training import Kept, Noisy, Plain, settings, small, tracking


def infinite(constant_end):
    return {"name": "infinite", "cooldown_end": 0.25, "constant_end": constant_end}


def train(folder, learner=None, examples=None, start=None, **values):
    learner = learner or small()
    fit(
        learner,
        examples or Noisy(),
        settings(**values),
        state_dir=folder / "state",
        journal=Kept(),
        seed=0,
        accelerator="cpu",
        start=start,
        onward=folder / "onward",
    )
    return learner, newest_checkpoint(folder / "onward")


def weights(checkpoint):
    return {name: tensor for name, tensor in checkpoint.model.items() if not name.startswith("random.")}


def same(one, two):
    return one.keys() == two.keys() and all(torch.equal(one[name], two[name]) for name in one)


def test_what_is_handed_on_is_from_before_the_annealing(tmp_path):
    learner, kept = train(tmp_path / "a", steps=8, schedule=infinite(0.5))
    assert kept.step == 4
    assert not same(weights(kept), learner.state_dict())
    # With a longer constant phase the fourth step is the same one.
    train(tmp_path / "b", steps=8, schedule=infinite(0.75), log_every=4, checkpoint_steps=4)
    longer = read_checkpoint(tmp_path / "b/state/checkpoints/step-0000000004")
    assert same(weights(kept), weights(longer))
    assert same(kept.optimizer, longer.optimizer)


@pytest.mark.parametrize("schedule", ["constant", "cosine"])
def test_without_an_annealing_the_end_is_handed_on(tmp_path, schedule):
    learner, kept = train(tmp_path, steps=6, schedule={"name": schedule})
    assert kept.step == 6
    assert same(weights(kept), learner.state_dict())


def test_a_training_that_was_stopped_after_the_branch_hands_on_the_same(tmp_path):
    class Stopping(Noisy):
        def batch(self, indices, *, seed, epoch):
            if len(self.asked) == 6:
                raise InterruptedTraining("as if killed")
            return super().batch(indices, seed=seed, epoch=epoch)

    values = {"steps": 8, "schedule": infinite(0.5), "log_every": 1, "checkpoint_steps": 5}
    whole, kept = train(tmp_path / "whole", **values)
    with pytest.raises(InterruptedTraining):
        train(tmp_path / "cut", examples=Stopping(), **values)
    learner, again = train(tmp_path / "cut", **values)
    assert same(learner.state_dict(), whole.state_dict())
    assert same(kept.model, again.model)


def test_the_next_training_begins_with_these_weights_and_moments(tmp_path):
    _, start = train(tmp_path / "a", steps=8, schedule=infinite(0.5))
    learner, after = train(tmp_path / "b", start=start, steps=1, lr=1e-30, weight_decay=0.0)
    trained = {name for name, _ in learner.named_parameters()}
    assert all(torch.equal(learner.state_dict()[name], start.model[name]) for name in trained)
    assert float(after.optimizer["0.step"]) == float(start.optimizer["0.step"]) + 1 == 5


def test_a_rate_is_that_of_the_training_that_goes_on(tmp_path):
    _, start = train(tmp_path / "a", steps=4, lr=1e-3)
    _, after = train(tmp_path / "b", start=start, steps=1, lr=0.25, schedule={"name": "constant"})
    assert after.values["optimizer"]["param_groups"][0]["lr"] == 0.25


def test_moments_can_be_left_behind(tmp_path):
    _, start = train(tmp_path / "a", steps=4)
    _, after = train(tmp_path / "b", start=replace(start, optimizer={}), steps=2)
    assert float(after.optimizer["0.step"]) == 2


def test_a_resumed_training_does_not_begin_again(tmp_path):
    _, start = train(tmp_path / "a", steps=4)
    whole, _ = train(tmp_path / "b", start=start, steps=8)
    train(tmp_path / "c", start=start, steps=8, log_every=2, checkpoint_steps=2)
    for folder in sorted((tmp_path / "c/state/checkpoints").glob("step-*"))[1:]:
        for file in folder.iterdir():
            file.unlink()
        folder.rmdir()
    learner, _ = train(tmp_path / "c", start=start, steps=8, log_every=2, checkpoint_steps=2)
    assert same(learner.state_dict(), whole.state_dict())


def test_another_learner_or_another_size_of_data_is_refused(tmp_path):
    _, start = train(tmp_path / "a", steps=2)
    with pytest.raises(SettingsError, match=r"has other weights.*: found"):
        train(tmp_path / "b", learner=tracking(), examples=Plain(), start=start, steps=2)
    wider = small()
    wider.net[4] = nn.Linear(16, 3)
    with pytest.raises(SettingsError, match=r"has other weights.*net\.4"):
        train(tmp_path / "c", learner=wider, start=start, steps=2)
