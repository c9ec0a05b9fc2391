import math

import pytest
import torch

from appssl.errors import DataError
from appssl.objectives.ntxent import Config, build, nt_xent


def literal(views, tau):
    """Equation 1 of the paper, written out for each anchor and each positive."""
    rows = [(v, i, z[i] / z[i].norm().clamp(min=1e-8)) for v, z in enumerate(views) for i in range(len(z))]
    losses = []
    for v, i, anchor in rows:
        others = [(w, j, torch.dot(anchor, key)) for w, j, key in rows if (w, j) != (v, i)]
        bottom = sum(math.exp(float(s) / tau) for _, _, s in others)
        losses += [-math.log(math.exp(float(s) / tau) / bottom) for w, j, s in others if j == i and w != v]
    return sum(losses) / len(losses)


@pytest.mark.parametrize("num_views", [2, 3, 4])
@pytest.mark.parametrize("tau", [0.05, 0.5, 2.0])
def test_equals_the_equation_written_out_in_float64(num_views, tau):
    torch.manual_seed(0)
    views = [torch.randn(5, 7, dtype=torch.float64) for _ in range(num_views)]
    assert float(nt_xent(*views, temperature=tau)) == pytest.approx(literal(views, tau), rel=1e-12)


def test_worked_number():
    # Two samples, orthogonal, both views equal: every anchor has one positive of similarity 1 and two negatives of 0.
    z = torch.eye(2, dtype=torch.float64)
    assert float(nt_xent(z, z, temperature=1.0)) == pytest.approx(math.log(1 + 2 / math.e), rel=1e-12)


def test_views_all_equal_give_the_logarithm_of_the_number_of_others():
    z = torch.ones(8, 4, dtype=torch.float64)
    assert float(nt_xent(z, z, temperature=0.1)) == pytest.approx(math.log(15), rel=1e-12)


def test_scale_order_of_samples_and_order_of_views_do_not_matter():
    torch.manual_seed(1)
    a, b = torch.randn(2, 6, 5, dtype=torch.float64)
    value = nt_xent(a, b, temperature=0.2)
    mixed = torch.randperm(6)
    torch.testing.assert_close(nt_xent(3 * b, 0.1 * a, temperature=0.2), value)
    torch.testing.assert_close(nt_xent(a[mixed], b[mixed], temperature=0.2), value)


def test_gradient_is_right_and_flows_into_both_views():
    torch.manual_seed(2)
    a, b = (torch.randn(4, 3, dtype=torch.float64, requires_grad=True) for _ in range(2))
    assert torch.autograd.gradcheck(lambda x, y: nt_xent(x, y, temperature=0.3), (a, b))
    nt_xent(a, b, temperature=0.3).backward()
    assert a.grad.abs().sum() > 0
    assert b.grad.abs().sum() > 0


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_is_computed_in_float32(dtype):
    torch.manual_seed(3)
    a, b = torch.randn(2, 16, 8).to(dtype)
    value = nt_xent(a, b, temperature=0.01)  # logits up to 100: exp overflows in half precision
    assert value.dtype == torch.float32
    torch.testing.assert_close(value, nt_xent(a.double(), b.double(), temperature=0.01).float(), rtol=1e-4, atol=1e-4)


def test_zero_vectors_give_a_finite_loss_and_gradient():
    a = torch.zeros(3, 4, requires_grad=True)
    loss = nt_xent(a, torch.randn(3, 4), temperature=0.1)
    loss.backward()
    assert torch.isfinite(loss)
    assert torch.isfinite(a.grad).all()


def test_errors_say_what_to_change():
    with pytest.raises(DataError, match="two or more samples in a batch, got 1"):
        nt_xent(torch.ones(1, 3), torch.ones(1, 3), temperature=0.1)
    with pytest.raises(DataError, match=r"two or more views, got 1\. Set num_views"):
        nt_xent(torch.ones(4, 3), temperature=0.1)
    with pytest.raises(DataError, match="views of one shape"):
        nt_xent(torch.ones(4, 3), torch.ones(5, 3), temperature=0.1)


def test_built_from_defaults():
    assert build(Config()).temperature == 0.1
