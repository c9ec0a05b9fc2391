"""The estimate equals the algorithm written out in float64, item by item, and finds the true probabilities."""

import math

import numpy as np
import pytest
import torch

from appssl.ops.gap_frequencies import GapFrequencies

SHARES = np.array([0.4, 0.2, 0.15, 0.1, 0.1, 0.04, 0.01])


def stream(steps, size, shares=SHARES, seed=0):
    rng = np.random.default_rng(seed)
    return [rng.choice(len(shares), size, p=shares) for _ in range(steps)]


def estimated(batches, buckets, rate, into=None):
    found = GapFrequencies(buckets, rate).double() if into is None else into
    for batch in batches:
        found.update(torch.from_numpy(batch))
    return found


def literal(batches, buckets, rate):
    gap, last = [0.0] * buckets, [0] * buckets
    for t, batch in enumerate(batches, start=1):
        for bucket in {int(item) % buckets for item in batch}:
            new = t - last[bucket]
            gap[bucket] = (1 - rate) * gap[bucket] + rate * new if gap[bucket] else float(new)
            last[bucket] = t
    return gap


@pytest.mark.parametrize("buckets", [7, 3])
def test_equals_the_algorithm_with_items_that_come_more_than_once_and_buckets_that_are_shared(buckets):
    batches = stream(200, 5)
    found = estimated(batches, buckets, 0.1)
    gaps = literal(batches, buckets, 0.1)
    assert found.gaps.tolist() == pytest.approx(gaps, rel=1e-12)
    items = torch.arange(7)
    assert found(items).tolist() == pytest.approx([-math.log(gaps[n % buckets]) for n in range(7)], rel=1e-12)


def test_it_finds_the_probability_that_a_batch_holds_an_item():
    truth = 1 - (1 - SHARES) ** 4
    estimates = [estimated(stream(20_000, 4, seed=seed), 7, 0.01).gaps.numpy() for seed in range(4)]
    # a gap varies by about its mean, so a running mean with rate a varies by sqrt(a / 2) of it; a mean of four by half
    np.testing.assert_allclose(np.mean(estimates, axis=0), 1 / truth, rtol=4 * math.sqrt(0.01 / 2) / 2)


def test_it_follows_when_frequencies_change():
    found = estimated(stream(5000, 4), 7, 0.02)
    before = float(found.gaps[6])
    found = estimated(stream(5000, 4, SHARES[::-1], seed=1), 7, 0.02, into=found)
    assert before > 15
    assert float(found.gaps[6]) == pytest.approx(1 / (1 - 0.6**4), rel=0.3)


def test_an_item_of_every_batch_has_probability_one_and_an_unmet_one_less_than_any_other():
    found = estimated([np.array([0, 1]), np.array([0]), np.array([0, 0, 2])], 5, 0.01)
    values = found(torch.arange(5)).exp()
    assert values.tolist() == pytest.approx([1.0, 1.0, 1 / 3, 1 / 4, 1 / 4])


def test_its_state_goes_round():
    batches = stream(50, 5)
    whole, half = estimated(batches, 7, 0.1), estimated(batches[:20], 7, 0.1)
    again = GapFrequencies(7, 0.1).double()
    again.load_state_dict(half.state_dict())
    assert torch.equal(estimated(batches[20:], 7, 0.1, into=again).gaps, whole.gaps)
