import pytest

from appssl.errors import DataError
from appssl.ops.split import GroupSplit, fold_of_seed, group_split, refuse_leak

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


def test_every_group_is_in_the_test_part_of_one_fold_and_labels_are_even():
    strata = {group: "abcd"[n % 4] for n, group in enumerate(GROUPS)}
    folds = [group_split(GROUPS, GroupSplit(folds=5, fold=fold, val=0.1), strata) for fold in range(5)]
    tested = [[group for group, part in parts.items() if part == "test"] for parts in folds]
    assert sorted(group for groups in tested for group in groups) == sorted(GROUPS)
    assert all(sorted(strata[group] for group in groups) == list("abcd") for groups in tested)
    assert all(list(parts.values()).count("val") == 2 for parts in folds)


def test_folds_are_of_equal_size_also_without_labels():
    sizes = [list(group_split(GROUPS, GroupSplit(folds=6, fold=fold)).values()).count("test") for fold in range(6)]
    assert sorted(sizes) == [3, 3, 3, 3, 4, 4]


def test_a_fold_that_is_not_named_is_that_of_the_seed():
    split = GroupSplit(folds=5).model_dump()
    assert [fold_of_seed(split, seed)["fold"] for seed in (0, 4, 7)] == [0, 4, 2]
    assert fold_of_seed({**split, "fold": 1}, 7)["fold"] == 1
    assert fold_of_seed(GroupSplit().model_dump(), 7)["fold"] is None


def test_leaving_one_group_out_tests_each_of_them_once():
    folds = [group_split(GROUPS, GroupSplit(folds="all", fold=fold, val=0.1)) for fold in range(len(GROUPS))]
    tested = [[group for group, part in parts.items() if part == "test"] for parts in folds]
    assert all(len(groups) == 1 for groups in tested)
    assert sorted(group for groups in tested for group in groups) == sorted(GROUPS)
    assert all(list(parts.values()).count("val") == 2 for parts in folds)
    assert group_split(GROUPS, GroupSplit(folds="all", fold=20, val=0.1)) == folds[0]


def test_leaving_one_group_out_follows_the_seed_and_needs_two_groups():
    split = GroupSplit(folds="all").model_dump()
    assert [fold_of_seed(split, seed)["fold"] for seed in (0, 4, 27)] == [0, 4, 27]
    assert fold_of_seed({**split, "fold": 1}, 7)["fold"] == 1
    with pytest.raises(DataError, match=r"1 group\(s\) \(a\) cannot be divided into test fold 0 and val 0"):
        group_split(["a"], GroupSplit(folds="all"))
    with pytest.raises(ValueError, match="either folds or test_groups"):
        GroupSplit(folds="all", test_groups=("a",))
    for wrong in ("every", 1, 2.5, True):
        with pytest.raises(ValueError, match=r"folds must be a whole number, 2 or more, or all"):
            GroupSplit(folds=wrong)


def test_more_folds_than_groups_and_impossible_folds_are_refused():
    with pytest.raises(DataError, match=r"split\.folds is 3, and there are only 2"):
        group_split(["a", "b"], GroupSplit(folds=3))
    for values, message in (({"fold": 0}, "below folds"), ({"folds": 2, "fold": 2}, "below folds"),
                            ({"folds": 2, "test_groups": ("a",)}, "either folds or test_groups")):  # fmt: skip
        with pytest.raises(ValueError, match=message):
            GroupSplit(**values)
