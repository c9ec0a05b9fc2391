import math

import pytest
import torch

from appssl.errors import DataError
from appssl.ops.expert_aggregation import aggregate_experts, mix_experts, stability
from appssl.ops.random import permutation

# Logits of three experts for one input, two views.
FIRST = torch.diag(torch.tensor([2.0, 1.0, 1.5], dtype=torch.float64))[:, None]
SECOND = torch.tensor([[1.5, 0.5, 0.0], [0.2, 1.2, 0.0], [0.0, 0.8, 1.0]], dtype=torch.float64)[:, None]


def views(num=40, seed=0, noise=(0.1, 1.0, 3.0), dtype=torch.float32):
    """Logits (3, N, 4) of two views; the experts differ in how much their views differ."""
    generator = torch.Generator().manual_seed(seed)
    clear = 4 * torch.randn(3, num, 4, generator=generator)
    scale = torch.tensor(noise)[:, None, None]
    return tuple((clear + scale * torch.randn(3, num, 4, generator=generator)).to(dtype) for _ in range(2))


def literal_stability(first, second, omega):
    exponents = [math.exp(value) for value in omega]
    weights = [value / sum(exponents) for value in exponents]
    total = 0.0
    for x in range(first.shape[1]):
        predicted = []
        for view in (first, second):
            mixed = [sum(w * float(view[i, x, c]) for i, w in enumerate(weights)) for c in range(view.shape[2])]
            largest = max(mixed)
            shares = [math.exp(value - largest) for value in mixed]
            predicted.append([share / sum(shares) for share in shares])
        dot = sum(a * b for a, b in zip(*predicted, strict=True))
        total += dot / math.prod(math.sqrt(sum(a * a for a in found)) for found in predicted)
    return total / first.shape[1]


def literal_aggregation(passes, *, lr, momentum, weight_decay, batch_size, epochs, smallest, seed):
    """SGD with Nesterov momentum written out; the gradient by central differences."""
    omega, velocity, step = [0.0] * 3, None, 1e-6
    for epoch in range(epochs):
        first, second = passes[epoch % len(passes)]
        order = permutation(seed, epoch, first.shape[1]).tolist()
        for start in range(0, len(order), batch_size):
            rows = order[start : start + batch_size]
            gradient = []
            for i in range(3):
                up, down = ([w + sign * step * (i == j) for j, w in enumerate(omega)] for sign in (1, -1))
                high, low = (literal_stability(first[:, rows], second[:, rows], point) for point in (up, down))
                gradient.append(-(high - low) / (2 * step) + weight_decay * omega[i])
            velocity = gradient if velocity is None else [
                momentum * v + g for v, g in zip(velocity, gradient, strict=True)
            ]  # fmt: skip
            omega = [w - lr * (g + momentum * v) for w, g, v in zip(omega, gradient, velocity, strict=True)]
        exponents = [math.exp(value) for value in omega]
        if min(exponents) / sum(exponents) < smallest:
            break
    return omega


def test_stability_equals_the_equation_written_out():
    first, second = views(dtype=torch.float64)
    omega = torch.tensor([0.3, -0.2, 1.0], dtype=torch.float64)
    assert float(stability(first, second, omega)) == pytest.approx(literal_stability(first, second, omega), rel=1e-12)


@pytest.mark.parametrize("weight_decay", [0.0, 0.05])
def test_aggregation_equals_momentum_descent_written_out(weight_decay):
    passes = [views(num=12, seed=n, dtype=torch.float64) for n in range(2)]
    how = {"lr": 0.5, "momentum": 0.9, "weight_decay": weight_decay, "batch_size": 5, "epochs": 3, "seed": 7}
    found = aggregate_experts(passes, **how, smallest_weight=0.0)
    expected = literal_aggregation(passes, **how, smallest=0.0)
    torch.testing.assert_close(found.omega, torch.tensor(expected), rtol=1e-4, atol=1e-5)  # omega is float32


def test_worked_number():
    equal, tilted = torch.zeros(3).double(), torch.tensor([1.0, 0.0, -1.0]).double()
    assert float(stability(FIRST, SECOND, equal)) == pytest.approx(0.956017, abs=1e-6)
    assert float(stability(FIRST, SECOND, tilted)) == pytest.approx(0.961667, abs=1e-6)
    assert tilted.softmax(0).tolist() == pytest.approx([0.665241, 0.244728, 0.090031], abs=1e-6)
    one, two = (mix_experts(view, tilted).softmax(1) for view in (FIRST, SECOND))
    assert float((one * two).sum()) == pytest.approx(0.395150, abs=1e-6)


def test_identical_views_are_stable_for_any_weights_and_move_nothing():
    first, _ = views(dtype=torch.float64)
    omega = torch.tensor([0.5, -1.0, 2.0], dtype=torch.float64, requires_grad=True)
    found = stability(first, first, omega)
    found.backward()
    assert float(found.detach()) == pytest.approx(1, abs=1e-12)
    assert float(omega.grad.abs().max()) < 1e-12
    torch.testing.assert_close(aggregate_experts([(first, first)], lr=1.0).weights, torch.full((3,), 1 / 3))


def test_equal_weights_mix_to_the_mean_and_a_large_one_to_its_expert():
    first, _ = views(dtype=torch.float64)
    torch.testing.assert_close(mix_experts(first, torch.zeros(3)), first.mean(0))
    torch.testing.assert_close(mix_experts(first, torch.tensor([0.0, 80.0, 0.0])), first[1])


def test_a_shift_of_omega_or_of_all_logits_of_an_input_changes_nothing():
    first, second = views(dtype=torch.float64)
    omega = torch.tensor([0.3, -0.2, 1.0], dtype=torch.float64)
    found = stability(first, second, omega)
    torch.testing.assert_close(stability(first, second, omega + 5), found)
    torch.testing.assert_close(stability(first + torch.randn(3, 40, 1), second, omega), found)


def test_gradient_reaches_omega_only():
    first, second = (view.requires_grad_(True) for view in views())
    omega = torch.zeros(3, requires_grad=True)
    stability(first, second, omega).backward()
    assert omega.grad.abs().sum() > 0
    assert first.grad is None
    assert second.grad is None


def test_the_expert_whose_views_agree_gets_most():
    found = aggregate_experts([views(num=200)], lr=1.0, smallest_weight=0.0)
    assert found.weights.argsort(descending=True).tolist() == [0, 1, 2]
    assert float(found.weights.sum()) == pytest.approx(1, abs=1e-6)
    equal = float(stability(*views(num=200), torch.zeros(3)))
    assert float(stability(*views(num=200), found.omega)) > equal
    assert found.stability[-1] > found.stability[0]


def test_it_stops_after_the_epoch_that_ends_below_the_smallest_weight():
    passes = [views(num=200)]
    whole = aggregate_experts(passes, lr=1.0, epochs=5, smallest_weight=0.0)
    assert (len(whole.stability), whole.stopped_early) == (5, False)
    lowest = float(aggregate_experts(passes, lr=1.0, epochs=2, smallest_weight=0.0).weights.min())
    found = aggregate_experts(passes, lr=1.0, epochs=5, smallest_weight=lowest + 1e-4)
    assert (len(found.stability), found.stopped_early) == (2, True)
    assert float(found.weights.min()) == pytest.approx(lowest, abs=1e-7)  # the offending epoch counts


def test_every_call_begins_again_and_the_seed_is_that_of_the_order_only():
    passes = [views(num=50)]
    one, again = (aggregate_experts(passes, batch_size=8, seed=1) for _ in range(2))
    assert torch.equal(one.omega, again.omega)
    assert not torch.equal(one.omega, aggregate_experts(passes, batch_size=8, seed=2).omega)
    all_at_once = [aggregate_experts(passes, batch_size=50, seed=n).omega for n in (1, 2)]
    torch.testing.assert_close(*all_at_once)


def test_one_input_and_half_precision_and_no_gradient_mode():
    first, second = views(num=1)
    assert torch.isfinite(aggregate_experts([(first, second)]).omega).all()
    half = mix_experts(first.half(), torch.zeros(3))
    assert half.dtype == torch.float32
    with torch.no_grad():
        inside = aggregate_experts([views()]).omega
    assert torch.equal(inside, aggregate_experts([views()]).omega)
    assert float(inside.abs().max()) > 0


@pytest.mark.parametrize("passes", [[], [(torch.zeros(3, 4, 2), torch.zeros(3, 5, 2))], [(torch.zeros(3, 0, 2),) * 2]])
def test_passes_that_do_not_fit_are_refused(passes):
    with pytest.raises(DataError, match=r"logits \(experts, inputs, classes\) of two views"):
        aggregate_experts(passes)
