import copy

import pytest
import torch
from pydantic import ValidationError
from torch import nn

from appssl.contracts import Step
from appssl.engine.fit import fit
from appssl.engine.parts import InParts
from appssl.errors import SettingsError
from appssl.objectives.ntxent import nt_xent
from tests.engine.training import Kept, Noisy, settings, small


class Contrasting(nn.Module):
    """A contrastive loss over the batch: what a part sees alone would be another loss."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.backbone = nn.Sequential(nn.Linear(6, 32), nn.GELU(), nn.LayerNorm(32), nn.Dropout(0.0), nn.Linear(32, 4))

    def forward(self, batch):
        return Step(nt_xent(self.backbone(batch["input"]), self.backbone(-batch["input"]), temperature=0.5))


def train(folder, learner, **values):
    fit(learner, Noisy(), settings(**values), state_dir=folder, journal=Kept(), seed=0, accelerator="cpu")
    return learner


def test_gradients_are_those_of_the_whole_batch():
    torch.manual_seed(0)
    network = nn.Sequential(nn.Linear(6, 32), nn.Tanh(), nn.Linear(32, 4)).double()
    one, two = torch.randn(2, 10, 6, dtype=torch.float64)
    expected = torch.autograd.grad(nt_xent(network(one), network(two), temperature=0.1), list(network.parameters()))
    parts = InParts(network, 3)
    found = torch.autograd.grad(nt_xent(network(one), network(two), temperature=0.1), list(network.parameters()))
    parts.undo()
    torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-14)


def test_a_training_in_parts_is_one_of_whole_batches_and_goes_on(tmp_path):
    whole = train(tmp_path / "whole", Contrasting(), schedule="constant")
    train(tmp_path / "parts", Contrasting(), schedule="constant", steps=6, backbone_batch=5)
    parts = train(tmp_path / "parts", Contrasting(), schedule="constant", backbone_batch=5)
    accumulated = train(tmp_path / "accumulated", Contrasting(), schedule="constant", accumulate=4)
    for name, tensor in whole.state_dict().items():
        torch.testing.assert_close(parts.state_dict()[name], tensor, rtol=1e-4, atol=1e-6)  # sums in another order
    first = "backbone.0.weight"
    assert not torch.allclose(accumulated.state_dict()[first], whole.state_dict()[first], rtol=1e-2, atol=1e-3)


def test_dropout_is_the_same_when_a_part_is_computed_again():
    network = nn.Sequential(nn.Linear(6, 64), nn.Dropout(0.5))
    InParts(network, 3)
    made = network(torch.ones(7, 6))
    (gradient,) = torch.autograd.grad(made.sum(), network[0].bias)
    kept = (made != 0).sum(0) * 2.0  # each value that was kept counts twice
    torch.testing.assert_close(gradient, kept)


def test_batch_normalization_sees_parts_and_remembers_each_once():
    plain, divided = (nn.BatchNorm1d(4, momentum=0.1) for _ in range(2))
    inputs = torch.randn(9, 4)
    for part in inputs.split(3):
        plain(part)
    InParts(divided, 3)
    divided(inputs.requires_grad_()).square().sum().backward()
    assert divided.num_batches_tracked == 3
    torch.testing.assert_close(divided.running_mean, plain.running_mean)
    torch.testing.assert_close(divided.running_var, plain.running_var)
    assert divided.momentum == 0.1


class Wide(nn.Module):
    """Counts what it is given at once."""

    def __init__(self):
        super().__init__()
        self.linear, self.sizes = nn.Linear(6, 2), []

    def forward(self, inputs):
        self.sizes.append((len(inputs), torch.is_grad_enabled()))
        return self.linear(inputs)


def test_parts_are_of_the_given_size_and_only_where_gradients_are_needed():
    network = Wide()
    parts = InParts(network, 4)
    network(torch.ones(10, 6)).sum().backward()
    assert network.sizes == [(size, True) for size in (4, 4, 2, 2, 4, 4)]  # backward from the last part on
    network.sizes.clear()
    with torch.no_grad():
        network(torch.ones(10, 6))
    network(torch.ones(4, 6))
    parts.undo()
    network(torch.ones(10, 6))
    assert [size for size, _ in network.sizes] == [10, 4, 10]


def test_memory_of_activations_is_that_of_a_part():
    """Bytes that autograd keeps for the backward pass."""
    network = nn.Sequential(nn.Linear(8, 512), nn.GELU(), nn.Linear(512, 512), nn.GELU(), nn.Linear(512, 8))

    def kept() -> int:
        sizes = []
        with torch.autograd.graph.saved_tensors_hooks(lambda t: sizes.append(t.numel()) or t, lambda t: t):
            network(torch.ones(1024, 8))
        return sum(sizes)

    whole = kept()
    InParts(network, 64)
    assert kept() < whole / 20


def test_a_copy_of_the_backbone_has_its_own_weights():
    network = Wide()
    InParts(network, 4)
    copied = copy.deepcopy(network)
    with torch.no_grad():
        network.linear.weight.zero_()
        network.linear.bias.zero_()
    assert (copied(torch.ones(10, 6)) != 0).any()
    assert list(copied.state_dict()) == ["linear.weight", "linear.bias"]


def test_a_backbone_is_whole_again_after_training_and_after_an_error(tmp_path):
    learner = train(tmp_path, Contrasting(), backbone_batch=4)
    assert "forward" not in vars(learner.backbone)

    class Failing(Contrasting):
        def forward(self, batch):
            raise RuntimeError("on purpose")

    failing = Failing()
    with pytest.raises(RuntimeError, match="on purpose"):
        train(tmp_path / "failing", failing, backbone_batch=4)
    assert "forward" not in vars(failing.backbone)


def test_what_cannot_be_divided_says_so(tmp_path):
    with pytest.raises(SettingsError, match=r"fit\.backbone_batch: this method has no backbone"):
        train(tmp_path / "without", small(), backbone_batch=4)

    class Around(Contrasting):
        def forward(self, batch):
            return Step(self.backbone[4](self.backbone[0](batch["input"])).square().mean())

    with pytest.raises(SettingsError, match="does not pass whole inputs through its backbone"):
        train(tmp_path / "around", Around(), backbone_batch=4)
    with pytest.raises(ValidationError, match="leave out compile or backbone_batch"):
        settings(compile=True, backbone_batch=4)
