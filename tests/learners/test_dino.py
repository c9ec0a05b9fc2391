import math

import pytest
import torch
from torch import nn

from appssl.contracts import Context, Meta, Progress
from appssl.errors import SettingsError
from appssl.learners.dino import Config, build, temperature_at
from appssl.ops.distillation import cross_entropy_of_crops, moved_center
from tests.objectives.test_vicreg import Z1, Z2

META = Meta("test", "webnoisy", "classification")


def softmax(row):
    weights = [math.exp(float(x)) for x in row]
    return [w / sum(weights) for w in weights]


def literal(student, teacher, center, tau_s, tau_t):
    """Mean over pairs, with loops."""
    terms = []
    for a, target in enumerate(teacher):
        for v, crop in enumerate(student):
            if a == v:
                continue
            for t, s in zip(target, crop, strict=True):
                p, q = softmax((t - center) / tau_t), softmax(s / tau_s)
                terms.append(-sum(x * math.log(y) for x, y in zip(p, q, strict=True)))
    return sum(terms) / len(terms)


def ours(student, teacher, center, tau_s, tau_t):
    targets = [((t - center) / tau_t).softmax(1) for t in teacher]
    return float(cross_entropy_of_crops(student, targets, temperature=tau_s))


def test_the_worked_number():
    logits = [0.1 * Z1, 0.1 * Z2]
    assert ours(logits, logits, torch.zeros(3), 0.1, 0.04) == pytest.approx(0.769135, abs=1e-6)
    targets = torch.stack([(t / 0.04).softmax(1) for t in logits])
    assert float(torch.special.entr(targets).sum(-1).mean()) == pytest.approx(0.632525, abs=1e-6)


@pytest.mark.parametrize("count", [2, 5])
def test_equals_the_equation_written_out(count):
    torch.manual_seed(0)
    student, teacher = torch.randn(count, 4, 6, dtype=torch.float64), torch.randn(2, 4, 6, dtype=torch.float64)
    center = torch.randn(6, dtype=torch.float64)
    expected = literal(student, teacher, center, 0.1, 0.5)
    assert ours(list(student), list(teacher), center, 0.1, 0.5) == pytest.approx(expected, rel=1e-10)


def test_a_student_that_is_right_costs_the_entropy_of_the_teacher_and_no_less():
    torch.manual_seed(1)
    logits = torch.randn(2, 4, 6, dtype=torch.float64)
    targets = list((logits / 0.3).softmax(-1))
    entropy = float(torch.special.entr(torch.stack(targets)).sum(-1).mean())
    right = [target.log() * 0.1 for target in targets[::-1]]
    assert float(cross_entropy_of_crops(right, targets, temperature=0.1)) == pytest.approx(entropy)
    assert float(cross_entropy_of_crops(list(logits), targets, temperature=0.1)) > entropy


def test_centering_moves_away_from_one_prototype_and_sharpening_from_uniform():
    """A teacher that has one prototype for everything is uniform after centering; sharper temperatures undo uniform."""
    one = torch.zeros(2, 8, 5)
    one[..., 3] = 1.0
    center = torch.zeros(5)
    for _ in range(60):
        center = moved_center(center, one, 0.9)
    torch.testing.assert_close(center, one[0, 0], atol=2e-3, rtol=0)
    torch.testing.assert_close(((one - center) / 0.04).softmax(-1), torch.full((2, 8, 5), 0.2), atol=0.02, rtol=0)
    slightly = torch.tensor([0.1, 0.0, 0.0, 0.0, 0.0])
    assert (slightly / 0.04).softmax(0)[0] > 0.7 > (slightly / 1.0).softmax(0)[0]


def learner(views=2, network=None, **values):
    torch.manual_seed(0)
    backbone = network or nn.Linear(5, 6)
    backbone.num_features = 6
    given = {"num_prototypes": 7, "hidden": 8, "bottleneck": 4, "frozen_epochs": 0, **values}
    return build(Config(**given), Context(META, backbone, (5,), 8, views))


def crops(count=2, size=8, seed=1):
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(size, 5, generator=generator) for _ in range(count)]


class AnySize(nn.Module):
    num_features = 6

    def __init__(self):
        super().__init__()
        self.linear = nn.Linear(3, 6)

    def forward(self, x):
        return self.linear(x.mean(2))


def test_the_step_is_the_loss_of_student_and_teacher_and_small_crops_pass_the_student_only():
    model = learner(4, AnySize())
    generator = torch.Generator().manual_seed(3)
    views = [torch.randn(8, 3, side, generator=generator) for side in (4, 4, 2, 2)]
    with torch.no_grad():
        for p in [*model.teacher_head.parameters(), *model.teacher_backbone.parameters()]:
            p += 0.3 * torch.randn_like(p)
        model.center.normal_()
        center = model.center.clone()
        student = [model.head(model.backbone(x)) for x in views]
        teacher = [model.teacher_head(model.teacher_backbone(x)) for x in views[:2]]
    found = model({"views": views})
    expected = literal(student, teacher, center, 0.1, 0.04)
    assert float(found.loss.detach()) == pytest.approx(expected, rel=1e-4)
    torch.testing.assert_close(model.center, 0.9 * center + 0.1 * torch.cat(teacher).mean(0))


def test_gradients_reach_the_student_only():
    model = learner()
    model({"views": crops()}).loss.backward()
    student = [*model.backbone.parameters(), *model.head.parameters()]
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in student if p.ndim > 1)
    assert all(p.grad is None for p in [*model.teacher_backbone.parameters(), *model.teacher_head.parameters()])


def test_the_teacher_follows_the_student_and_prototypes_wait_for_the_second_epoch():
    model = learner(frozen_epochs=1, momentum=0.9)
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=0.1, weight_decay=0.1)
    moved = []
    for step in range(1, 5):
        before, teacher = model.head.prototypes.detach().clone(), model.teacher_backbone.weight.clone()
        optimizer.zero_grad()
        model({"views": crops(seed=step)}).loss.backward()
        optimizer.step()
        model.after_update(Progress(step, 8, 2))
        moved.append(not torch.allclose(model.head.prototypes, before, atol=1e-5))
        momentum = 1 - 0.1 * (math.cos(math.pi * (step - 1) / 8) + 1) / 2
        expected = momentum * teacher + (1 - momentum) * model.backbone.weight
        torch.testing.assert_close(model.teacher_backbone.weight, expected.detach())
    assert moved == [False, False, True, True]
    assert model.export() is model.teacher_backbone


def test_the_temperature_of_the_teacher_rises_over_its_share():
    config = Config(teacher_warmup=0.5)
    assert [temperature_at(config, s, 100) for s in (0, 25, 50, 90)] == pytest.approx([0.04, 0.055, 0.07, 0.07])
    assert temperature_at(Config(teacher_warmup=0), 0, 100) == pytest.approx(0.07)
    model = learner()
    assert float(model.teacher_temperature) == pytest.approx(0.04)
    model.after_update(Progress(15, 100, 10))
    assert float(model.teacher_temperature) == pytest.approx(0.055)


def test_state_survives_evaluation_changes_nothing_and_half_precision_is_finite():
    model = learner()
    model.eval()({"views": crops()})
    assert (model.center == 0).all()
    model.train()({"views": crops()})
    model.after_update(Progress(3, 4, 2))
    again = learner()
    again.load_state_dict(model.state_dict())
    assert torch.equal(again({"views": crops(seed=5)}).loss, model({"views": crops(seed=5)}).loss)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        step = model({"views": crops()})
    assert step.loss.dtype == torch.float32
    assert math.isfinite(float(step.loss.detach()))


def test_one_view_is_refused():
    with pytest.raises(SettingsError, match="needs two or more views: set views: multi_crop"):
        learner(1)
