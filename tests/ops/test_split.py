import pytest

from appssl.errors import DataError
from appssl.ops.split import GroupSplit, group_split, refuse_leak

GROUPS = [f"p{i}" for i in range(20)]


def test_every_group_gets_exactly_one_part_and_all_parts_exist():
    parts = group_split(GROUPS * 3, GroupSplit(test=0.2, val=0.1))
    assert sorted(parts) == sorted(GROUPS)
    assert {p: list(parts.values()).count(p) for p in ("train", "val", "test")} == {"train": 14, "val": 2, "test": 4}


def test_the_order_of_the_input_does_not_matter():
    assert group_split(GROUPS, GroupSplit()) == group_split(GROUPS[::-1], GroupSplit())


def test_another_seed_divides_otherwise():
    assert group_split(GROUPS, GroupSplit(seed=0)) != group_split(GROUPS, GroupSplit(seed=1))


def test_a_share_above_zero_gets_at_least_one_group():
    assert list(group_split(["a", "b", "c"], GroupSplit(test=0.01)).values()).count("test") == 1


def test_one_group_only_cannot_be_split():
    with pytest.raises(DataError, match=r"1 group\(s\) \(only\) cannot be divided"):
        group_split(["only"] * 5, GroupSplit())


def test_named_test_groups_must_exist():
    with pytest.raises(DataError, match="unknown groups: zz"):
        group_split(GROUPS, GroupSplit(test_groups=("zz",)))
    assert group_split(GROUPS, GroupSplit(test_groups=("p3",)))["p3"] == "test"


def test_a_leak_is_refused_with_the_offending_groups():
    with pytest.raises(DataError, match=r"1 patient\(s\) are in more than one part: p7 in test, train"):
        refuse_leak({"p7": {"train", "test"}, "p8": {"train"}}, "patient")
