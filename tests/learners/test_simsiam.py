import math

import pytest
import torch
from torch import nn

from appssl.contracts import Context, Meta
from appssl.errors import SettingsError
from appssl.learners.simsiam import Config, build, output_std

META = Meta("test", "webnoisy", "classification")


def learner(views=2, **values):
    torch.manual_seed(0)
    backbone = nn.Linear(5, 6)
    backbone.num_features = 6
    given = {"projector_out": 4, "projector_layers": 2, "predictor_hidden": 7, **values}
    return build(Config(**given), Context(META, backbone, (5,), 8, views)).double()


def views(count=2, size=8):
    generator = torch.Generator().manual_seed(1)
    return [torch.randn(size, 5, generator=generator, dtype=torch.float64) for _ in range(count)]


def normalized(h):
    return (h - h.mean(0)) / torch.sqrt(h.var(0, unbiased=False) + 1e-5)


def projected(model, x):
    head = model.projector
    return normalized(normalized(model.backbone(x) @ head[0].weight.T).clamp(min=0) @ head[3].weight.T)


def predicted(model, z):
    head = model.predictor
    return normalized(z @ head[0].weight.T).clamp(min=0) @ head[3].weight.T + head[3].bias


def negative_cosine(p, z):
    return -sum(a @ b / (a.norm() * b.norm()) for a, b in zip(p, z, strict=True)) / len(p)


def test_the_loss_equals_the_transcription():
    model, given = learner(), views()
    z = [projected(model, x) for x in given]
    p = [predicted(model, x) for x in z]
    expected = negative_cosine(p[0], z[1]) / 2 + negative_cosine(p[1], z[0]) / 2
    torch.testing.assert_close(model({"views": given}).loss, expected)


def test_gradients_are_those_with_constant_targets():
    model, given = learner(), views()
    z = [projected(model, x) for x in given]
    p = [predicted(model, x) for x in z]
    expected = negative_cosine(p[0], z[1].detach()) / 2 + negative_cosine(p[1], z[0].detach()) / 2
    weights = [parameter for parameter in model.parameters() if parameter.ndim > 1]
    wanted = torch.autograd.grad(expected, weights, retain_graph=True)
    found = torch.autograd.grad(model({"views": given}).loss, weights)
    for one, other in zip(found, wanted, strict=True):
        torch.testing.assert_close(one, other)
    symmetric = negative_cosine(p[0], z[1]) / 2 + negative_cosine(p[1], z[0]) / 2
    through_targets = torch.autograd.grad(symmetric, model.backbone.weight)[0]
    assert not torch.allclose(through_targets, wanted[0])


def test_more_views_are_averaged_over_pairs_and_without_a_predictor_equal_views_reach_minus_one():
    model, given = learner(3), views(3)
    z = [projected(model, x) for x in given]
    pairs = [negative_cosine(predicted(model, z[v]), z[w]) for v in range(3) for w in range(3) if v != w]
    torch.testing.assert_close(model({"views": given}).loss, torch.stack(pairs).mean())
    model.predictor = nn.Identity()
    assert float(model({"views": [given[0]] * 2}).loss.detach()) == pytest.approx(-1)


def test_the_spread_tells_a_collapse():
    same = torch.ones(9, 16)
    assert float(output_std(same)) == pytest.approx(0, abs=1e-6)
    torch.manual_seed(0)
    assert float(output_std(torch.randn(4000, 16))) == pytest.approx(1, abs=0.02)
    assert math.isfinite(float(output_std(torch.zeros(3, 4))))


def test_default_layers_are_those_of_the_paper():
    kinds = [type(layer) for layer in learner(projector_layers=3).projector]
    block = [nn.Linear, nn.BatchNorm1d, nn.ReLU]
    assert kinds == [*block, *block, nn.Linear, nn.BatchNorm1d]
    assert Config().projector_layers == 3


def test_half_precision_export_and_one_view():
    model = learner().float()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        loss = model({"views": [v.float() for v in views()]}).loss
    assert loss.dtype == torch.float32
    assert -1 <= float(loss.detach()) <= 1
    assert model.export() is model.backbone
    with pytest.raises(SettingsError, match="needs two or more views: set num_views"):
        learner(1)
