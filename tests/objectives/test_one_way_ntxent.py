import math

import pytest
import torch

from appssl.errors import DataError
from appssl.objectives import one_way_ntxent
from appssl.objectives.ntxent import nt_xent
from appssl.objectives.one_way_ntxent import Config, build, one_way_nt_xent

ONE = torch.tensor([[1, 0], [0.6, 0.8], [0, 1]], dtype=torch.float64)
TWO = torch.tensor([[0.8, 0.6], [0, 1], [-0.6, 0.8]], dtype=torch.float64)


def literal(one, two, tau):
    """-log of the share of the own second view among all second views, for each row."""
    losses = []
    for i, z in enumerate(one):
        scores = [math.exp(float(z @ w / (z.norm() * w.norm())) / tau) for w in two]
        losses.append(-math.log(scores[i] / sum(scores)))
    return losses


def drawn(*shape, seed=0):
    return torch.randn(2, *shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("tau", [0.05, 0.5, 2.0])
def test_equals_the_equation_written_out_in_float64(tau):
    one, two = drawn(6, 5)
    rows = literal(one, two, tau)
    assert float(one_way_nt_xent(one, two, temperature=tau)) == pytest.approx(sum(rows) / 6, rel=1e-12)


def test_the_worked_numbers():
    assert literal(ONE, TWO, 0.1) == pytest.approx([0.000336, 1.784827, 2.142932], abs=1e-6)
    assert float(one_way_nt_xent(ONE, TWO, temperature=0.1)) == pytest.approx(1.309365, abs=1e-6)
    assert float(one_way_nt_xent(ONE, ONE, temperature=0.1)) == pytest.approx(0.096031, abs=1e-6)


def test_equal_views_give_spread_out_regularization():
    z, tau = drawn(5, 4)[0], 0.3
    unit = z / z.norm(dim=1, keepdim=True)
    losses = []
    for i in range(5):
        others = sum(math.exp(float(unit[i] @ unit[j]) / tau) for j in range(5) if j != i)
        losses.append(-math.log(math.exp(1 / tau) / (math.exp(1 / tau) + others)))
    assert float(one_way_nt_xent(z, z, temperature=tau)) == pytest.approx(sum(losses) / 5, rel=1e-12)


def test_the_denominator_lacks_the_first_views_so_it_is_below_one_direction_of_nt_xent():
    for seed in range(10):
        one, two = drawn(6, 4, seed=seed)
        there, back = (one_way_nt_xent(*pair, temperature=0.3) for pair in ((one, two), (two, one)))
        assert (there + back) / 2 < nt_xent(one, two, temperature=0.3)


def test_it_is_positive_not_symmetric_and_scale_and_order_of_samples_do_not_matter():
    one, two = drawn(6, 5)
    value, mixed = one_way_nt_xent(one, two, temperature=0.2), torch.randperm(6)
    assert value > 0
    assert abs(float(value - one_way_nt_xent(two, one, temperature=0.2))) > 1e-3
    torch.testing.assert_close(one_way_nt_xent(3 * one[mixed], 0.1 * two[mixed], temperature=0.2), value)


def test_equal_embeddings_give_the_logarithm_of_the_batch():
    z = torch.ones(8, 4, dtype=torch.float64)
    assert float(one_way_nt_xent(z, z, temperature=0.1)) == pytest.approx(math.log(8), rel=1e-12)


def test_gradients_are_those_of_the_equation_in_both_views():
    one, two = (z.clone().requires_grad_() for z in drawn(5, 4))
    found = torch.autograd.grad(one_way_nt_xent(one, two, temperature=0.2), (one, two))
    unit = [z / z.norm(dim=1, keepdim=True) for z in (one, two)]
    expected = torch.nn.functional.cross_entropy(unit[0] @ unit[1].T / 0.2, torch.arange(5))
    for a, b in zip(found, torch.autograd.grad(expected, (one, two)), strict=True):
        torch.testing.assert_close(a, b)


def test_the_mean_over_processes_is_the_loss_of_one_with_all_samples(monkeypatch):
    one, two = drawn(8, 4)
    whole, unit = one_way_nt_xent(one, two, temperature=0.2), two / two.norm(dim=1, keepdim=True)
    losses = []
    for start in (0, 4):
        own = torch.arange(start, start + 4)
        monkeypatch.setattr(one_way_ntxent, "gathered", lambda views, own=own: (unit[None], own))
        losses.append(one_way_nt_xent(one[own], two[own], temperature=0.2))
    torch.testing.assert_close(torch.stack(losses).mean(), whole)


def test_half_precision_and_zero_vectors_are_finite():
    for views in (torch.randn(2, 6, 4).bfloat16(), torch.zeros(2, 6, 4)):
        views.requires_grad_()
        loss = build(Config(temperature=0.02))(*views).total
        loss.backward()
        assert loss.dtype == torch.float32
        assert torch.isfinite(loss)
        assert torch.isfinite(views.grad).all()


def test_errors_one_sample_three_views_and_other_shapes():
    with pytest.raises(DataError, match="one_way_ntxent needs two or more samples in a batch, got 1"):
        one_way_nt_xent(ONE[:1], TWO[:1], temperature=0.1)
    with pytest.raises(DataError, match=r"compares two views, got 3\. Set num_views"):
        one_way_nt_xent(ONE, TWO, TWO, temperature=0.1)
    with pytest.raises(DataError, match="needs two or more views, got 1"):
        one_way_nt_xent(ONE, temperature=0.1)
    with pytest.raises(DataError, match="views of one shape"):
        one_way_nt_xent(ONE, TWO[:2], temperature=0.1)
