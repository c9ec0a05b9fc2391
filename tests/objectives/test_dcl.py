import math

import pytest
import torch

from appssl.errors import DataError
from appssl.objectives.dcl import Config, _weights, build, dcl
from appssl.objectives.ntxent import nt_xent
from tests.objectives.views import FIRST, SECOND


def literal(views, tau, sigma=None):
    """Losses and multipliers of every anchor and view, written out for two views."""
    unit = [[row / row.norm() for row in view] for view in views]
    size = len(unit[0])
    similarity = [float(torch.dot(unit[0][i], unit[1][i])) for i in range(size)]
    mean = sum(math.exp(s / sigma) for s in similarity) / size if sigma else 1
    losses, multipliers = [], []
    for k in range(2):
        for i in range(size):
            others = [unit[view][j] for j in range(size) if j != i for view in range(2)]
            total = sum(math.exp(float(torch.dot(unit[k][i], other)) / tau) for other in others)
            weight = 2 - math.exp(similarity[i] / sigma) / mean if sigma else 1
            losses.append(-weight * similarity[i] / tau + math.log(total))
            positive = math.exp(similarity[i] / tau)
            multipliers.append(1 - positive / (positive + total))
    return losses, multipliers


def test_the_worked_numbers_of_the_card():
    losses, multipliers = literal((FIRST, SECOND), 0.5)
    assert losses == pytest.approx([-1.577907, -0.570055, -1.327429, -1.087375, -0.406852, -0.788643], abs=1e-6)
    # The card prints 0.361222 for the second; 1 / (1 + exp(0.570055)), from its own loss, is 0.361224.
    assert multipliers == pytest.approx([0.171092, 0.361224, 0.209585, 0.252113, 0.399667, 0.312460], abs=1e-6)
    loss, npc = dcl(FIRST, SECOND, temperature=0.5)
    assert float(loss) == pytest.approx(-0.959710, abs=1e-6)
    assert float(npc) == pytest.approx(sum(multipliers) / 6, rel=1e-12)
    assert float(dcl(FIRST, SECOND, temperature=0.5, sigma=0.5)[0]) == pytest.approx(-0.955010, abs=1e-6)
    weights = _weights((FIRST * SECOND).sum(1)[None, None], 0.5).flatten()
    assert weights.tolist() == pytest.approx([0.952150, 1.095700, 0.952150], abs=1e-6)


@pytest.mark.parametrize("sigma", [None, 0.3, 2.0])
@pytest.mark.parametrize("tau", [0.02, 0.5])
def test_equals_the_equation_written_out_in_float64(tau, sigma):
    torch.manual_seed(0)
    views = [torch.randn(6, 5, dtype=torch.float64) for _ in range(2)]
    loss, npc = dcl(*views, temperature=tau, sigma=sigma)
    losses, multipliers = literal(views, tau, sigma)
    assert float(loss) == pytest.approx(sum(losses) / 12, rel=1e-11)
    assert float(npc) == pytest.approx(sum(multipliers) / 12, rel=1e-9)


def test_ntxent_is_dcl_minus_the_mean_log_multiplier():
    _, multipliers = literal((FIRST, SECOND), 0.5)
    shift = sum(math.log(q) for q in multipliers) / 6
    expected = float(dcl(FIRST, SECOND, temperature=0.5)[0]) - shift
    assert float(nt_xent(FIRST, SECOND, temperature=0.5)) == pytest.approx(expected, rel=1e-12)


def test_limits_large_sigma_is_dcl_and_equal_embeddings_give_the_number_of_negatives():
    torch.manual_seed(1)
    a, b = torch.randn(2, 5, 4, dtype=torch.float64)
    plain = dcl(a, b, temperature=0.1)[0]
    torch.testing.assert_close(dcl(a, b, temperature=0.1, sigma=1e8)[0], plain, rtol=1e-6, atol=1e-6)
    z = torch.ones(5, 3, dtype=torch.float64)
    assert float(dcl(z, z, temperature=0.2)[0]) == pytest.approx(math.log(8), rel=1e-12)
    assert float(dcl(z, z, temperature=0.2, sigma=0.5)[0]) == pytest.approx(math.log(8), rel=1e-12)


def test_the_gradient_of_a_positive_is_its_weight_over_tau_and_none_flows_through_weights():
    """Two samples whose positives do not touch any negative: turning one moves its own similarity only."""
    torch.manual_seed(2)
    a, b = torch.randn(2, 4, 3, dtype=torch.float64)
    a.requires_grad_()
    sigma, tau = 0.5, 0.2
    loss, _ = dcl(a, b, temperature=tau, sigma=sigma)
    (found,) = torch.autograd.grad(loss, a)
    unit_a, unit_b = torch.nn.functional.normalize(a, dim=1), torch.nn.functional.normalize(b, dim=1)
    similarity = (unit_a * unit_b).sum(1)
    constant = _weights(similarity.detach()[None, None], sigma).flatten()
    negatives, _ = dcl(a, b, temperature=tau)
    by_hand = negatives + ((1 - constant) * similarity / tau).mean()
    (expected,) = torch.autograd.grad(by_hand, a)
    torch.testing.assert_close(found, expected)


def test_views_may_be_swapped_rows_permuted_and_scaled_and_more_than_two():
    torch.manual_seed(3)
    a, b, c = torch.randn(3, 6, 4, dtype=torch.float64)
    value = dcl(a, b, temperature=0.2, sigma=0.5)[0]
    mixed = torch.randperm(6)
    torch.testing.assert_close(dcl(b * 7, a * 0.2, temperature=0.2, sigma=0.5)[0], value)
    torch.testing.assert_close(dcl(a[mixed], b[mixed], temperature=0.2, sigma=0.5)[0], value)
    three = dcl(a, b, c, temperature=0.2)[0]
    torch.testing.assert_close(dcl(c, a, b, temperature=0.2)[0], three)


def test_half_precision_and_small_temperatures_are_finite():
    torch.manual_seed(4)
    a, b = torch.randn(2, 16, 8).bfloat16()
    loss, npc = dcl(a, b, temperature=0.01)
    assert loss.dtype == torch.float32
    torch.testing.assert_close(loss, dcl(a.double(), b.double(), temperature=0.01)[0].float(), rtol=1e-4, atol=1e-4)
    assert 0 <= float(npc) <= 1


def test_a_batch_of_one_is_refused_and_the_module_reports_its_term():
    with pytest.raises(DataError, match="dcl needs two or more samples in a batch, got 1"):
        dcl(torch.ones(1, 3), torch.ones(1, 3), temperature=0.1)
    loss = build(Config(weighted=True, temperature=0.5))(FIRST, SECOND)
    assert float(loss.total) == pytest.approx(-0.955010, abs=1e-6)
    assert set(loss.terms) == {"npc"}
