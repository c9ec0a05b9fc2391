"""The discrepancy equals a loop over pairs in float64, and the worked number of the specification."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from appssl.ops.mmd import FLOOR, SCALES, mmd2


def literal(x, y, scales=SCALES):
    def kernel(a, b):
        squared = sum((p - q) ** 2 for p, q in zip(a, b, strict=True))
        return sum(math.exp(-squared / (2 * s)) for s in scales)

    def mean(first, second):
        return sum(kernel(a, b) for a in first for b in second) / (len(first) * len(second))

    return mean(x, x) + mean(y, y) - 2 * mean(x, y)


def test_the_worked_number():
    x = torch.tensor([[0.0, 0.0], [1.0, 0.0]])
    y = torch.tensor([[0.5, 0.5], [2.0, 1.0]])
    assert mmd2(x, y[None]).item() == pytest.approx(4.853738, abs=1e-6)


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 10_000), st.integers(1, 5), st.integers(1, 5), st.floats(0.01, 30), st.floats(-50, 50))
def test_equals_the_loop_over_pairs_also_far_from_the_origin(seed, count, others, spread, offset):
    generator = torch.Generator().manual_seed(seed)
    x = offset + spread * torch.randn(count, 6, generator=generator, dtype=torch.float64)
    ys = offset + spread * torch.randn(3, others, 6, generator=generator, dtype=torch.float64)
    expected = [max(FLOOR, literal(x.tolist(), y.tolist())) for y in ys]
    assert mmd2(x, ys).tolist() == pytest.approx(expected, rel=1e-5, abs=1e-6)


def test_equal_sets_are_at_the_floor_and_far_ones_at_the_bound():
    x = torch.randn(8, 5)
    assert mmd2(x, torch.stack([x, x[torch.randperm(8)]])).tolist() == pytest.approx([FLOOR, FLOOR])
    single = torch.zeros(1, 5)
    assert mmd2(single, single[None] + 1e4).item() == pytest.approx(2 * len(SCALES))


def test_is_symmetric_and_has_no_gradient():
    x, y = torch.randn(4, 3, requires_grad=True), torch.randn(6, 3, requires_grad=True)
    one, two = mmd2(x, y[None]), mmd2(y, x[None])
    torch.testing.assert_close(one, two)
    assert not one.requires_grad


def test_no_other_set_gives_no_value():
    assert mmd2(torch.randn(4, 3), torch.randn(0, 4, 3)).shape == (0,)
