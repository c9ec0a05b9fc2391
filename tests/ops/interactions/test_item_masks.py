import numpy as np
import pytest

from appssl.ops.interactions.item_masks import ItemMasks, nearest_features
from appssl.ops.interactions.mutual_information import mutual_information
from tests.ops.interactions.test_mutual_information import WORKED

FIELDS = [
    {"name": "a", "start": 0, "length": 1},
    {"name": "b", "start": 1, "length": 3},
    {"name": "c", "start": 4, "length": 1},
]
TOKENS = np.array([[3, 5, 6, 7, 9], [2, 4, 0, 0, 8]])


def drawn(masks, number=200):
    return [masks.draw(np.random.default_rng(n)) for n in range(number)]


def correlated(size, nearest):
    fields = [{"start": n, "length": 1} for n in range(size)]
    return ItemMasks(fields, size, masking="correlated", nearest=nearest)


def test_the_worked_masks_each_seed_hides_itself_and_its_nearest_feature():
    masks = correlated(3, nearest_features(mutual_information(WORKED)))
    found = {tuple(np.flatnonzero(first).tolist()) for first, _ in drawn(masks)}
    assert found == {(0, 1), (1, 2)}  # seeds 1 and 2 hide {1, 2}, seed 3 hides {2, 3}
    share = np.mean([first[0] for first, _ in drawn(masks, 3000)])
    assert share == pytest.approx(2 / 3, abs=0.03)  # every seed equally often


@pytest.mark.parametrize("size", range(2, 9))
def test_a_correlated_mask_hides_half_of_the_features_and_one_but_never_all(size):
    rng = np.random.default_rng(size)
    information = rng.random((size, size))
    information += information.T
    nearest = nearest_features(information)
    for first, second in drawn(correlated(size, nearest), 60):
        hidden = min(size // 2, size - 2) + 1
        assert first.sum() == hidden
        assert (first ^ second).all()
        assert second.sum() >= 1
        seeds = [s for s in range(size) if first[[s, *nearest[s, : hidden - 1]]].all()]
        assert seeds


def test_the_others_are_ordered_by_information_and_ties_by_number():
    information = np.array([[9, 1, 2, 2 + 1e-12], [1, 9, 0, 3], [2, 0, 0.1, 2], [2, 3, 2, 9.0]])
    assert nearest_features(information).tolist() == [[2, 3, 1], [3, 0, 2], [0, 3, 1], [1, 0, 2]]


def test_masks_of_nothing_and_random_masks():
    assert not any(hidden.any() for pair in drawn(ItemMasks(FIELDS, 5, masking="none"), 5) for hidden in pair)
    for first, second in drawn(ItemMasks(FIELDS, 5), 50):
        assert (first ^ second).all()
        assert 1 <= first.sum() <= 2
    own = drawn(ItemMasks(FIELDS, 5, complementary=False), 50)
    assert not all((first ^ second).all() for first, second in own)


def test_what_is_hidden_does_not_depend_on_its_value():
    masks = ItemMasks(FIELDS, 5)
    for n in range(20):
        first, _ = masks.draw(np.random.default_rng(n))
        other = np.where(masks.columns(first), TOKENS + 50, TOKENS)
        hide = [masks.hide(tokens, first, np.random.default_rng(7)) for tokens in (TOKENS, other)]
        assert (hide[0] == hide[1]).all()
        assert (hide[0] == np.where(masks.columns(first), 0, TOKENS)).all()


def test_all_rows_hide_the_same_features_and_drop_their_own_tokens():
    masks = ItemMasks(FIELDS, 5, dropout=0.4)
    tokens = np.tile([[3, 5, 6, 7, 9]], (4000, 1))
    one, two = masks.views(tokens, np.random.default_rng(0))
    for column in (0, 4):
        assert len(np.unique(one[:, column])) == len(np.unique(two[:, column])) == 1
    shown = one if one[:, 1:4].any() else two
    assert (shown[:, 1:4] == 0).mean(axis=0) == pytest.approx(0.4, abs=0.03)
    assert (shown[:, 1:4] == 0).all(axis=1).mean() == pytest.approx(0.4**3, abs=0.02)  # drawn for each by itself


def test_columns_of_no_field_are_never_hidden():
    masks = ItemMasks(FIELDS, 7, dropout=0.9)
    tokens = np.full((50, 7), 4)
    for view in masks.views(tokens, np.random.default_rng(1)):
        assert (view[:, 5:] == 4).all()
    spread = masks.columns(np.array([[True, False, True], [False, True, False]]))
    assert spread.astype(int).tolist() == [[1, 0, 0, 0, 1, 0, 0], [0, 1, 1, 1, 0, 0, 0]]
