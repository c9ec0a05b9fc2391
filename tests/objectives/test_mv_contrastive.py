import math

import pytest
import torch

from appssl.errors import SettingsError
from appssl.objectives.mv_contrastive import (
    Config,
    average,
    build,
    geometric,
    mv_dhel,
    mv_infonce,
    pairwise,
)
from appssl.objectives.ntxent import nt_xent
from appssl.settings import validate
from tests.objectives.views import FIRST, SECOND, THIRD


def unit(views):
    return [[row / row.norm() for row in view] for view in views]


def e(a, b, tau):
    return math.exp(float(torch.dot(a, b)) / tau)


def literal_infonce(views, tau, published):
    u = unit(views)
    count, size = len(u), len(u[0])
    total = 0.0
    for i in range(size):
        top = 2 * sum(e(u[k][i], u[m][i], tau) for k in range(count) for m in range(k + 1, count))
        bottom = 0.0
        for k in range(count):
            for m in range(count):
                for j in range(size):
                    if (m != k) if published else ((j, m) != (i, k)):
                        bottom += e(u[k][i], u[m][j], tau)
        total -= math.log(top / bottom)
    return total / size


def literal_dhel(views, tau, published):
    u = unit(views)
    count, size = len(u), len(u[0])
    total = 0.0
    for i in range(size):
        top = sum(e(u[k][i], u[m][i], tau) for k in range(count) for m in range(k + 1, count))
        bottom = math.prod(
            sum(e(u[k][i], u[k][j], tau) for j in range(size) if published or j != i) for k in range(count)
        )
        total -= math.log((2 if published else 1) * top / bottom)
    return total / size


def literal_geometric(views, tau):
    u = unit(views)
    count, size = len(u), len(u[0])
    losses = []
    for i in range(size):
        for a in range(count):
            others = sum(e(u[a][i], u[m][j], tau) for m in range(count) for j in range(size) if j != i)
            losses += [
                -math.log(e(u[a][i], u[b][i], tau) / (e(u[a][i], u[b][i], tau) + others))
                for b in range(count)
                if b != a
            ]
    return sum(losses) / len(losses)


@pytest.mark.parametrize(
    ("views", "numbers"),
    [
        ((FIRST, SECOND), (0.342486, 0.182542, -1.607619, 1.794766)),
        ((FIRST, SECOND, THIRD), (0.256673, 0.171985, -2.624538, 2.895347)),
    ],
)
def test_the_worked_numbers_of_the_card(views, numbers):
    found = [
        float(f(*views, temperature=0.5, published=published))
        for f in (mv_infonce, mv_dhel)
        for published in (False, True)
    ]
    assert found == pytest.approx(numbers, abs=5e-7)


def test_the_worked_number_of_pairs():
    assert float(pairwise(FIRST, SECOND, THIRD, temperature=0.5)) == pytest.approx(0.343021, abs=5e-7)


@pytest.mark.parametrize("published", [False, True])
@pytest.mark.parametrize("num_views", [2, 3, 5])
def test_equal_the_equations_written_out_in_float64(num_views, published):
    torch.manual_seed(0)
    views = [torch.randn(5, 7, dtype=torch.float64) for _ in range(num_views)]
    found = float(mv_infonce(*views, temperature=0.2, published=published))
    assert found == pytest.approx(literal_infonce(views, 0.2, published), rel=1e-11)
    found = float(mv_dhel(*views, temperature=0.2, published=published))
    assert found == pytest.approx(literal_dhel(views, 0.2, published), rel=1e-11)
    assert float(geometric(*views, temperature=0.2)) == pytest.approx(literal_geometric(views, 0.2), rel=1e-11)


def test_two_views_of_average_and_pairs_are_ntxent():
    expected = nt_xent(FIRST, SECOND, temperature=0.5)
    torch.testing.assert_close(pairwise(FIRST, SECOND, temperature=0.5), expected)
    torch.testing.assert_close(average(FIRST, SECOND, temperature=0.5), expected)


def test_collapse_gives_the_values_of_the_card():
    z = [torch.ones(3, 4, dtype=torch.float64)] * 3
    assert float(mv_infonce(*z, temperature=0.5)) == pytest.approx(1.386294, abs=5e-7)
    assert float(mv_dhel(*z, temperature=0.5)) == pytest.approx(4.980829, abs=5e-7)


@pytest.mark.parametrize("loss", [mv_infonce, mv_dhel, pairwise, average, geometric])
def test_order_of_views_and_samples_scale_and_rotation_do_not_matter_and_every_view_has_gradient(loss):
    torch.manual_seed(1)
    views = [torch.randn(6, 4, dtype=torch.float64, requires_grad=True) for _ in range(3)]
    value = loss(*views, temperature=0.3)
    turn, _ = torch.linalg.qr(torch.randn(4, 4, dtype=torch.float64))
    mixed = torch.randperm(6)
    torch.testing.assert_close(loss(*[3 * view[mixed] @ turn for view in views[::-1]], temperature=0.3), value)
    assert torch.autograd.gradcheck(lambda *z: loss(*z, temperature=0.3), tuple(views))
    assert all(g.abs().sum() > 0 for g in torch.autograd.grad(value, views))


def test_dhel_has_no_term_between_views_of_different_samples():
    """Turning all views of one sample against those of another, within one view, is all that is seen."""
    torch.manual_seed(2)
    a, b = torch.randn(2, 4, 6, dtype=torch.float64)
    turn, _ = torch.linalg.qr(torch.randn(6, 6, dtype=torch.float64))
    pairs = (torch.nn.functional.normalize(a, dim=1) * torch.nn.functional.normalize(b, dim=1)).sum(1) / 0.5
    value = mv_dhel(a, b, temperature=0.5)
    turned = mv_dhel(a, b @ turn, temperature=0.5)
    after = (torch.nn.functional.normalize(a, dim=1) * torch.nn.functional.normalize(b @ turn, dim=1)).sum(1) / 0.5
    torch.testing.assert_close(turned + after.mean(), value + pairs.mean())


def test_many_views_at_a_small_temperature_do_not_overflow():
    torch.manual_seed(3)
    views = torch.randn(8, 64, 16)
    loss = mv_dhel(*views, temperature=0.02)
    assert torch.isfinite(loss)


def test_settings_that_mean_nothing_are_refused():
    with pytest.raises(SettingsError, match="the other losses have one form"):
        validate(Config, {"loss": "average", "published": True}, file="r", owner="objectives/mv_contrastive")
    for name in ("mv_infonce", "mv_dhel", "pairwise", "average", "geometric"):
        assert torch.isfinite(build(Config(loss=name))(FIRST, SECOND, THIRD).total)
