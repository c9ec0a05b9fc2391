import copy

import pytest
import torch
from torch import nn

from appssl.contracts import Context, Meta
from appssl.engine.fit import make_optimizer
from appssl.errors import SettingsError
from appssl.finetuners.full import Config, build
from appssl.recipe import Fit
from tests.finetuners.test_linear_probe import Encoder, batch

META = Meta(source="test", domain="wsi", task="classification", classes=("a", "b", "c"))


def learner(encoder=None, **values):
    torch.manual_seed(1)
    facts = {"class_counts": [1.0, 2.0, 5.0]}
    return build(Config(**values), Context(META, encoder or Encoder(), (4,), num_samples=8, facts=facts))


def linear_encoder():
    torch.manual_seed(0)
    encoder = nn.Linear(4, 5)
    encoder.num_features = 5
    return encoder


def test_loss_equals_cross_entropy_written_out():
    tuned, data = learner(linear_encoder()), batch()
    weight, bias = tuned.head[1].weight, tuned.head[1].bias
    logits = tuned.backbone(data["input"]) @ weight.T + bias
    own = -logits.log_softmax(1)[range(8), data["target"]]
    torch.testing.assert_close(tuned.train()(data).loss, (own * data["weight"]).sum() / 8)


def test_a_frozen_encoder_is_trained_again():
    encoder = linear_encoder().requires_grad_(False)
    tuned = learner(encoder)
    tuned.train()(batch()).loss.backward()
    assert encoder.weight.grad.abs().sum() > 0
    assert tuned.head[1].weight.grad.abs().sum() > 0


def test_every_parameter_is_in_one_group_and_the_encoder_has_its_own_rate():
    tuned = learner(backbone_lr_scale=0.1)
    groups = tuned.param_groups()
    grouped = [id(p) for group in groups for p in group["params"]]
    assert sorted(grouped) == sorted(id(p) for p in tuned.parameters())
    assert [group["lr_scale"] for group in groups] == [0.1, 1.0]


def test_with_scale_zero_the_encoder_stays_and_the_head_moves():
    tuned = learner(linear_encoder(), backbone_lr_scale=0.0)
    before = copy.deepcopy(tuned.state_dict())
    optimizer = make_optimizer(tuned, Fit(optimizer="sgd", lr=0.1))
    for group in optimizer.param_groups:  # what the training loop does
        group["lr"] = 0.1 * group["lr_scale"]
    tuned.train()(batch()).loss.backward()
    optimizer.step()
    assert torch.equal(before["backbone.weight"], tuned.backbone.weight)
    assert not torch.equal(before["head.1.weight"], tuned.head[1].weight)


def test_dropout_is_off_in_the_exported_model():
    tuned = learner(linear_encoder(), dropout=0.9)
    inputs = batch()["input"]
    model = tuned.export().eval()
    assert torch.equal(model(inputs), model(inputs))
    tuned.train()
    torch.manual_seed(0)
    assert not torch.equal(tuned.head(tuned.backbone(inputs)), tuned.head(tuned.backbone(inputs)))


def test_smoothing_and_class_weights_reach_the_loss():
    plain, data = learner(linear_encoder()), batch()
    smooth = learner(linear_encoder(), label_smoothing=0.5)
    balanced = learner(linear_encoder(), class_weight="balanced")
    losses = [float(tuned.train()(data).loss.detach()) for tuned in (plain, smooth, balanced)]
    assert len(set(losses)) == 3


class InBlocks(nn.Module):
    """Two blocks with running statistics."""

    num_features = 5

    def __init__(self):
        super().__init__()
        sizes = ((4, 6), (6, 5))
        self.blocks = nn.Sequential(*(nn.Sequential(nn.Linear(i, o), nn.BatchNorm1d(o)) for i, o in sizes))

    def forward(self, x):
        return self.blocks(x)


def test_frozen_blocks_stay_as_they_are_and_the_others_move():
    tuned = learner(InBlocks(), frozen_blocks=1, hidden=7)
    before = copy.deepcopy(tuned.state_dict())
    optimizer = make_optimizer(tuned, Fit(optimizer="sgd", lr=0.1))
    for _ in range(3):
        tuned.train()(batch()).loss.backward()
        optimizer.step()
    after = tuned.state_dict()
    assert all(torch.equal(before[key], after[key]) for key in before if key.startswith("backbone.blocks.0"))
    assert not torch.equal(before["backbone.blocks.1.0.weight"], after["backbone.blocks.1.0.weight"])
    assert tuned.head[1].weight.shape == (7, 5)
    assert tuned.head[3].weight.shape == (3, 7)
    assert tuned.export().eval()(batch()["input"]).shape == (8, 3)


def test_more_frozen_blocks_than_there_are_is_refused():
    with pytest.raises(SettingsError, match=r"frozen_blocks is 2, but this encoder has 2 blocks"):
        learner(InBlocks(), frozen_blocks=2)
    with pytest.raises(SettingsError, match="is not made of blocks"):
        learner(linear_encoder(), frozen_blocks=1)
