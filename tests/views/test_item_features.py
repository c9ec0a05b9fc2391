import numpy as np
import pytest

from appssl.contracts import Meta
from appssl.errors import DataError
from appssl.ops.random import rng_for
from appssl.views.item_features import Config, build

FIELDS = [
    {"name": "a", "start": 0, "length": 1},
    {"name": "b", "start": 1, "length": 4},
    {"name": "c", "start": 5, "length": 1},
]
META = Meta(source="recsys", domain="recsys", task="ranking", facts={"fields": FIELDS})
ITEM = np.array([3, 5, 6, 7, 0, 9])


def hidden_fields(view):
    return [not view[f["start"] : f["start"] + f["length"]].any() for f in FIELDS]


def test_complementary_views_show_every_field_exactly_once():
    views = build(Config(dropout=0.0), META)
    for index in range(30):
        first, second = views.views(ITEM, rng_for(0, 0, index))
        assert [a != b for a, b in zip(hidden_fields(first), hidden_fields(second), strict=True)] == [True] * 3
        assert 1 <= sum(hidden_fields(first)) <= 2


def test_dropout_touches_multi_valued_fields_only():
    views = build(Config(mask=0.0, complementary=False, dropout=0.9), META)
    for index in range(20):
        for view in views.views(ITEM, rng_for(0, 0, index)):
            assert (view[0], view[5]) == (3, 9)


def test_views_are_a_function_of_the_generator_and_leave_the_item_alone():
    views = build(Config(), META)
    one, two = (views.views(ITEM, rng_for(1, 2, 3)) for _ in range(2))
    assert all((a == b).all() for a, b in zip(one, two, strict=True))
    assert views.plain(ITEM).tolist() == ITEM.tolist() == [3, 5, 6, 7, 0, 9]


def test_items_without_features_are_refused():
    with pytest.raises(DataError, match="needs items with features"):
        build(Config(), Meta(source="wsi", domain="wsi", task="classification"))


def test_without_masking_only_dropout_is_left_and_a_hidden_value_does_not_matter():
    views = build(Config(masking="none", dropout=0.0), META)
    assert all(view.tolist() == ITEM.tolist() for view in views.views(ITEM, rng_for(0, 0, 0)))
    masked = build(Config(dropout=0.0), META)
    for index in range(10):
        first, _ = masked.views(ITEM, rng_for(0, 0, index))
        other = np.where((first.numpy() == 0) & (ITEM != 0), ITEM + 1, ITEM)
        assert masked.views(other, rng_for(0, 0, index))[0].tolist() == first.tolist()


def test_a_lightly_augmented_item_hides_no_field_with_one_value():
    views = build(Config(dropout=0.9), META)
    for index in range(20):
        view = views.augment(ITEM, rng_for(0, 0, index))
        assert (view[0], view[5]) == (3, 9)
