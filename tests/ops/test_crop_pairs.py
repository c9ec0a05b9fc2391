"""Losses of pairs of crops equal transcriptions with loops, and worked numbers; the teacher gets no gradient."""

import math

import pytest
import torch

from appssl.ops.crop_pairs import cross_entropies, mean_over_crops, queue_contrast
from appssl.ops.memory import Memory

STUDENT = torch.tensor([[[1, 0, -1], [0, 1, 0.5]], [[0.8, 0.1, -0.5], [0.2, 0.9, 0]], [[0.5, 0.5, 0], [0, 0.2, 0.3]]])
TEACHER = torch.tensor([[[1.2, 0, -1], [0, 1.1, 0]], [[1, 0.2, -0.8], [0.1, 1, 0.2]]])


def at(*degrees):
    """Unit vectors (V, B, 2) of angles in degrees."""
    angles = torch.tensor(degrees, dtype=torch.float64) * math.pi / 180
    return torch.stack([angles.cos(), angles.sin()], dim=-1)


def units(*shape, seed=0):
    drawn = torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    return drawn / drawn.norm(dim=-1, keepdim=True)


def queue_of(rows, size=None):
    memory = Memory(size or len(rows), rows.shape[1]).double()
    memory.add(rows)
    return memory


def literal_contrast(p, y, queue, tau):
    own = math.exp(float(p @ y) / tau)
    return -math.log(own / (own + sum(math.exp(float(p @ n) / tau) for n in queue)))


def literal_mean(num_teacher, num_student, num_images, loss):
    """1/2 mean over (t, s), s < 2, s != t, and 1/2 mean over s >= 2; loss(t, s, image)."""
    large, small = [], []
    for t in range(num_teacher):
        for s in range(num_student):
            if s < 2 and s == t:
                continue
            of_images = [loss(t, s, i) for i in range(num_images)]
            (large if s < 2 else small).append(sum(of_images) / num_images)
    if not small:
        return sum(large) / len(large)
    return sum(large) / len(large) / 2 + sum(small) / len(small) / 2


@pytest.mark.parametrize("num_crops", [2, 3, 5])
@pytest.mark.parametrize("size", [6, 9])  # of the queue, of which 6 places are filled
def test_the_contrast_equals_the_transcription(num_crops, size):
    p, y, stored = units(num_crops, 4, 3), units(2, 4, 3, seed=1), units(6, 3, seed=2)
    found = mean_over_crops(queue_contrast(p, y, queue_of(stored, size), temperature=0.2))
    expected = literal_mean(2, num_crops, 4, lambda t, s, i: literal_contrast(p[s, i], y[t, i], stored, 0.2))
    assert float(found) == pytest.approx(expected, rel=1e-9)


@pytest.mark.parametrize("num_crops", [2, 3, 5])
def test_the_cross_entropy_equals_the_transcription(num_crops):
    torch.manual_seed(0)
    logits, targets = torch.randn(num_crops, 4, 6).double(), torch.randn(2, 4, 6).double().softmax(-1)

    def loss(t, s, i):
        weights = [math.exp(float(x) / 0.1) for x in logits[s, i]]
        return -sum(float(a) * math.log(w / sum(weights)) for a, w in zip(targets[t, i], weights, strict=True))

    found = mean_over_crops(cross_entropies(logits, targets, temperature=0.1))
    assert float(found) == pytest.approx(literal_mean(2, num_crops, 4, loss), rel=1e-9)


def test_the_worked_numbers():
    pairs = queue_contrast(
        at([0, 100], [20, 130], [40, 80]), at([10, 110], [5, 95]), queue_of(at(200, 260, 300)), temperature=0.2
    )
    assert float(pairs[0, 1] + pairs[1, 0]) / 2 == pytest.approx(0.038356, abs=1e-6)
    assert float(pairs[:, 2].mean()) == pytest.approx(0.003930, abs=1e-6)
    assert float(mean_over_crops(pairs)) == pytest.approx(0.021143, abs=1e-6)
    targets = ((TEACHER - torch.tensor([0.1, 0.2, -0.1])) / 0.04).softmax(-1)
    group = mean_over_crops(cross_entropies(STUDENT, targets, temperature=0.1))
    assert float(group) == pytest.approx(0.512477, abs=1e-6)


def test_an_empty_queue_costs_nothing_and_has_no_gradient():
    p = units(3, 4, 3).requires_grad_(True)
    pairs = queue_contrast(p, units(2, 4, 3, seed=1), Memory(5, 3).double(), temperature=0.2)
    assert (pairs == 0).all()
    pairs.sum().backward()
    assert (p.grad == 0).all()


@pytest.mark.parametrize("sign", [1, -1])
def test_the_contrast_reaches_its_bounds(sign):
    """Predictions that are the key, opposite to the queue, and the other way round."""
    y = units(1, 1, 3)
    found = queue_contrast(sign * y, y, queue_of(-y[0].expand(5, -1)), temperature=0.2)
    assert float(found) == pytest.approx(math.log1p(5 * math.exp(-sign * 2 / 0.2)), rel=1e-6)


def test_the_contrast_is_between_its_bounds():
    found = queue_contrast(units(4, 50, 3), units(2, 50, 3, seed=1), queue_of(units(5, 3, seed=2)), temperature=0.2)
    assert (found > math.log1p(5 * math.exp(-10))).all()
    assert (found < math.log1p(5 * math.exp(10))).all()


def test_orders_do_not_matter():
    p, y, stored = units(4, 6, 3), units(2, 6, 3, seed=1), units(5, 3, seed=2)
    found = queue_contrast(p, y, queue_of(stored), temperature=0.2)
    images, places = torch.randperm(6), torch.randperm(5)
    again = queue_contrast(p[:, images], y[:, images], queue_of(stored[places]), temperature=0.2)
    torch.testing.assert_close(again, found)
    logits, targets = torch.randn(4, 6, 5), torch.randn(2, 6, 5).softmax(-1)
    entropies = cross_entropies(logits, targets, temperature=0.1)
    again = cross_entropies(logits[:, images] + 3.0, targets[:, images], temperature=0.1)  # a constant cancels
    torch.testing.assert_close(again, entropies, rtol=1e-4, atol=1e-4)


def test_pairs_of_a_crop_with_itself_do_not_count():
    losses = torch.rand(2, 5)
    changed = losses + torch.eye(2, 5) * 100
    assert torch.equal(mean_over_crops(changed), mean_over_crops(losses))


def test_gradients_reach_predictions_only_and_are_right():
    p, y, stored = units(3, 2, 3).requires_grad_(True), units(2, 2, 3, seed=1).requires_grad_(True), units(4, 3, seed=2)
    queue = queue_of(stored)
    assert torch.autograd.gradcheck(lambda x: mean_over_crops(queue_contrast(x, y, queue, temperature=0.2)), p)
    mean_over_crops(queue_contrast(p, y, queue, temperature=0.2)).backward()
    assert p.grad.abs().sum() > 0
    assert y.grad is None
    logits, raw = torch.randn(3, 4, 5, requires_grad=True), torch.randn(2, 4, 5, requires_grad=True)
    cross_entropies(logits, raw.softmax(-1), temperature=0.1).sum().backward()
    assert logits.grad.abs().sum() > 0
    assert raw.grad is None
