import math

import pytest
import torch
from torch import nn

from appssl.contracts import Context, Meta, Progress
from appssl.errors import SettingsError
from appssl.learners.ibot import Config, build, hidden_cross_entropy
from tests.learners.test_dino import literal, softmax
from tests.learners.test_mae import SHAPE, images, vit

META = Meta("test", "webnoisy", "classification")


def learner(backbone=None, views=2, **values):
    torch.manual_seed(0)
    given = {"num_prototypes": 7, "hidden": 8, "bottleneck": 4, "frozen_epochs": 0, **values}
    model = build(Config(**given), Context(META, backbone or vit(), SHAPE, 8, views))
    with torch.no_grad():  # the initial head is nearly the same for everything
        for p in [*model.head.layers.parameters(), *model.teacher_head.layers.parameters(), model.mask_token]:
            p.copy_(torch.randn_like(p))
    return model


def a_mask():
    """Of 2 x 3 images: one without hidden patches, others with different numbers."""
    mask = torch.zeros(6, 16, dtype=torch.bool)
    for row, count in enumerate([3, 0, 5, 1, 2, 4]):
        mask[row, torch.randperm(16, generator=torch.Generator().manual_seed(row))[:count]] = True
    return mask


def test_the_worked_number_of_the_patch_term():
    teacher = torch.tensor([[[0.2, 0, 0.1], [0, 0.2, 0.3]]], dtype=torch.float64)
    student = torch.tensor([[[0.1, 0.1, 0.1], [0, 0.1, 0.2]]], dtype=torch.float64)
    mask = torch.ones(1, 2, dtype=torch.bool)
    found = hidden_cross_entropy(student, (teacher / 0.07).softmax(2), mask, temperature=0.1)
    assert float(found) == pytest.approx(0.859689, abs=1e-6)


def test_the_patch_term_equals_loops_and_images_without_hidden_patches_count_zero():
    torch.manual_seed(1)
    student, teacher = torch.randn(2, 6, 16, 5, dtype=torch.float64)
    mask, total = a_mask(), 0.0
    for b in range(6):
        terms = []
        for i in range(16):
            if mask[b, i]:
                p, q = softmax(teacher[b, i] / 0.5), softmax(student[b, i] / 0.1)
                terms.append(-sum(x * math.log(y) for x, y in zip(p, q, strict=True)))
        total += sum(terms) / len(terms) / 6 if terms else 0
    found = hidden_cross_entropy(student, (teacher / 0.5).softmax(2), mask, temperature=0.1)
    assert float(found) == pytest.approx(total, rel=1e-10)
    none = torch.zeros_like(mask)
    assert float(hidden_cross_entropy(student, teacher.softmax(2), none, temperature=0.1)) == 0


@pytest.mark.parametrize("options", [{}, {"reg_tokens": 2}])
def test_the_step_is_dino_on_class_tokens_and_the_patch_term(options):
    """The student sees hidden patches as mask tokens, the teacher the whole crops; small crops pass the student."""
    model = learner(vit(dynamic_img_size=True, **options), 3, class_weight=0.5, patch_weight=2.0)
    views = [images(3, 0), images(3, 1), images(3, 2)[:, :, :8, :8]]
    mask = a_mask()
    net = model.backbone
    with torch.no_grad():
        model.center.normal_()
        model.patch_center.normal_()
        center, patch_center = model.center.clone(), model.patch_center.clone()
        first = net.num_prefix_tokens
        student, teacher = [], []
        for v in range(2):
            teacher.append(model.teacher_head(model.teacher_backbone.forward_features(views[v])))
            patches = net.patch_embed(views[v]).clone()
            patches[mask[3 * v : 3 * v + 3].reshape(3, 4, 4)] = model.mask_token
            student.append(model.head(net.norm(net.blocks(net._pos_embed(patches)))))
        small = model.head(net.forward_features(views[2])[:, 0])
    of_class = literal([*(s[:, 0] for s in student), small], [t[:, 0] for t in teacher], center, 0.1, 0.04)
    whole = torch.cat(teacher)[:, first:]
    targets = ((whole - patch_center) / 0.04).softmax(2)
    of_patches = hidden_cross_entropy(torch.cat(student)[:, first:], targets, mask, temperature=0.1)
    found = model.step(views, mask)
    assert float(found.metrics["loss_class"]) == pytest.approx(of_class, rel=1e-4)
    assert float(found.metrics["loss_patches"]) == pytest.approx(float(of_patches), rel=1e-4)
    assert float(found.loss.detach()) == pytest.approx(0.5 * of_class + 2 * float(of_patches), rel=1e-4)
    torch.testing.assert_close(model.patch_center, 0.9 * patch_center + 0.1 * whole.mean((0, 1)))
    torch.testing.assert_close(model.center, 0.9 * center + 0.1 * torch.cat(teacher)[:, 0].mean(0))


def test_about_the_given_share_of_crops_has_hidden_patches():
    model = learner(mask_probability=0.25)
    seen = []
    model.step = lambda views, mask: seen.append(mask)
    torch.manual_seed(0)
    model({"views": [images(400), images(400)]})
    assert seen[0].shape == (800, 16)
    assert seen[0].any(1).float().mean().item() == pytest.approx(0.25, abs=0.05)


def test_gradients_reach_everything_of_the_student_and_nothing_of_the_teacher():
    model = learner()
    model.step([images(3), images(3, 1)], a_mask()).loss.backward()
    trained = {name: p for name, p in model.named_parameters() if p.requires_grad}
    assert not any(name.startswith("teacher") for name in trained)
    assert [name for name, p in trained.items() if p.grad is None] == []
    assert trained["mask_token"].grad.abs().sum() > 0


def test_the_teacher_follows_and_is_exported_and_state_survives():
    model, views = learner(momentum=0.5), [images(3), images(3, 1)]
    with torch.no_grad():
        model.backbone.cls_token += 1
        before = model.teacher_backbone.cls_token.clone()
    model({"views": views})
    model.after_update(Progress(1, 10, 1))
    torch.testing.assert_close(model.teacher_backbone.cls_token, before + 0.5)
    assert float(model.patch_temperature) == pytest.approx(0.04 + 0.03 / 3)
    assert model.export() is model.teacher_backbone
    again = learner()
    again.load_state_dict(model.state_dict())
    losses = [each.eval().step(views, a_mask()).loss for each in (again, model)]
    assert torch.equal(*losses)


def test_half_precision_is_finite():
    with torch.autocast("cpu", dtype=torch.bfloat16):
        loss = learner()({"views": [images(3), images(3, 1)]}).loss
    assert loss.dtype == torch.float32
    assert torch.isfinite(loss)


def test_what_it_cannot_be_is_refused():
    with pytest.raises(SettingsError, match="needs two or more views: set views: multi_crop"):
        learner(views=1)
    with pytest.raises(SettingsError, match=r"learners/ibot needs the patches of a vision transformer; .*Linear"):
        learner(nn.Linear(3, 3))
    with pytest.raises(SettingsError, match="learners/ibot needs a class token"):
        learner(vit(class_token=False, global_pool="avg"))
