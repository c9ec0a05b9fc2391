"""What a division of a log into train and test means: who is known, and what could be known too early."""

from typing import Any

import numpy as np

from appssl.ops.interactions.store import Stored


def leakage(stored: Stored) -> dict[str, Any]:
    """Counts, JSON types; `known` is having an event in the train part.

    - test_events: of known users, of known items, of both, of neither.
    - users, items: known, and those that only come later (validation or test): cold.
    - train_events_after_the_first_test_event: 0 for a split in time; for `last` training sees what comes later.
    - users_with_the_items_of_another: users whose set of items over all parts is exactly that of another user, by a
      128-bit hash of the set; test_users_... of those with a test event; largest_group of such users.
    - busiest_user_events: events of the user with most.
    """
    known_users, known_items = stored.users[:, 0] > 0, stored.items[:, 0] > 0
    cells = np.zeros((2, 2), dtype=np.int64)
    for users, items in stored.blocks(2, "user", "item"):
        pairs = known_users[users] * 2 + known_items[items]
        cells += np.bincount(pairs, minlength=4).reshape(2, 2)
    groups = stored.hashes.groups()
    return {
        "test_events": {
            "all": int(cells.sum()),
            "of_known_users": int(cells[1].sum()),
            "of_known_items": int(cells[:, 1].sum()),
            "of_known_users_and_items": int(cells[1, 1]),
            "of_new_users_and_items": int(cells[0, 0]),
        },
        "users": {"known": int(known_users.sum()), "cold": int((~known_users).sum())},
        "items": {"known": int(known_items.sum()), "cold": int((~known_items).sum())},
        "train_events_after_the_first_test_event": _later_than_test(stored),
        "users_with_the_items_of_another": int((groups > 1).sum()),
        "test_users_with_the_items_of_another": int(((groups > 1) & (stored.users[:, 2] > 0)).sum()),
        "largest_group_of_users_with_the_same_items": int(groups.max()),
        "busiest_user_events": int(stored.users.sum(axis=1).max()),
    }


def _later_than_test(stored: Stored) -> int:
    """Training events later than the first of the test; both parts are sorted by time."""
    times = np.load(stored.columns["timestamp"], mmap_mode="r")
    num_train, _, num_test = stored.counts
    first = times[len(times) - num_test]
    return num_train - int(np.searchsorted(times[:num_train], first, side="right"))
