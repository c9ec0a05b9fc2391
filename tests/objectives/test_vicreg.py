import pytest
import torch

from appssl.errors import DataError
from appssl.objectives.vicreg import Config, build, covariance, invariance, variance

Z1 = torch.tensor([[1, 0, 0.5], [0, 1, -0.5], [-1, 0.5, 0], [0.5, -1, 1]], dtype=torch.float64)
Z2 = torch.tensor([[0.8, 0.2, 0.4], [0.1, 0.9, -0.3], [-0.7, 0.6, 0.2], [0.3, -1.1, 0.6]], dtype=torch.float64)


def literal(one, other, gamma=1.0):
    """Terms of two views with loops: invariance, both variances, both covariances."""
    size, width = one.shape
    near = sum(float(one[i, d] - other[i, d]) ** 2 for i in range(size) for d in range(width)) / size / width
    spread = correlated = 0.0
    for z in (one, other):
        mean = [float(sum(z[i, d] for i in range(size))) / size for d in range(width)]
        for d in range(width):
            for e in range(width):
                cov = sum((float(z[i, d]) - mean[d]) * (float(z[i, e]) - mean[e]) for i in range(size)) / (size - 1)
                if d == e:
                    spread += max(0.0, gamma - (cov + 1e-4) ** 0.5) / width
                else:
                    correlated += cov**2 / width
    return near, spread, correlated


def test_the_worked_numbers():
    loss = build(Config())(Z1, Z2)
    terms = {name: float(value) for name, value in loss.terms.items()}
    assert terms == pytest.approx({"invariance": 0.041667, "variance": 0.584959, "covariance": 0.419356}, abs=1e-6)
    assert float(loss.total) == pytest.approx(16.084995, abs=1e-6)
    assert float(build(Config(variance_weight=12.5))(Z1, Z2).total) == pytest.approx(8.773009, abs=1e-6)


@pytest.mark.parametrize("gamma", [1.0, 0.3])
def test_equals_the_equation_written_out_in_float64(gamma):
    torch.manual_seed(0)
    one, other = torch.randn(2, 6, 4, dtype=torch.float64) * 0.6
    near, spread, correlated = literal(one, other, gamma)
    found = build(Config(target_std=gamma, invariance_weight=2, variance_weight=3, covariance_weight=5))(one, other)
    assert float(found.total) == pytest.approx(2 * near + 3 * spread + 5 * correlated, rel=1e-10)


def test_equal_views_have_no_invariance_term_and_constant_ones_the_largest_variance_term():
    assert float(build(Config())(Z1, Z1).terms["invariance"]) == 0
    constant = torch.ones(2, 5, 3, dtype=torch.float64)
    torch.testing.assert_close(variance(constant, 1.0), torch.full((2,), 0.99, dtype=torch.float64))
    assert (covariance(constant) == 0).all()


def test_shifts_change_only_the_invariance_and_wide_uncorrelated_dimensions_cost_nothing():
    torch.manual_seed(1)
    views = torch.randn(2, 7, 3, dtype=torch.float64)
    torch.testing.assert_close(variance(views + 5, 1.0), variance(views, 1.0))
    torch.testing.assert_close(covariance(views + 5), covariance(views))
    cross = torch.tensor([[1.0, 0], [-1, 0], [0, 1], [0, -1]], dtype=torch.float64)[None] * 3
    assert variance(cross, 1.0).item() == covariance(cross).item() == 0


def test_more_views_are_averaged_and_their_order_does_not_matter():
    torch.manual_seed(2)
    views = torch.randn(3, 6, 4, dtype=torch.float64)
    objective = build(Config())
    pairs = [objective(views[a], views[b]).total for a, b in ((0, 1), (0, 2), (1, 2))]
    torch.testing.assert_close(objective(*views).total, torch.stack(pairs).mean())
    torch.testing.assert_close(objective(*views[[2, 0, 1]]).total, objective(*views).total)


def test_gradients_of_the_terms_by_finite_differences():
    torch.manual_seed(3)
    views = (torch.randn(2, 4, 3, dtype=torch.float64) * 0.5).requires_grad_()
    assert torch.autograd.gradcheck(invariance, views)
    assert torch.autograd.gradcheck(lambda v: variance(v, 1.0), views)
    assert torch.autograd.gradcheck(covariance, views)


def test_edges_constant_embeddings_half_precision_and_batches_of_one():
    constant = torch.ones(5, 3, requires_grad=True)
    build(Config())(constant, torch.ones(5, 3)).total.backward()
    assert torch.isfinite(constant.grad).all()
    torch.manual_seed(4)
    half = torch.randn(2, 16, 8).bfloat16()
    found = build(Config())(*half)
    assert found.total.dtype == torch.float32
    torch.testing.assert_close(found.total, build(Config())(*half.double()).total.float(), rtol=1e-4, atol=1e-4)
    with pytest.raises(DataError, match="vicreg needs two or more samples in a batch, got 1"):
        build(Config())(torch.ones(1, 3), torch.ones(1, 3))
    with pytest.raises(DataError, match="vicreg needs two or more views, got 1"):
        build(Config())(Z1)
    with pytest.raises(DataError, match=r"vicreg needs views of one shape \(B, D\), got"):
        build(Config())(Z1, Z2[:3])
