import math
from collections import Counter

import numpy as np
import pytest

from appssl.ops.interactions.mutual_information import field_codes, mutual_information

WORKED = np.array([[0, 0, 1], [0, 0, 0], [1, 1, 1], [1, 1, 0], [2, 1, 1], [2, 0, 0]])
FIELDS = [
    {"name": "a", "start": 0, "length": 1},
    {"name": "b", "start": 1, "length": 3},
    {"name": "c", "start": 4, "length": 1},
]


def literal(one, two):
    """The double sum over the values of two features."""
    size = len(one)
    of_one, of_two, joint = Counter(one), Counter(two), Counter(zip(one, two, strict=True))
    return sum(
        joint[u, v] / size * math.log((joint[u, v] / size) / (of_one[u] / size * of_two[v] / size))
        for u in of_one
        for v in of_two
        if joint[u, v]
    )


def test_equals_the_double_sum_over_values_in_float64():
    rng = np.random.default_rng(0)
    codes = np.stack([rng.integers(0, size, 200) for size in (2, 5, 9, 60)], axis=1)
    codes[:, 3] += 7 * codes[:, 1]
    found = mutual_information(codes)
    for a in range(4):
        for b in range(4):
            expected = literal(codes[:, a].tolist(), codes[:, b].tolist())
            assert found[a, b] == pytest.approx(expected, rel=1e-10, abs=1e-12)


def test_the_worked_numbers():
    found = mutual_information(WORKED)
    assert found[0, 1] == pytest.approx(0.462098, abs=1e-6)
    assert found[0, 2] == pytest.approx(0, abs=1e-12)
    assert found[1, 2] == pytest.approx(0.056633, abs=1e-6)


def test_it_is_symmetric_not_negative_and_the_entropy_of_duplicated_columns():
    rng = np.random.default_rng(1)
    column = rng.integers(0, 4, 500)
    other = rng.permutation(column)
    found = mutual_information(np.stack([column, 9 - 3 * column, other, np.arange(500)], axis=1))
    shares = np.bincount(column) / 500
    entropy = -(shares * np.log(shares)).sum()
    assert (found == found.T).all()
    assert (found >= 0).all()
    assert found[0, 1] == pytest.approx(entropy)  # other names of the same values
    assert found[0, 0] == pytest.approx(entropy)
    assert found[0, 3] == pytest.approx(entropy)  # a feature that tells items apart
    assert 0 < found[0, 2] < 0.05


def test_independent_columns_share_nothing_and_a_feature_with_one_value_neither():
    grid = np.array([[a, b, 5] for a in range(3) for b in range(4)])
    assert mutual_information(grid)[np.triu_indices(3, 1)] == pytest.approx(0, abs=1e-12)


def test_numbers_may_be_large_negative_or_few():
    codes = np.array([[-(2**62), 2**62], [2**62, 3], [2**62, 3]])
    assert mutual_information(codes)[0, 1] == pytest.approx(literal([0, 1, 1], [0, 1, 1]))
    assert mutual_information(codes[:1]).tolist() == [[0, 0], [0, 0]]
    assert mutual_information(codes[:, :1]).shape == (1, 1)


def test_a_field_of_several_values_is_the_set_of_them():
    tokens = np.array([[1, 5, 6, 0, 9], [1, 6, 5, 0, 0], [2, 5, 0, 0, 9], [2, 0, 0, 0, 9], [1, 0, 5, 6, 9]])
    codes = field_codes(tokens, FIELDS)
    assert codes[:, 0].tolist() == [1, 1, 2, 2, 1]
    assert codes[:, 2].tolist() == [9, 0, 9, 9, 9]
    assert codes[0, 1] == codes[1, 1] == codes[4, 1]
    assert len(set(codes[:, 1].tolist())) == 3
    assert codes[3, 1] == 0


def test_sets_of_many_tokens_get_numbers_of_their_own():
    rng = np.random.default_rng(2)
    tokens = np.sort(rng.integers(1, 40, (20_000, 4)), axis=1)
    codes = field_codes(tokens, [{"start": 0, "length": 4}])
    assert len(np.unique(codes)) == len(np.unique(tokens, axis=0))
