import pytest
import torch
from torch import nn

from appssl.ops.ema import cosine_momentum, follow, teacher_of


def network():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Linear(4, 2))


def test_a_teacher_is_a_copy_without_gradients():
    student = network()
    teacher = teacher_of(student)
    x = torch.randn(5, 3)
    assert torch.equal(teacher.eval()(x), student.eval()(x))
    assert not any(p.requires_grad for p in teacher.parameters())
    assert all(p.requires_grad for p in student.parameters())
    with torch.no_grad():
        student[0].weight += 1
    assert not torch.equal(teacher[0].weight, student[0].weight)


def test_weights_follow_as_written_out_and_running_statistics_stay():
    student = network()
    teacher = teacher_of(student)
    expected = teacher[0].weight.clone()
    for _ in range(3):
        with torch.no_grad():
            student[0].weight += 1
        student.train()(torch.randn(5, 3))
        follow(teacher, student, 0.9)
        expected = 0.9 * expected + 0.1 * student[0].weight.detach()
        torch.testing.assert_close(teacher[0].weight, expected)
    assert int(teacher[1].num_batches_tracked) == 0
    assert not teacher[0].weight.requires_grad


def test_momentum_zero_copies_and_one_keeps():
    student, teacher = network(), teacher_of(network())
    with torch.no_grad():
        student[2].weight += 1
    before = teacher[2].weight.clone()
    follow(teacher, student, 1.0)
    assert torch.equal(teacher[2].weight, before)
    follow(teacher, student, 0.0)
    torch.testing.assert_close(teacher[2].weight, student[2].weight)


def test_networks_of_another_structure_are_refused():
    with pytest.raises(ValueError, match=r"shorter|longer"):
        follow(nn.Linear(2, 2), nn.Linear(2, 2, bias=False), 0.5)


def test_momentum_rises_along_a_cosine():
    assert cosine_momentum(0.996, 0, 100) == pytest.approx(0.996)
    assert cosine_momentum(0.996, 50, 100) == pytest.approx(0.998)
    assert cosine_momentum(0.996, 100, 100) == 1
    assert cosine_momentum(0.9, 25, 100) == pytest.approx(1 - 0.1 * (0.5**0.5 + 1) / 2)
