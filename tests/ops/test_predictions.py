import pytest
import torch

from appssl.ops.predictions import mean_cosine_of_pairs


def literal(predictions, targets):
    found = []
    for v, p in enumerate(predictions):
        for w, t in enumerate(targets):
            if v != w:
                found += [float(a @ b / (a.norm() * b.norm())) for a, b in zip(p, t, strict=True)]
    return sum(found) / len(found)


@pytest.mark.parametrize("count", [2, 3])
def test_equals_loops_over_pairs_and_samples(count):
    torch.manual_seed(0)
    p, t = torch.randn(2, count, 5, 4, dtype=torch.float64)
    assert float(mean_cosine_of_pairs(list(p), list(t))) == pytest.approx(literal(p, t), rel=1e-12)
    assert float(mean_cosine_of_pairs(list(3 * p), list(0.1 * t))) == pytest.approx(literal(p, t), rel=1e-12)


def test_gradients_reach_predictions_only():
    torch.manual_seed(1)
    p, t = (torch.randn(2, 3, 4, requires_grad=True) for _ in range(2))
    mean_cosine_of_pairs(list(p), list(t)).backward()
    assert p.grad.abs().sum() > 0
    assert t.grad is None


def test_bounds_zero_vectors_and_half_precision():
    x = torch.randn(3, 4, generator=torch.Generator().manual_seed(2))
    assert float(mean_cosine_of_pairs([x, x], [x, x])) == pytest.approx(1)
    assert float(mean_cosine_of_pairs([x, x], [-x, -x])) == pytest.approx(-1)
    zero = torch.zeros(1, 4, requires_grad=True)
    found = mean_cosine_of_pairs([zero, zero], [x[:1], x[:1]])
    found.backward()
    assert float(found.detach()) == 0
    assert torch.isfinite(zero.grad).all()
    half = x.bfloat16()
    assert mean_cosine_of_pairs([half, half], [half, half]).dtype == torch.float32
