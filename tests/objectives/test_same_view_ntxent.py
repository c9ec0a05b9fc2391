import math

import pytest
import torch

from appssl.errors import DataError
from appssl.objectives.ntxent import nt_xent
from appssl.objectives.same_view_ntxent import Config, build, same_view_nt_xent
from tests.ops.test_distributed import PER_PROCESS, views

ONE = torch.tensor([[1, 0], [0.6, 0.8]], dtype=torch.float64)
TWO = torch.tensor([[0.8, 0.6], [0, 1]], dtype=torch.float64)


def literal(views, tau):
    """The equation for each anchor and each of its positives."""
    unit = [[z / z.norm().clamp(min=1e-8) for z in view] for view in views]
    losses = []
    for v, own in enumerate(unit):
        for u, other in enumerate(unit):
            for i, anchor in enumerate(own):
                if u == v:
                    continue
                positive = math.exp(float(anchor @ other[i]) / tau)
                negatives = sum(math.exp(float(anchor @ z) / tau) for j, z in enumerate(own) if j != i)
                losses.append(-math.log(positive / (positive + negatives)))
    return sum(losses) / len(losses)


def drawn(count, *shape, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(*shape, dtype=torch.float64, generator=generator) for _ in range(count)]


@pytest.mark.parametrize("num_views", [2, 3])
@pytest.mark.parametrize("tau", [0.05, 0.5, 2.0])
def test_equals_the_equation_written_out_in_float64(num_views, tau):
    given = drawn(num_views, 5, 7)
    assert float(same_view_nt_xent(*given, temperature=tau)) == pytest.approx(literal(given, tau), rel=1e-12)


def test_the_worked_number():
    assert float(same_view_nt_xent(ONE, TWO, temperature=0.5)) == pytest.approx(0.513015, abs=1e-6)
    assert float(nt_xent(ONE, TWO, temperature=0.5)) == pytest.approx(0.870714, abs=1e-6)


def test_it_is_never_larger_than_nt_xent():
    for seed in range(20):
        given = drawn(2, 6, 4, seed=seed)
        assert same_view_nt_xent(*given, temperature=0.3) < nt_xent(*given, temperature=0.3)


def test_all_equal_gives_the_logarithm_of_the_batch():
    z = torch.ones(8, 4, dtype=torch.float64)
    assert float(same_view_nt_xent(z, z, temperature=0.1)) == pytest.approx(math.log(8), rel=1e-12)


def test_scale_order_of_samples_and_order_of_views_do_not_matter():
    one, other = drawn(2, 6, 5)
    value, mixed = same_view_nt_xent(one, other, temperature=0.2), torch.randperm(6)
    torch.testing.assert_close(same_view_nt_xent(3 * other, 0.1 * one, temperature=0.2), value)
    torch.testing.assert_close(same_view_nt_xent(one[mixed], other[mixed], temperature=0.2), value)


def test_parts_of_a_batch_are_batches_of_their_own():
    given = drawn(3, 12, 5)
    whole = same_view_nt_xent(*given, temperature=0.3, images=4)
    parts = [same_view_nt_xent(*(z[k : k + 4] for z in given), temperature=0.3) for k in (0, 4, 8)]
    torch.testing.assert_close(whole, torch.stack(parts).mean())


def test_the_mean_of_two_processes_is_the_loss_of_one_with_parts():
    """Nothing is exchanged, so the loss of a process is that of its rows."""
    given = views()
    local = [same_view_nt_xent(*(z[k : k + PER_PROCESS] for z in given), temperature=0.3, images=2) for k in (0, 4)]
    torch.testing.assert_close(torch.stack(local).mean(), same_view_nt_xent(*given, temperature=0.3, images=2))


def test_gradient_is_right_and_flows_into_both_views():
    given = [z.requires_grad_(True) for z in drawn(2, 4, 3)]
    assert torch.autograd.gradcheck(lambda a, b: same_view_nt_xent(a, b, temperature=0.3, images=2), given)
    same_view_nt_xent(*given, temperature=0.3).backward()
    assert all(z.grad.abs().sum() > 0 for z in given)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_is_computed_in_float32(dtype):
    given = [z.to(dtype) for z in drawn(2, 16, 8)]
    value = same_view_nt_xent(*given, temperature=0.01)
    assert value.dtype == torch.float32
    expected = same_view_nt_xent(*(z.double() for z in given), temperature=0.01).float()
    torch.testing.assert_close(value, expected, rtol=1e-4, atol=1e-4)


def test_zero_vectors_give_a_finite_loss_and_gradient():
    zero = torch.zeros(3, 4, requires_grad=True)
    same_view_nt_xent(zero, torch.randn(3, 4), temperature=0.1).backward()
    assert torch.isfinite(zero.grad).all()


def test_errors_say_what_to_change():
    with pytest.raises(DataError, match="two or more samples in a batch, got 1"):
        same_view_nt_xent(torch.ones(1, 3), torch.ones(1, 3), temperature=0.1)
    with pytest.raises(DataError, match=r"a batch of 6 is no multiple of images 4\. Set objective\.images"):
        same_view_nt_xent(torch.ones(6, 3), torch.ones(6, 3), temperature=0.1, images=4)


def test_built_from_defaults():
    assert build(Config()).config.temperature == 0.2
