import numpy as np

from appssl.ops.interactions.duplicates import SetHashes


def test_equal_sets_in_any_order_are_found_and_others_are_not():
    sets = {0: [3, 1, 7], 1: [7, 3, 1], 2: [3, 1], 3: [1, 3], 4: [2, 9], 5: [4, 7]}  # 2 + 9 = 4 + 7
    hashes = SetHashes(7, 10)
    for users in ([0, 1, 2], [3, 4, 5]):
        who = np.repeat(users, [len(sets[user]) for user in users])
        hashes.add(who, np.concatenate([sets[user] for user in users]))
    assert hashes.groups().tolist() == [2, 2, 2, 2, 1, 1, 1]


def test_equals_comparing_all_sets():
    rng = np.random.default_rng(0)
    sets = [sorted(rng.choice(6, rng.integers(1, 4), replace=False).tolist()) for _ in range(60)]
    hashes = SetHashes(60, 6)
    hashes.add(np.repeat(np.arange(60), [len(of) for of in sets]), np.concatenate(sets))
    assert hashes.groups().tolist() == [sets.count(of) for of in sets]
