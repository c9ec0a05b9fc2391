import json
import shutil
from contextlib import closing

import pytest
import torch
from torch import nn

from appssl.artifact import write_bytes
from appssl.engine import checkpoint as module
from appssl.engine.checkpoint import (
    Checkpoint,
    Writing,
    flatten_optimizer,
    newest_checkpoint,
    random_state,
    read_checkpoint,
    set_random_state,
    unflatten_optimizer,
    write_checkpoint,
)
from appssl.errors import ArtifactError


def state(step=1, fill=0.0):
    shared = torch.arange(6.0).reshape(2, 3) + fill
    model = {"weight": shared, "same": shared, "turned": shared.T, "half": shared.bfloat16(), "one": torch.tensor(7)}
    return Checkpoint(step, model, {"0.exp_avg": shared + 1}, {"optimizer": {"lr": 0.1 + 0.2, "betas": [0.9, 0.999]}})


def test_what_is_read_equals_what_was_written_bit_for_bit(tmp_path):
    written = state(12)
    write_checkpoint(tmp_path, written, keep=1)
    found = read_checkpoint(tmp_path / "step-0000000012")
    assert (found.step, found.values) == (12, written.values)
    for ours, theirs in ((written.model, found.model), (written.optimizer, found.optimizer)):
        assert ours.keys() == theirs.keys()
        assert all(torch.equal(ours[k], theirs[k]) and ours[k].dtype == theirs[k].dtype for k in ours)


def test_equal_state_is_equal_bytes(tmp_path):
    for name in ("a", "b"):
        write_checkpoint(tmp_path / name, state(3), keep=1)
    for file in ("model.safetensors", "optimizer.safetensors", "state.json"):
        one, two = (tmp_path / name / "step-0000000003" / file for name in ("a", "b"))
        assert one.read_bytes() == two.read_bytes()


def test_the_newest_is_found_and_only_some_are_kept(tmp_path):
    for step in (9, 10, 100):  # in order of numbers, not of letters
        write_checkpoint(tmp_path, state(step), keep=2)
    assert newest_checkpoint(tmp_path).step == 100
    assert sorted(p.name for p in tmp_path.iterdir()) == ["step-0000000010", "step-0000000100"]


def test_without_checkpoints_there_is_none(tmp_path):
    assert newest_checkpoint(tmp_path / "never") is None


def test_a_step_written_again_replaces_the_old_one(tmp_path):
    write_checkpoint(tmp_path, state(5), keep=2)
    write_checkpoint(tmp_path, state(5, fill=1.0), keep=2)
    assert torch.equal(newest_checkpoint(tmp_path).model["weight"], state(5, fill=1.0).model["weight"])


def flip(path, position=-2):
    content = bytearray(path.read_bytes())
    content[position] ^= 1
    path.write_bytes(content)


def change_a_plain_value(folder):
    values = json.loads((folder / "state.json").read_text())
    values["values"]["optimizer"]["lr"] = 0.5
    (folder / "state.json").write_text(json.dumps(values))


DAMAGE = {
    "bit in the model": lambda f: flip(f / "model.safetensors"),
    "bit in the optimizer": lambda f: flip(f / "optimizer.safetensors"),
    "file cut short": lambda f: (f / "model.safetensors").write_bytes((f / "model.safetensors").read_bytes()[:40]),
    "file missing": lambda f: (f / "optimizer.safetensors").unlink(),
    "state missing": lambda f: (f / "state.json").unlink(),
    "state no JSON": lambda f: (f / "state.json").write_text("{"),
    "state another JSON": lambda f: (f / "state.json").write_text("[1]"),
    "state without step": lambda f: (f / "state.json").write_text("{}"),
    "plain value changed": change_a_plain_value,
    "a file instead": lambda f: (shutil.rmtree(f), f.write_text("")),
}


@pytest.mark.parametrize("damage", DAMAGE.values(), ids=DAMAGE.keys())
def test_a_damaged_newest_one_falls_back_to_the_one_before_with_a_warning(tmp_path, capsys, damage):
    for step in (1, 2):
        write_checkpoint(tmp_path, state(step), keep=3)
    damage(tmp_path / "step-0000000002")
    with pytest.raises(ArtifactError, match="step-0000000002: damaged: "):
        read_checkpoint(tmp_path / "step-0000000002")
    assert newest_checkpoint(tmp_path).step == 1
    assert "warning: " in (text := capsys.readouterr().err)
    assert "step-0000000002: damaged" in text
    assert "Taking the one before." in text


def test_a_kill_while_writing_leaves_the_one_before(tmp_path, monkeypatch):
    write_checkpoint(tmp_path, state(1), keep=2)

    def killed(path, content):
        if path.name == "optimizer.safetensors":
            raise KeyboardInterrupt
        write_bytes(path, content)

    monkeypatch.setattr(module, "write_bytes", killed)
    with pytest.raises(KeyboardInterrupt):
        write_checkpoint(tmp_path, state(2), keep=2)
    monkeypatch.undo()
    assert newest_checkpoint(tmp_path).step == 1
    write_checkpoint(tmp_path, state(2), keep=2)  # what was left aside does not get in the way
    assert newest_checkpoint(tmp_path).step == 2
    assert [p for p in tmp_path.iterdir() if p.name.startswith(".")] == []


@pytest.mark.parametrize("name", ["AdamW", "SGD"])
def test_an_optimizer_goes_on_as_if_never_stopped(tmp_path, name):
    def make():
        torch.manual_seed(0)
        layer = nn.Linear(3, 2)
        options = {"momentum": 0.9} if name == "SGD" else {}
        return layer, getattr(torch.optim, name)(layer.parameters(), lr=0.1, **options)

    def update(layer, optimizer, seed):
        optimizer.zero_grad()
        layer(torch.randn(4, 3, generator=torch.Generator().manual_seed(seed))).square().sum().backward()
        optimizer.step()

    whole, optimizer = make()
    update(whole, optimizer, 1)
    tensors, plain = flatten_optimizer(optimizer.state_dict())
    write_checkpoint(tmp_path, Checkpoint(1, whole.state_dict(), tensors, {"optimizer": plain}), keep=1)
    update(whole, optimizer, 2)

    found = newest_checkpoint(tmp_path)
    again, other = make()
    again.load_state_dict(found.model)
    other.load_state_dict(unflatten_optimizer(found.optimizer, found.values["optimizer"]))
    update(again, other, 2)
    assert torch.equal(whole.weight, again.weight)


def test_random_numbers_go_on_where_they_were(tmp_path):
    torch.manual_seed(3)
    torch.rand(5)
    write_checkpoint(tmp_path, Checkpoint(1, random_state(), {}, {}), keep=1)
    expected = torch.rand(4)
    torch.manual_seed(99)
    set_random_state(newest_checkpoint(tmp_path).model)
    assert torch.equal(torch.rand(4), expected)


def test_what_is_written_beside_the_training_is_the_state_at_the_start(tmp_path):
    weights = torch.ones(2_000_000)
    with closing(Writing()) as writing:
        for step in (1, 2):
            weights.fill_(step)
            writing.start(tmp_path, Checkpoint(step, {"w": weights}, {"0.m": weights}, {}), keep=2)
            weights.fill_(-1)  # as the next step of the optimizer does
        writing.wait()
    for step in (1, 2):
        found = read_checkpoint(tmp_path / f"step-{step:010}")
        assert found.model["w"].unique().tolist() == found.optimizer["0.m"].unique().tolist() == [step]


def test_a_checkpoint_that_is_being_written_is_ended_when_the_training_fails(tmp_path):
    def fail():
        with closing(Writing()) as writing:
            writing.start(tmp_path, Checkpoint(7, {"w": torch.ones(2_000_000)}, {}, {}), keep=1)
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        fail()
    assert newest_checkpoint(tmp_path).step == 7


@pytest.mark.parametrize("then", ["wait", "start"])
def test_what_goes_wrong_in_writing_is_raised_by_the_next_call(tmp_path, then):
    (tmp_path / "checkpoints").write_text("a file where the folder should be")
    with closing(Writing()) as writing:
        writing.start(tmp_path / "checkpoints", Checkpoint(1, {}, {}, {}), keep=1)
        with pytest.raises(OSError, match="checkpoints"):
            writing.wait() if then == "wait" else writing.start(tmp_path / "b", Checkpoint(2, {}, {}, {}), keep=1)
