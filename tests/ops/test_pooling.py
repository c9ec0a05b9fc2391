import pytest
import torch

from appssl.ops.pooling import features_of_bags, masked_max, masked_mean, pool_probabilities

VALUES = torch.tensor([[[1.0, 4.0], [3.0, 2.0]], [[5.0, 5.0], [9.0, 9.0]]])
MASK = torch.tensor([[True, True], [True, False]])


def test_mean_and_maximum_see_present_rows_only():
    assert masked_mean(VALUES, MASK).tolist() == [[2.0, 3.0], [5.0, 5.0]]
    assert masked_max(VALUES, MASK).tolist() == [[3.0, 4.0], [5.0, 5.0]]


def test_probabilities_of_bags_worked_by_hand():
    """Of 0.2 and 0.6: mean 0.4, maximum 0.6, log((e^0.2 + e^0.6) / 2) = 0.419868."""
    positive = torch.tensor([0.2, 0.6], dtype=torch.float64)
    expected = {"mean": 0.4, "max": 0.6, "logsumexp": 0.419868}
    assert {how: float(pool_probabilities(positive, how)) for how in expected} == pytest.approx(expected, abs=1e-6)


def test_the_network_does_not_see_rows_that_are_not_there():
    seen = []
    found = features_of_bags(lambda tiles: seen.append(len(tiles)) or tiles * 2, VALUES, MASK)
    assert seen == [3]
    assert found.tolist() == [[[2.0, 8.0], [6.0, 4.0]], [[10.0, 10.0], [0.0, 0.0]]]
