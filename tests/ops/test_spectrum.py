import numpy as np
import pytest

from appssl.errors import DataError
from appssl.ops.spectrum import rank_me, singular_values

CARD = np.array([[1, 2, 0], [0, 1, 1], [2, 0, 1], [1, 1, 1]], dtype=np.float64)


def test_the_worked_numbers_of_the_card():
    assert rank_me(np.diag([3.0, 1.0]), epsilon=0) == pytest.approx(1.754765, abs=5e-7)
    assert rank_me(np.diag([3.0, 1.0, 0.0])) == pytest.approx(1.754768, abs=5e-7)
    assert sorted(singular_values(CARD))[::-1] == pytest.approx([3.263191, 1.791913, 1.068004], abs=5e-7)
    assert rank_me(CARD, epsilon=0) == pytest.approx(2.717189, abs=5e-7)
    assert rank_me(CARD) == pytest.approx(2.7171891, abs=5e-8)


def test_one_direction_has_rank_1_and_orthonormal_columns_have_full_rank():
    one = np.outer(np.arange(1, 6), [1.0, 2.0, 3.0])
    assert rank_me(one, epsilon=0) == pytest.approx(1, abs=1e-6)
    assert rank_me(one) == pytest.approx(1.000003, abs=2e-6)
    columns, _ = np.linalg.qr(np.random.default_rng(0).standard_normal((50, 16)))
    assert rank_me(columns, epsilon=0) == pytest.approx(16, rel=1e-9)
    assert rank_me(columns) == pytest.approx(16.000045, abs=5e-6)


def test_scale_order_rotation_and_repetition_do_not_matter():
    rng = np.random.default_rng(1)
    z = rng.standard_normal((40, 6)) * np.array([5, 3, 2, 1, 0.5, 0.1])
    value = rank_me(z)
    turn, _ = np.linalg.qr(rng.standard_normal((6, 6)))
    for other in (7 * z, z[rng.permutation(40)], z @ turn, np.concatenate([z, z])):
        assert rank_me(other) == pytest.approx(value, rel=1e-9)
    assert 1 <= rank_me(z, epsilon=0) <= 6


def test_centring_and_scaling_by_row_are_other_numbers():
    centred = CARD - CARD.mean(axis=0)
    assert rank_me(centred, epsilon=0) == pytest.approx(2.416667, abs=5e-7)
    assert rank_me(CARD / np.linalg.norm(CARD, axis=1, keepdims=True), epsilon=0) != pytest.approx(2.717189, abs=1e-3)


def test_wide_and_tall_matrices_agree():
    z = np.random.default_rng(2).standard_normal((30, 8))
    assert rank_me(z) == pytest.approx(rank_me(z.T), rel=1e-6)


@pytest.mark.parametrize(
    ("z", "message"),
    [
        (np.zeros((0, 3)), "one row or more"),
        (np.zeros(3), "one row or more"),
        (np.zeros((3, 3)), "not all 0"),
        (np.array([[1.0, np.nan]]), "finite"),
    ],
)
def test_what_has_no_rank_is_refused(z, message):
    with pytest.raises(DataError, match=message):
        rank_me(z)
