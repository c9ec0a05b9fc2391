import numpy as np

from appssl.ops.interactions.sessions import labelled_sessions, sessions_by_gap
from appssl.ops.interactions.store import last_parts

USERS = np.array([0, 0, 0, 0, 3, 3, 4])


def test_a_pause_above_the_gap_begins_a_session_and_numbers_begin_anew_for_each_user():
    times = np.array([0, 10, 21, 22, 22, 500, 501])
    assert sessions_by_gap(USERS, times, 10).tolist() == [0, 0, 1, 1, 0, 1, 0]
    assert sessions_by_gap(USERS, times, 10**6).tolist() == [0] * 7


def test_named_sessions_are_numbered_by_their_first_event_even_if_they_take_turns():
    labels = np.array([9, 2, 9, 1, 9, 9, 2], dtype=np.uint64)
    assert labelled_sessions(USERS, labels).tolist() == [0, 1, 0, 2, 0, 0, 0]


def test_named_sessions_equal_counting_new_names():
    rng = np.random.default_rng(0)
    users, labels = np.sort(rng.integers(0, 20, 500)), rng.integers(0, 9, 500).astype(np.uint64)
    seen: dict[int, dict[int, int]] = {}
    literal = []
    for user, label in zip(users.tolist(), labels.tolist(), strict=True):
        own = seen.setdefault(user, {})
        literal.append(own.setdefault(label, len(own)))
    assert labelled_sessions(users, labels).tolist() == literal


def test_without_events_there_are_no_sessions():
    nothing = np.zeros(0, dtype=np.int64)
    assert len(sessions_by_gap(nothing, nothing, 5)) == 0
    assert len(labelled_sessions(nothing, nothing.astype(np.uint64))) == 0


def test_the_last_event_of_a_user_is_the_test_and_the_one_before_validation():
    assert last_parts(np.array([0, 0, 0, 0, 3, 3, 4]), with_val=True).tolist() == [0, 0, 1, 2, 0, 2, 0]
    assert last_parts(np.array([0, 0, 0, 0, 3, 3, 4]), with_val=False).tolist() == [0, 0, 0, 2, 0, 2, 0]
