import numpy as np
import pytest
import torch

from appssl.ops.interactions import reasons
from appssl.ops.interactions.reasons import nearest_in_history
from appssl.ops.interactions.topk import seen_matrix

NUM_USERS, NUM_ITEMS = 12, 30


def world(seed):
    rng = np.random.default_rng(seed)
    vectors = rng.standard_normal((NUM_ITEMS, 5)) * rng.uniform(0.1, 9, (NUM_ITEMS, 1))
    lengths = [0, 1, 2, 25, 3, 0, 8, 8, 1, 14, 5, 2]
    histories = [sorted(rng.choice(NUM_ITEMS, length, replace=False).tolist()) for length in lengths]
    pairs = [(user, item) for user, history in enumerate(histories) for item in history]
    seen = seen_matrix(*np.array(pairs).T, NUM_USERS, NUM_ITEMS)
    users = rng.permutation(NUM_USERS)[:9]
    items = rng.integers(-1, NUM_ITEMS, (9, 4))
    return vectors, histories, seen, users, items


def literal(vectors, history, item, num):
    """Items and cosines, one after the other, in float64."""
    if item < 0:
        return [-1] * num, [-np.inf] * num
    found = []
    for other in history:
        norms = np.sqrt((vectors[item] ** 2).sum()) * np.sqrt((vectors[other] ** 2).sum())
        found.append((other, (vectors[item] * vectors[other]).sum() / norms))
    found = sorted(found, key=lambda pair: (-pair[1], pair[0]))[:num]
    missing = num - len(found)
    return [o for o, _ in found] + [-1] * missing, [c for _, c in found] + [-np.inf] * missing


@pytest.mark.parametrize("elements", [1, 40, 10**6])
@pytest.mark.parametrize("num", [1, 3, 40])
def test_equals_a_loop_over_the_history_whatever_is_taken_together(monkeypatch, elements, num):
    monkeypatch.setattr(reasons, "_ELEMENTS", elements)
    vectors, histories, seen, users, items = world(0)
    near, cosines = nearest_in_history(torch.from_numpy(vectors), items, users, seen, num)
    for row, user in enumerate(users):
        for column, item in enumerate(items[row]):
            expected, values = literal(vectors, histories[user], item, num)
            assert near[row, column].tolist() == expected
            np.testing.assert_allclose(cosines[row, column], values, atol=2e-6)


def test_equal_vectors_go_by_number_and_a_zero_vector_is_near_to_nothing():
    vectors = torch.tensor([[1.0, 0.0], [2.0, 0.0], [0.0, 0.0], [5.0, 0.0]])
    seen = seen_matrix(np.array([0, 0, 0]), np.array([3, 1, 2]), 1, 4)
    near, cosines = nearest_in_history(vectors, np.array([[0]]), np.array([0]), seen, 3)
    assert near.tolist() == [[[1, 3, 2]]]
    assert cosines.tolist() == [[[1.0, 1.0, 0.0]]]


def test_users_without_a_history_get_no_reason():
    _, _, seen, _, _ = world(0)
    near, cosines = nearest_in_history(torch.ones(NUM_ITEMS, 2), np.array([[1, 2]]), np.array([0]), seen, 3)
    assert (near == -1).all()
    assert np.isneginf(cosines).all()
