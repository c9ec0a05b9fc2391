import math

import pytest
import torch
from torch import nn

from appssl.contracts import Context, Meta
from appssl.errors import SettingsError
from appssl.learners.transformation_recognition import Config, build

META = Meta("test", "wearable", "classification")


def learner(views=3, hidden=4):
    torch.manual_seed(0)
    backbone = nn.Linear(5, 6)
    backbone.num_features = 6
    return build(Config(hidden=hidden), Context(META, backbone, (5,), num_samples=8, num_views=views))


def views(count=3, size=4):
    generator = torch.Generator().manual_seed(1)
    return [torch.randn(size, 5, generator=generator) for _ in range(count)]


def test_the_loss_is_the_sum_of_binary_cross_entropies():
    model, given = learner(), views()
    total, right = 0.0, []
    for k, head in enumerate(model.heads, start=1):
        own = 0.0
        for view, is_changed in ((given[0], 0), (given[k], 1)):
            for window in view:
                hidden = (head[0].weight @ model.backbone(window) + head[0].bias).clamp(min=0)
                logit = float((head[2].weight @ hidden + head[2].bias).detach())
                p = 1 / (1 + math.exp(-logit))
                own -= math.log(p if is_changed else 1 - p) / 8
                right.append((p > 0.5) == bool(is_changed))
        total += own
    step = model({"views": given})
    assert step.loss.item() == pytest.approx(total, rel=1e-5)
    assert step.metrics["accuracy"].item() == pytest.approx(sum(right) / len(right))


def test_a_head_that_knows_nothing_costs_log_two_each():
    model = learner(views=9)
    for head in model.heads:
        nn.init.zeros_(head[2].weight)
        nn.init.zeros_(head[2].bias)
    assert model({"views": views(9)}).loss.item() == pytest.approx(8 * math.log(2), rel=1e-6)


def test_gradients_reach_the_encoder_and_every_head_and_the_encoder_is_kept():
    model = learner()
    model({"views": views()}).loss.backward()
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in model.parameters() if p.ndim > 1)
    assert model.export() is model.backbone


def test_views_without_changes_are_refused():
    with pytest.raises(SettingsError, match="needs views: transformations"):
        learner(views=1)
