import math

import pytest
import torch
from torch import nn

from appssl.contracts import Context, Meta, Progress
from appssl.errors import SettingsError
from appssl.learners.byol import Config, build
from appssl.ops.predictions import mean_cosine_of_pairs
from tests.objectives.test_vicreg import Z1, Z2

META = Meta("test", "webnoisy", "classification")


def learner(views=2, **values):
    torch.manual_seed(0)
    backbone = nn.Linear(5, 6)
    backbone.num_features = 6
    given = {"projector_hidden": 8, "projector_out": 4, "predictor_hidden": 7, **values}
    return build(Config(**given), Context(META, backbone, (5,), 8, views))


def views(count=2, size=8):
    generator = torch.Generator().manual_seed(1)
    return [torch.randn(size, 5, generator=generator) for _ in range(count)]


def through(head, x):
    """Linear, batch normalization, ReLU, linear."""
    h = x @ head[0].weight.T
    h = (h - h.mean(0)) / torch.sqrt(h.var(0, unbiased=False) + 1e-5)
    return h.clamp(min=0) @ head[3].weight.T + head[3].bias


def literal(model, given):
    total, pairs = 0.0, 0
    for v, seen in enumerate(given):
        for w, other in enumerate(given):
            if v == w:
                continue
            p = through(model.predictor, through(model.projector, model.backbone(seen)))
            z = through(model.target_projector, model.target_backbone(other))
            total += sum(2 - 2 * float(a @ b / (a.norm() * b.norm())) for a, b in zip(p, z, strict=True)) / len(p)
            pairs += 1
    return total * 2 / pairs


def test_the_worked_number_of_one_direction():
    z = [torch.zeros_like(Z1), Z2]  # a prediction of zero is orthogonal to everything
    found = mean_cosine_of_pairs([Z1, torch.zeros_like(Z1)], z)  # half of the cosine of the one direction
    assert 2 - 2 * 2 * float(found) == pytest.approx(0.067131, abs=1e-6)


@pytest.mark.parametrize("count", [2, 3])
def test_the_loss_equals_the_transcription(count):
    model, given = learner(count), views(count)
    with torch.no_grad():
        for p in [*model.target_backbone.parameters(), *model.target_projector.parameters()]:
            p += 0.1 * torch.randn_like(p) * (p.ndim > 1)  # the transcription leaves scales at 1
        expected = literal(model, given)
    step = model({"views": given})
    assert float(step.loss.detach()) == pytest.approx(expected, rel=1e-5)
    assert float(step.metrics["cosine"]) == pytest.approx(1 - expected / 4, rel=1e-4)


def test_perfect_predictions_cost_nothing_and_opposite_ones_eight():
    model = learner()
    model.predictor = nn.Identity()
    x = views(1)[0]
    assert float(model({"views": [x, x]}).loss.detach()) == pytest.approx(0, abs=1e-5)
    with torch.no_grad():
        model.target_projector[3].weight.neg_()
        model.target_projector[3].bias.neg_()
    assert float(model({"views": [x, x]}).loss.detach()) == pytest.approx(8, rel=1e-6)


def test_gradients_reach_the_online_networks_only():
    model = learner()
    model({"views": views()}).loss.backward()
    online = [model.backbone, model.projector, model.predictor]
    assert all(p.grad.abs().sum() > 0 for network in online for p in network.parameters() if p.ndim > 1)
    target = [*model.target_backbone.parameters(), *model.target_projector.parameters()]
    assert all(p.grad is None and not p.requires_grad for p in target)


def test_the_target_follows_with_a_rising_momentum():
    model = learner(momentum=0.9)
    old = model.target_backbone.weight.clone(), model.target_projector[3].weight.clone()
    with torch.no_grad():
        model.backbone.weight += 1
        model.projector[3].weight += 1
    model.after_update(Progress(1, 8, 2))
    torch.testing.assert_close(model.target_backbone.weight, old[0] + 0.1)
    torch.testing.assert_close(model.target_projector[3].weight, old[1] + 0.1)
    model.after_update(Progress(5, 8, 2))  # half way: k = 4 of 8
    moved = 1 - 0.9 * 0.95
    torch.testing.assert_close(model.target_backbone.weight, old[0] + moved)
    still = model.target_backbone.weight.clone()
    model.after_update(Progress(9, 8, 2))
    torch.testing.assert_close(model.target_backbone.weight, still)


def test_views_are_normalized_apart():
    """Shifting all of one view changes nothing, which it would if views were one batch."""
    model, (one, other) = learner(), views()
    model.backbone = nn.Identity()
    model.target_backbone = nn.Identity()
    model.projector = model.target_projector = nn.BatchNorm1d(5, affine=False)
    model.predictor = nn.Identity()
    shifted = model({"views": [one + 100, other]}).loss
    torch.testing.assert_close(shifted, model({"views": [one, other]}).loss, rtol=1e-3, atol=1e-4)


def test_half_precision_state_and_export():
    model, given = learner(), views()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        loss = model({"views": given}).loss
    assert loss.dtype == torch.float32
    assert math.isfinite(float(loss.detach()))
    again = learner()
    model.after_update(Progress(1, 4, 2))
    again.load_state_dict(model.state_dict())
    assert torch.equal(again({"views": given}).loss, model({"views": given}).loss)
    assert model.export() is model.backbone


def test_one_view_is_refused():
    with pytest.raises(SettingsError, match="needs two or more views: set num_views"):
        learner(1)
