import pytest
import torch

from appssl.errors import DataError
from appssl.objectives.barlow_twins import Config, build, correlation_terms, standardized
from tests.objectives.test_vicreg import Z1, Z2


def literal(one, other, weight):
    size, width = one.shape
    columns = []
    for z in (one, other):
        of_view = []
        for d in range(width):
            mean = sum(float(z[i, d]) for i in range(size)) / size
            var = sum((float(z[i, d]) - mean) ** 2 for i in range(size)) / size
            of_view.append([(float(z[i, d]) - mean) / (var + 1e-5) ** 0.5 for i in range(size)])
        columns.append(of_view)
    total = 0.0
    for d in range(width):
        for e in range(width):
            c = sum(a * b for a, b in zip(columns[0][d], columns[1][e], strict=True)) / size
            total += (c - 1) ** 2 if d == e else weight * c**2
    return total


def test_the_worked_number():
    assert float(build(Config())(Z1, Z2).total) == pytest.approx(0.013562, abs=1e-6)


@pytest.mark.parametrize("weight", [0.0, 0.0051, 2.0])
def test_equals_the_equation_written_out_in_float64(weight):
    torch.manual_seed(0)
    one, other = torch.randn(2, 6, 4, dtype=torch.float64)
    loss = build(Config(redundancy_weight=weight))(one, other)
    assert float(loss.total) == pytest.approx(literal(one, other, weight), rel=1e-10)
    assert float(loss.total) == pytest.approx(float(loss.terms["invariance"] + weight * loss.terms["redundancy"]))


def test_limits_uncorrelated_equal_views_cost_nothing_opposite_ones_four_a_dimension_constant_ones_one():
    cross = torch.tensor([[1.0, 1], [1, -1], [-1, 1], [-1, -1]], dtype=torch.float64) * 9
    assert float(build(Config())(cross, cross).total) == pytest.approx(0, abs=1e-12)
    assert float(build(Config())(cross, -cross).total) == pytest.approx(8, rel=1e-6)
    constant = torch.ones(4, 3, dtype=torch.float64)
    assert float(build(Config())(constant, constant).total) == pytest.approx(3)


def test_scales_shifts_and_orders_do_not_matter():
    torch.manual_seed(1)
    one, other = torch.randn(2, 9, 4, dtype=torch.float64)
    value = build(Config())(one, other).total
    scale = torch.tensor([2.0, 0.5, -3, 10], dtype=torch.float64)
    order, dimensions = torch.randperm(9), torch.randperm(4)
    torch.testing.assert_close(build(Config())(one * scale + 5, other * scale - 1).total, value, rtol=1e-3, atol=0)
    torch.testing.assert_close(build(Config())(other[order], one[order]).total, value)
    torch.testing.assert_close(build(Config())(one[:, dimensions], other[:, dimensions]).total, value)


def test_more_views_are_averaged_over_pairs():
    torch.manual_seed(2)
    views = torch.randn(3, 6, 4, dtype=torch.float64)
    pairs = [build(Config())(views[a], views[b]).total for a, b in ((0, 1), (0, 2), (1, 2))]
    torch.testing.assert_close(build(Config())(*views).total, torch.stack(pairs).mean())


def test_gradients_by_finite_differences():
    torch.manual_seed(3)
    views = torch.randn(2, 5, 3, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(standardized, views)
    assert torch.autograd.gradcheck(lambda v: correlation_terms(v[0], v[1]), views)


def test_edges_constant_embeddings_half_precision_and_batches_of_one():
    constant = torch.ones(5, 3, requires_grad=True)
    build(Config())(constant, torch.ones(5, 3)).total.backward()
    assert torch.isfinite(constant.grad).all()
    torch.manual_seed(4)
    half = torch.randn(2, 16, 8).bfloat16()
    found = build(Config())(*half)
    assert found.total.dtype == torch.float32
    torch.testing.assert_close(found.total, build(Config())(*half.double()).total.float(), rtol=1e-4, atol=1e-4)
    with pytest.raises(DataError, match="barlow_twins needs two or more samples in a batch, got 1"):
        build(Config())(torch.ones(1, 3), torch.ones(1, 3))
