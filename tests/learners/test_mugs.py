"""The three granularities of Mugs, image by image; the losses themselves are in tests/ops/test_crop_pairs.py."""

import math

import pytest
import torch
from pydantic import ValidationError
from torch import nn

from appssl.contracts import Context, Meta, Progress
from appssl.errors import SettingsError
from appssl.learners.mugs import Config, build, temperature_at
from tests.learners.test_dino import softmax
from tests.learners.test_mae import SHAPE, images, vit
from tests.ops.test_crop_pairs import literal_contrast, literal_mean
from tests.processes import on_two

META = Meta("test", "webnoisy", "classification")


def learner(backbone=None, views=2, **values):
    torch.manual_seed(0)
    given = {"num_prototypes": 7, "hidden": 8, "bottleneck": 4, "predictor_hidden": 6, "queue": 10, "memory": 5}
    given |= {"num_neighbors": 3, "frozen_epochs": 0, **values}
    model = build(Config(**given), Context(META, backbone or vit(dynamic_img_size=True), SHAPE, 8, views))
    with torch.no_grad():  # at the start heads are nearly the same for everything, and the teacher is the student
        for p in model.parameters():
            p += 0.3 * torch.randn_like(p)
    return model.double()


def crops(size=4, seed=0):
    """Two large crops and one small one."""
    large, small = images(2 * size, seed), images(size, seed + 100)
    return [view.double() for view in (*large.chunk(2), small[:, :, :8, :8])]


def normalized(vector):
    return vector / vector.norm()


def written_out(branch, image):
    """Class token, mean of all tokens, mean patch and local group of one image (C, H, W), with the network's parts."""
    net = branch.backbone
    tokens = net.blocks(net._pos_embed(net.patch_embed(image[None])))[0]
    last = net.norm(tokens)
    q = sum(tokens) / len(tokens)
    patch = sum(last[net.num_prefix_tokens :]) / len(last[net.num_prefix_tokens :])
    stored = [row for row in branch.memory.rows if row.abs().sum() > 0]
    stored.sort(key=lambda row: -float(normalized(q) @ normalized(row)))
    sequence = torch.stack([q, *stored[: branch.num_neighbors]])
    return last[0], patch, net.norm(branch.relation(sequence[None]))[0, 0]


def expected_losses(model, views):
    """(instance, local group, group) and teacher entropies, image by image."""
    student = [[written_out(model.student, image) for image in view] for view in views]
    teacher = [[written_out(model.teacher, image) for image in view] for view in views[:2]]
    queues = [[row for row in q.rows if row.abs().sum() > 0] for q in (model.instance_queue, model.local_queue)]

    def contrast(part, head, predictor, queue):
        def loss(t, s, i):
            of_student = getattr(model.student, head)(student[s][i][part])
            p = normalized(predictor(normalized(of_student)))
            y = normalized(getattr(model.teacher, head)(teacher[t][i][part]))
            return literal_contrast(p, y, queue, 0.2)

        return loss

    def group(t, s, i):
        target = (model.teacher.group(teacher[t][i][0]) - model.center) / model.teacher_temperature
        a, b = softmax(target), softmax(model.student.group(student[s][i][0]) / 0.1)
        return -sum(x * math.log(y) for x, y in zip(a, b, strict=True))

    losses = (
        contrast(0, "instance", model.instance_predictor, queues[0]),
        contrast(2, "local", model.local_predictor, queues[1]),
        group,
    )
    return [literal_mean(2, len(views), len(views[0]), loss) for loss in losses]


@pytest.mark.parametrize("steps_before", [0, 1, 3])
@pytest.mark.parametrize("options", [{}, {"reg_tokens": 2}])
def test_the_step_is_the_three_losses_written_out(steps_before, options):
    """With empty, partly filled and wrapped queues and memories, and weights that multiply."""
    model = learner(vit(dynamic_img_size=True, **options), instance_weight=0.5, local_weight=2.0, group_weight=1.5)
    with torch.no_grad():
        for step in range(steps_before):
            model({"views": crops(2, seed=10 + step)})
        model.center.normal_()
        expected = expected_losses(model, crops())
        found = model({"views": crops()})
    terms = [float(found.metrics[f"loss_{name}"]) for name in ("instance", "local", "group")]
    assert terms == pytest.approx(expected, rel=1e-9)
    assert (terms[0] > 0) == (terms[1] > 0) == (steps_before > 0)  # without negatives there is no contrast
    assert float(found.loss) == pytest.approx((0.5 * terms[0] + 2 * terms[1] + 1.5 * terms[2]) / 4, rel=1e-9)


@pytest.mark.parametrize("options", [{}, {"reg_tokens": 2}])
def test_what_is_remembered(options):
    """Both crops of the teacher in the queues; the mean patch of the first crop, of each branch in its own memory."""
    model, views = learner(vit(dynamic_img_size=True, **options)), crops()
    center = model.center.clone().normal_()
    with torch.no_grad():
        model.center.copy_(center)
        of_teacher = [[written_out(model.teacher, image) for image in view] for view in views[:2]]
        of_student = [written_out(model.student, image) for image in views[0]]
        in_order = [of_teacher[v][i] for i in range(4) for v in range(2)]
        keys = [normalized(model.teacher.instance(made[0])) for made in in_order]
        local = [normalized(model.teacher.local(made[2])) for made in in_order]
        logits = torch.stack([model.teacher.group(made[0]) for made in in_order])
        model({"views": views})
    torch.testing.assert_close(model.instance_queue.rows[:8], torch.stack(keys))
    torch.testing.assert_close(model.local_queue.rows[:8], torch.stack(local))
    torch.testing.assert_close(model.student.memory.rows[:4], torch.stack([made[1] for made in of_student]))
    torch.testing.assert_close(model.teacher.memory.rows[:4], torch.stack([made[1] for made in of_teacher[0]]))
    torch.testing.assert_close(model.center, 0.9 * center + 0.1 * logits.mean(0))
    memories = [model.instance_queue, model.local_queue, model.student.memory, model.teacher.memory]
    assert [int(memory.num_added) for memory in memories] == [8, 8, 4, 4]


def test_without_neighbors_the_local_group_is_the_image_alone():
    """Attention of one token is its value, whatever is in the memory; the same while the memory is empty."""
    model = learner(num_neighbors=0)
    branch, q = model.student, torch.randn(5, 8, dtype=torch.float64)
    with torch.no_grad():
        model({"views": crops()})
        block = branch.relation
        value = block.attn.qkv(block.norm1(q))[:, 16:]
        seen = q + block.attn.proj(value)
        expected = branch.backbone.norm(seen + block.mlp(block.norm2(seen)))
        torch.testing.assert_close(branch.local_group(q), expected)
        torch.testing.assert_close(learner().student.local_group(q), expected)


def test_a_group_does_not_depend_on_the_order_or_the_length_of_its_neighbors():
    """There are no positions, and the block normalizes: the residual path has the image only."""
    branch = learner().student
    rows, q = torch.randn(3, 8, dtype=torch.float64), torch.randn(2, 8, dtype=torch.float64)
    found = []
    for stored in (rows, rows.flip(0), rows * torch.tensor([[3.0], [9.0], [2.0]])):
        branch.memory.num_added.zero_()
        branch.memory.add(stored)
        found.append(branch.local_group(q))
    torch.testing.assert_close(found[1], found[0])
    torch.testing.assert_close(found[2], found[0], rtol=1e-4, atol=1e-4)  # but for the epsilon of the normalization
    branch.memory.add(torch.randn(3, 8, dtype=torch.float64))
    assert not torch.allclose(branch.local_group(q), found[0], atol=1e-2)


def test_a_loss_of_weight_zero_trains_nothing_of_its_own():
    model = learner(instance_weight=0.0, local_weight=0.0)
    model({"views": crops()})
    step = model({"views": crops(seed=1)})
    assert float(step.loss.detach()) == float(step.metrics["loss_group"])
    assert float(step.metrics["loss_instance"]) > 0
    step.loss.backward()
    idle = [*model.instance_predictor.parameters(), *model.student.local.parameters()]
    assert all((p.grad == 0).all() for p in idle)  # zero and not none: processes must agree on what has a gradient
    assert model.student.group.prototypes.grad.abs().sum() > 0


def test_gradients_reach_everything_of_the_student_and_nothing_of_the_teacher():
    model = learner()
    model({"views": crops()})
    model({"views": crops(seed=1)}).loss.backward()
    trained = {name: p for name, p in model.named_parameters() if p.requires_grad}
    assert not any(name.startswith("teacher") for name in trained)
    assert [name for name, p in trained.items() if p.grad is None or p.grad.abs().sum() == 0] == []
    assert all(p.grad is None for p in model.teacher.parameters())
    assert not any(buffer.requires_grad for buffer in model.buffers())


def test_gradients_are_those_of_constant_neighbors_queues_and_targets():
    """A step of a tiny size along the gradient changes the loss by its squared norm, with all memories as they were."""
    model = learner().eval()  # evaluation does not remember
    model.train()({"views": crops()})
    model.eval()
    views, step = crops(seed=1), 1e-6
    before = model({"views": views}).loss
    before.backward()
    trained = [p for p in model.parameters() if p.requires_grad]
    squared = sum(float(p.grad.square().sum()) for p in trained)
    with torch.no_grad():
        for p in trained:
            p -= step / squared * p.grad
        assert float(before - model({"views": views}).loss) == pytest.approx(step, rel=1e-3)


def test_the_teacher_follows_every_part_and_prototypes_wait_for_the_second_epoch():
    model = learner(frozen_epochs=1, momentum=0.9)
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=0.1, weight_decay=0.1)
    model.student.group.normalize_prototypes()
    moved = []
    for step in range(1, 5):
        prototypes = model.student.group.prototypes.detach().clone()
        teacher = [p.clone() for p in model.teacher.parameters()]
        optimizer.zero_grad()
        model({"views": crops(seed=step)}).loss.backward()
        optimizer.step()
        model.after_update(Progress(step, 8, 2))
        moved.append(not torch.allclose(model.student.group.prototypes, prototypes, atol=1e-5))
        momentum = 1 - 0.1 * (math.cos(math.pi * (step - 1) / 8) + 1) / 2
        for old, new, mine in zip(teacher, model.teacher.parameters(), model.student.parameters(), strict=True):
            torch.testing.assert_close(new.detach(), (momentum * old + (1 - momentum) * mine).detach())
    assert moved == [False, False, True, True]
    assert model.export() is model.teacher.backbone
    x = images(2).double()
    torch.testing.assert_close(model.export()(x)[1], written_out(model.teacher, x[1])[0])


def test_the_temperature_of_the_teacher_rises_over_its_share():
    config = Config(teacher_warmup=0.5)
    assert [temperature_at(config, s, 100) for s in (0, 25, 50, 90)] == pytest.approx([0.04, 0.055, 0.07, 0.07])
    model = learner()
    model.after_update(Progress(5, 100, 10))
    assert float(model.teacher_temperature) == pytest.approx(0.055)


def test_stochastic_depth_is_of_the_student_only():
    model = learner(vit(dynamic_img_size=True, drop_path_rate=0.9)).train()
    views = crops()
    with torch.no_grad():
        student = [model.student(views).instance for _ in range(2)]
        teacher = [model.teacher(views[:2]).instance for _ in range(2)]
    assert not torch.equal(*student)
    assert torch.equal(*teacher)


def test_state_survives_and_evaluation_changes_nothing():
    model = learner()
    model.eval()({"views": crops()})
    assert int(model.instance_queue.num_added) == int(model.student.memory.num_added) == 0
    assert (model.center == 0).all()
    model.train()({"views": crops()})
    model.after_update(Progress(3, 4, 2))
    again = learner()
    again.load_state_dict(model.state_dict())
    for seed in (5, 6):
        assert torch.equal(again({"views": crops(seed=seed)}).loss, model({"views": crops(seed=seed)}).loss)
    assert torch.equal(again.teacher.memory.rows, model.teacher.memory.rows)


def test_one_image_equal_images_and_half_precision_are_finite():
    model = learner().float()
    for views in ([v[:1].float() for v in crops()], [torch.ones(4, *SHAPE)] * 2, [v.float() for v in crops()]):
        with torch.autocast("cpu", dtype=torch.bfloat16):
            step = model({"views": views})
        step.loss.backward()
        assert step.loss.dtype == torch.float32
        assert torch.isfinite(step.loss)
    assert all(torch.isfinite(p.grad).all() for p in model.parameters() if p.requires_grad)
    whole = float(model.eval()({"views": [v.float() for v in crops()]}).loss.detach())
    with torch.autocast("cpu", dtype=torch.bfloat16):
        rounded = float(model({"views": [v.float() for v in crops()]}).loss.detach())
    assert rounded == pytest.approx(whole, abs=0.15)


def test_what_it_cannot_be_is_refused():
    with pytest.raises(SettingsError, match="needs two or more views: set views: multi_crop"):
        learner(views=1)
    with pytest.raises(SettingsError, match=r"learners/mugs .* vision transformer; .*Linear"):
        learner(nn.Linear(3, 3))
    for options in ({"class_token": False, "global_pool": "avg"}, {"global_pool": "avg"}):
        with pytest.raises(SettingsError, match=r"learners/mugs trains the class token.*global_pool: avg"):
            learner(vit(**options))
    with pytest.raises(SettingsError, match=r"takes no views of shape \(3, 8, 8\).*dynamic_img_size"):
        learner(vit())({"views": crops()})
    with pytest.raises(ValidationError, match="memory must have room for num_neighbors"):
        Config(memory=4, num_neighbors=5)
    with pytest.raises(ValidationError, match="one of instance_weight, local_weight and group_weight"):
        Config(instance_weight=0, local_weight=0, group_weight=0)


def three_steps(mine):
    """Losses, gradients and memories of three steps without update, of these rows of each batch."""
    model, found = learner(queue=11, memory=5), {}
    for step in range(3):
        loss = model({"views": [view[mine].contiguous() for view in crops(seed=step)]}).loss
        loss.backward()
        found[f"loss{step}"] = loss.detach()
    found |= {f"grad.{name}": p.grad for name, p in model.named_parameters() if p.grad is not None}
    return found | {f"state.{name}": buffer.clone() for name, buffer in model.named_buffers()}


def test_two_processes_are_as_one(tmp_path):
    parts = on_two(three_steps, tmp_path, each=2)
    whole = three_steps(slice(0, 4))
    assert set(parts[0]) == set(whole)
    for key, value in whole.items():
        if key.startswith("state."):
            torch.testing.assert_close(parts[0][key], value)
            assert torch.equal(parts[0][key], parts[1][key])
        else:
            torch.testing.assert_close((parts[0][key] + parts[1][key]) / 2, value)
