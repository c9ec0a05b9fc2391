"""Sessions of users: events between pauses, or those that the log itself names."""

import numpy as np

from appssl.ops.interactions.partitions import ordered_by


def sessions_by_gap(users: np.ndarray, times: np.ndarray, gap: float) -> np.ndarray:
    """Number (N,) int32 of each event's session among those of its user, from 0; a pause above `gap` begins one.

    Args:
        users, times: (N,), sorted by user, then time (seconds).
    """
    new_user = _changes(users)
    begins = new_user.copy()
    begins[1:] |= np.diff(times) > gap
    return _within_user(np.cumsum(begins), new_user)


def labelled_sessions(users: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """As `sessions_by_gap`, of events whose sessions have labels (N,): numbered by their first event."""
    order = ordered_by(users, labels)
    begins = _changes(users[order]) | _changes(labels[order])
    first = order[begins]  # events of a session stay in order
    rank = np.empty(len(first), dtype=np.int64)
    rank[np.argsort(first)] = np.arange(1, len(first) + 1)
    session = np.empty(len(users), dtype=np.int64)
    session[order] = rank[np.cumsum(begins) - 1]
    return _within_user(session, _changes(users))


def _within_user(numbers: np.ndarray, new_user: np.ndarray) -> np.ndarray:
    """Numbers (N,) that grow over all users, counted from 0 in each."""
    start = numbers[new_user]
    return (numbers - start[np.cumsum(new_user) - 1]).astype(np.int32)


def _changes(values: np.ndarray) -> np.ndarray:
    """Where (N,) bool a value differs from the one before."""
    found = np.ones(len(values), dtype=bool)
    found[1:] = values[1:] != values[:-1]
    return found
