"""The loss equals its equation written out in float64, draw by draw; draws have the frequencies it assumes."""

import math

import numpy as np
import pytest
import torch
from scipy import stats

from appssl.ops.shared_negatives import Drawn, SharedNegatives, log_probability, own_places, shared_softmax

ITEMS = [3, 0, 5, 3]  # of four rows
DRAWS = [0, 3, 3, 1, 0, 0, 4]
Q = {0: 0.4, 1: 0.2, 2: 0.1, 3: 0.15, 4: 0.1, 5: 0.05}


def vectors(dtype=torch.float64):
    torch.manual_seed(0)
    return [torch.randn(4, 3, dtype=dtype), torch.randn(4, 3, dtype=dtype), torch.randn(6, 3, dtype=dtype)]


def literal(queries, positives, catalogue, corrected):
    total = 0.0
    for i, item in enumerate(ITEMS):
        own = math.exp(float(queries[i] @ positives[i]))
        others = 0.0
        for drawn in DRAWS:
            if drawn != item:
                expected = len(DRAWS) * Q[drawn] if corrected else 1.0
                others += math.exp(float(queries[i] @ catalogue[drawn]) - math.log(expected))
        total -= math.log(own / (own + others))
    return total / len(ITEMS)


def drawn():
    items, counts = torch.tensor(DRAWS).unique(return_counts=True)
    return Drawn(items, counts, torch.tensor([Q[int(item)] for item in items], dtype=torch.float64).log())


def loss(queries, positives, catalogue, corrected=True):
    found = drawn()
    own = own_places(torch.tensor(ITEMS), found.items)
    return shared_softmax(queries, positives, catalogue[found.items], found.log_weight(corrected=corrected), own)


@pytest.mark.parametrize("corrected", [True, False])
def test_equals_the_equation_with_repeated_draws_and_own_positives_among_them(corrected):
    given = vectors()
    assert float(loss(*given, corrected)) == pytest.approx(literal(*given, corrected), rel=1e-12)


def test_gradients_are_those_of_the_loss():
    given = [tensor.requires_grad_() for tensor in vectors()]
    assert torch.autograd.gradcheck(loss, given)


def test_with_many_draws_it_has_the_loss_and_the_gradient_of_the_softmax_over_all_items():
    size, items = 6, torch.tensor([0, 2, 5])
    torch.manual_seed(1)
    draw = SharedNegatives(torch.arange(size), 400_000, "log_uniform")()
    scores = torch.randn(3, size, dtype=torch.float64, requires_grad=True)
    eye = torch.eye(size, dtype=torch.float64)
    own = own_places(items, draw.items)
    found = shared_softmax(scores, eye[items], eye[draw.items], draw.log_weight(corrected=True), own)
    full = torch.nn.functional.cross_entropy(scores, items)
    assert float(found.detach()) == pytest.approx(float(full.detach()), abs=0.005)  # shares vary by 0.5 %
    one, two = torch.autograd.grad(found, scores)[0], torch.autograd.grad(full, scores)[0]
    torch.testing.assert_close(one, two, atol=0.002, rtol=0)


def test_the_log_uniform_distribution_is_one():
    assert log_probability(torch.arange(3), 3, "log_uniform").exp().tolist() == pytest.approx(
        [0.5, math.log(1.5) / math.log(4), math.log(4 / 3) / math.log(4)]
    )
    for size in (1, 2, 1000, 1_000_000):
        assert float(log_probability(torch.arange(size), size, "log_uniform").exp().sum()) == pytest.approx(1.0)


@pytest.mark.parametrize("draw", ["log_uniform", "uniform"])
def test_draws_have_their_probabilities(draw):
    torch.manual_seed(2)
    ranked = torch.randperm(50)
    found = SharedNegatives(ranked, 100_000, draw)()
    assert int(found.counts.sum()) == 100_000
    counts = np.zeros(50)
    counts[found.items] = found.counts
    if draw == "uniform":
        expected = np.full(50, 2000.0)
    else:
        ranks = np.arange(50)
        expected = np.empty(50)
        expected[ranked] = 100_000 * (np.log(ranks + 2) - np.log(ranks + 1)) / np.log(51)
    assert stats.chisquare(counts, expected).pvalue > 0.001
    np.testing.assert_allclose(found.log_probability, np.log(expected / 100_000)[found.items], rtol=1e-9)


def test_each_drawn_item_comes_once_in_rising_order_and_the_seed_decides():
    sampler = SharedNegatives(torch.tensor([7, 2, 9, 4]), 64, "uniform")
    torch.manual_seed(3)
    one, two = sampler(), sampler()
    torch.manual_seed(3)
    again = sampler()
    assert one.items.tolist() == [2, 4, 7, 9]
    assert torch.equal(one.counts, again.counts)
    assert not torch.equal(one.counts, two.counts)


def test_own_places_are_those_found_by_comparing_everything():
    rng = np.random.default_rng(0)
    items = torch.from_numpy(rng.integers(0, 40, 200))
    negatives = torch.from_numpy(np.sort(rng.choice(40, 12, replace=False)))
    rows, columns = own_places(items, negatives)
    expected = (items[:, None] == negatives).nonzero()
    assert torch.equal(torch.stack([rows, columns], dim=1), expected)


def test_where_nothing_but_the_positive_was_drawn_the_loss_is_zero():
    sampler = SharedNegatives(torch.tensor([4]), 8, "log_uniform")()
    assert sampler.items.tolist() == [4]
    given = [torch.randn(2, 3, requires_grad=True) for _ in range(2)] + [torch.randn(1, 3, requires_grad=True)]
    own = own_places(torch.tensor([4, 4]), sampler.items)
    found = shared_softmax(*given, sampler.log_weight(corrected=True), own)
    found.backward()
    assert float(found.detach()) == 0.0
    assert all(torch.equal(tensor.grad, torch.zeros_like(tensor)) for tensor in given)


def test_large_scores_stay_finite():
    for scale in (1e3, -1e3):
        queries = torch.tensor([[scale]], requires_grad=True)
        found = shared_softmax(
            queries, torch.ones(1, 1), torch.zeros(2, 1), torch.zeros(2), (torch.tensor([0]), torch.tensor([1]))
        )
        found.backward()
        assert float(found.detach()) == max(0.0, -scale)
        assert torch.isfinite(queries.grad).all()


def test_under_lower_precision_the_loss_is_float32():
    given = [tensor.bfloat16() for tensor in vectors()]
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = loss(*given)
    assert found.dtype == torch.float32
    assert float(found) == pytest.approx(literal(*[tensor.double() for tensor in given], True), rel=1e-5)
