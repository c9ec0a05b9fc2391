import math

import pytest
import torch
from torch import nn

from appssl.errors import DataError, SettingsError
from appssl.objectives.groco import Config, build, groco, group_order_loss, standardized, top_mass
from appssl.settings import validate
from tests.objectives.views import FIRST, SECOND


def sorting(values, beta):
    """Sorted values and the relaxed permutation X, list of rows, written out for one list of numbers."""
    values, size = list(values), len(values)
    matrix = [[float(e == r) for r in range(size)] for e in range(size)]
    for layer in range(size):
        for i in range(layer % 2, size - 1, 2):
            a, b = values[i], values[i + 1]
            alpha = 0.5 + math.atan(beta * (b - a)) / math.pi
            values[i], values[i + 1] = alpha * a + (1 - alpha) * b, (1 - alpha) * a + alpha * b
            for row in matrix:
                left, right = row[i], row[i + 1]
                row[i], row[i + 1] = alpha * left + (1 - alpha) * right, (1 - alpha) * left + alpha * right
    return values, matrix


def literal_group(negatives, positives, beta):
    _, matrix = sorting([*sorted(negatives), *sorted(positives)], beta)
    loss, k = 0.0, len(negatives)
    for e, row in enumerate(matrix):
        p = sum(row[k:])
        loss -= math.log(p) if e >= k else math.log(1 - p)
    return loss / len(matrix)


def literal(views, k, beta, num_positive):
    unit = [[row / row.norm() for row in view] for view in views]
    losses = []
    for a in range(len(views)):
        for i in range(len(views[0])):
            positives = [float(unit[a][i] @ unit[b][i]) for b in range(num_positive) if b != a]
            others = sorted(float(unit[a][i] @ unit[a][j]) for j in range(len(views[0])) if j != i)
            losses.append(literal_group(others[-k:], positives, beta))
    return sum(losses) / len(losses)


def drawn(seed, *shape):
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize(("count", "num_positive"), [(2, None), (3, None), (4, 2)])
@pytest.mark.parametrize(("k", "beta"), [(1, 1.0), (4, 1.0), (3, 20.0), (50, 2.0)])
def test_equals_the_equation_written_out_in_float64(count, num_positive, k, beta):
    views = drawn(count, count, 6, 5)
    loss, _ = groco(*views, num_negatives=k, steepness=beta, num_positive_views=num_positive)
    assert float(loss) == pytest.approx(literal(views, k, beta, num_positive or count), rel=1e-11)


def rows(*values):
    return torch.tensor([values], dtype=torch.float64)


def test_the_worked_numbers_of_the_card():
    assert float(group_order_loss(rows(0.2), rows(0.9), 1.0)) == pytest.approx(0.364707, abs=1e-6)
    mass = top_mass(rows(0.1, 0.5, 0.8), 1, 1.0)
    assert mass[0].tolist() == pytest.approx([0.138288, 0.226703, 0.635009], abs=1e-6)
    assert float(group_order_loss(rows(0.1, 0.5), rows(0.8), 1.0)) == pytest.approx(0.286681, abs=1e-6)
    mass = top_mass(rows(-0.3, 0.1, 0.5, 0.2, 0.8), 2, 1.0)
    assert mass[0].tolist() == pytest.approx([0.129504, 0.168565, 0.518690, 0.453499, 0.729741], abs=1e-6)
    assert float(group_order_loss(rows(-0.3, 0.1, 0.5), rows(0.2, 0.8), 1.0)) == pytest.approx(0.432073, abs=1e-6)
    for k, beta, expected in ((2, 1.0, 0.169349), (1, 1.0, 0.303288), (2, 10.0, 0.023796)):
        assert float(groco(FIRST, SECOND, num_negatives=k, steepness=beta)[0]) == pytest.approx(expected, abs=1e-6)


@pytest.mark.parametrize(
    ("positives", "right", "equal", "reversed_"),
    [(1, 0.146972, 0.201983, 0.264333), (2, 0.155581, 0.255678, 0.362127), (3, 0.139745, 0.250855, 0.395609)],
)
def test_the_range_of_the_loss_at_ten_negatives(positives, right, equal, reversed_):
    for low, high, expected in ((-1.0, 1.0, right), (0.3, 0.3, equal), (1.0, -1.0, reversed_)):
        found = group_order_loss(rows(*[low] * 10), rows(*[high] * positives), 1.0)
        assert float(found) == pytest.approx(expected, abs=1e-6)


def test_one_positive_and_one_negative_is_the_logarithm_of_the_comparator():
    for beta in (0.5, 7.0):
        expected = -math.log(0.5 + math.atan(beta * (0.1 - 0.6)) / math.pi)
        assert float(group_order_loss(rows(0.6), rows(0.1), beta)) == pytest.approx(expected, rel=1e-12)
    assert float(group_order_loss(rows(0.4), rows(0.4), 3.0)) == pytest.approx(math.log(2), rel=1e-12)


def test_shares_of_all_elements_sum_to_the_ranks_and_a_shift_changes_nothing():
    values = drawn(1, 4, 9)
    for count in (1, 4, 9):
        mass = top_mass(values, count, 2.0)
        assert mass.sum(1).tolist() == pytest.approx([count] * 4, rel=1e-12)
        torch.testing.assert_close(top_mass(values + 5, count, 2.0), mass, rtol=1e-9, atol=1e-12)
    assert top_mass(values, 9, 2.0).flatten().tolist() == pytest.approx([1] * 36, rel=1e-12)
    assert top_mass(values, 1, 2.0)[0].tolist() == pytest.approx([row[-1] for row in sorting(values[0], 2.0)[1]])


def test_steep_comparators_sort_hard():
    values = drawn(2, 5, 7)
    mass = top_mass(values, 3, 1e9)
    top = torch.zeros_like(values).scatter(1, values.topk(3, dim=1).indices, 1.0)
    torch.testing.assert_close(mass, top, rtol=0, atol=1e-6)
    assert float(group_order_loss(rows(-0.2, 0.1), rows(0.3, 0.9), 1e9)) < 1e-6


def test_gradients_flow_through_the_anchor_only():
    a, b = drawn(3, 2, 6, 4)
    for anchored in (0, 1):
        views = [a.clone().requires_grad_(), b.clone().requires_grad_()]
        constant = [view.detach() for view in views]
        both = [views[n] if n == anchored else constant[n] for n in (0, 1)]
        (found,) = torch.autograd.grad(groco(*both, num_negatives=2, steepness=1.0)[0], views[anchored])
        # The cosines of this view as anchor, with constants on the other side.
        unit, keys = nn.functional.normalize(views[anchored], dim=1), nn.functional.normalize(a if anchored == 0 else b)
        other = nn.functional.normalize(constant[1 - anchored], dim=1)
        similarity = (unit @ keys.T).masked_fill(torch.eye(6, dtype=torch.bool), -9)
        negatives = similarity.topk(2, dim=1).values.flip(1)
        half = group_order_loss(negatives, (unit * other).sum(1, keepdim=True), 1.0).mean() / 2
        torch.testing.assert_close(found, torch.autograd.grad(half, views[anchored])[0])


def test_a_small_crop_is_an_anchor_but_no_positive():
    large_one, large_two, small = drawn(4, 3, 8, 4)
    three = groco(large_one, large_two, small, num_negatives=2, steepness=1.0, num_positive_views=2)[0]
    two = groco(large_one, large_two, num_negatives=2, steepness=1.0)[0]
    unit = [nn.functional.normalize(view, dim=1) for view in (large_one, large_two, small)]
    of_small = [
        literal_group(
            sorted(float(unit[2][i] @ unit[2][j]) for j in range(8) if j != i)[-2:],
            [float(unit[2][i] @ unit[0][i]), float(unit[2][i] @ unit[1][i])],
            1.0,
        )
        for i in range(8)
    ]
    assert float(three) * 3 == pytest.approx(float(two) * 2 + sum(of_small) / 8, rel=1e-11)


def test_rows_may_be_permuted_views_swapped_and_embeddings_scaled():
    a, b = drawn(5, 2, 7, 4)
    value = groco(a, b, num_negatives=3, steepness=1.0)[0]
    mixed = torch.randperm(7, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(groco(b[mixed] * 3, a[mixed] * 0.1, num_negatives=3, steepness=1.0)[0], value)


def test_the_module_standardizes_as_a_batch_normalization_over_all_views():
    a, b = drawn(6, 2, 7, 4).float()
    norm = nn.BatchNorm1d(4, affine=False).train()
    expected = norm(torch.cat([a, b]) * 5 + 2).chunk(2)
    found = standardized((a * 5 + 2, b * 5 + 2))
    torch.testing.assert_close(found, expected)
    loss = build(Config())(a * 5 + 2, b * 5 + 2)
    torch.testing.assert_close(loss.total, groco(*expected, num_negatives=10, steepness=1.0)[0])
    plain = build(Config(batch_norm=False, num_negatives=2))(FIRST, SECOND)
    assert float(plain.total) == pytest.approx(0.169349, abs=1e-6)
    assert float(plain.terms["ordered"]) == 1
    turned = build(Config(batch_norm=False, num_negatives=2))(FIRST, -SECOND)
    assert float(turned.terms["ordered"]) == 0


@pytest.mark.parametrize("beta", [1.0, 1e4])
def test_half_precision_autocast_and_equal_or_zero_embeddings_are_finite(beta):
    objective = build(Config(steepness=beta))
    for views in (drawn(7, 2, 8, 4).bfloat16(), torch.ones(2, 8, 4).bfloat16(), torch.zeros(2, 8, 4)):
        views = views.requires_grad_()
        with torch.autocast("cpu", dtype=torch.bfloat16):
            loss = objective(*views).total
        loss.backward()
        assert loss.dtype == torch.float32
        assert torch.isfinite(loss)
        assert torch.isfinite(views.grad).all()


def test_a_pair_of_samples_is_the_smallest_batch_and_one_is_refused():
    a, b = drawn(8, 2, 2, 4)
    loss, _ = groco(a, b, num_negatives=10, steepness=1.0)  # a single negative
    assert float(loss) == pytest.approx(literal((a, b), 1, 1.0, 2), rel=1e-11)
    for batch_norm in (True, False):
        with pytest.raises(DataError, match="groco needs two or more samples in a batch, got 1"):
            build(Config(batch_norm=batch_norm))(a[:1], b[:1])


def test_errors_of_the_number_of_positive_views_and_of_settings():
    with pytest.raises(DataError, match="num_positive_views is 3, but there are 2 views"):
        build(Config(num_positive_views=3))(FIRST, SECOND)
    with pytest.raises(DataError, match="with num_positive_views 1 the first view has no positive"):
        build(Config(num_positive_views=1))(FIRST, SECOND)
    with pytest.raises(SettingsError, match=r"num_negatives is not valid: .* \(got 0\)"):
        validate(Config, {"num_negatives": 0}, file="r.yaml", owner="objectives/groco")
