import numpy as np
import pytest

from appssl.errors import DataError
from appssl.ops import coreset
from appssl.ops.coreset import centroids, facility_location, search, unit

CENTERS = np.eye(2, dtype=np.float32)
OPEN = unit(np.array([[1, 0.1], [0.9, 0.5], [0.2, 1], [0.6, 0.7], [-1, 0.2], [0.1, -1]]))


def random_sets(num=400, width=6, seed=0):
    rng = np.random.default_rng(seed)
    return unit(rng.normal(size=(7, width))), unit(rng.normal(size=(num, width)))


def literal_search(centers, features, *, budget, stop_ratio, reference_round):
    """The rounds on the whole matrix, and the set of what the last round may take when it exceeds the budget."""
    matrix = centers.astype(np.float64) @ features.astype(np.float64).T
    taken, objective = set(), []
    while len(taken) < len(features):
        places = [
            max((u for u in range(len(features)) if u not in taken), key=lambda u, own=row: own[u]) for row in matrix
        ]
        objective.append(np.mean([row[u] for row, u in zip(matrix, places, strict=True)]))
        may_end = stop_ratio > 0 and len(objective) >= reference_round
        if may_end and objective[-1] < stop_ratio * objective[reference_round - 1]:
            return taken, objective, "similarity", set()
        if len(taken | set(places)) >= budget:
            return taken, objective, "budget", set(places)
        taken |= set(places)
    return taken, objective, "exhausted", set()


@pytest.mark.parametrize("list_size", [1, 3, 64, 1000])
@pytest.mark.parametrize(
    ("stop_ratio", "reference_round", "budget"), [(0.0, 1, 10_000), (0.9, 3, 10_000), (0.0, 1, 101), (0.5, 1, 10_000)]
)
def test_equals_the_rounds_on_the_whole_matrix(list_size, stop_ratio, reference_round, budget, monkeypatch):
    monkeypatch.setattr(coreset, "_BLOCK_ELEMENTS", 7 * 50)  # eight blocks
    centers, features = random_sets()
    how = {"stop_ratio": stop_ratio, "reference_round": reference_round, "budget": budget}
    found = search(centers, features, **how, list_size=list_size)
    taken, objective, reason, last = literal_search(centers, features, **how)
    assert found.reason == reason
    assert found.objective == pytest.approx(objective, abs=1e-6)
    assert taken <= set(found.rows.tolist()) <= taken | last
    assert reason != "budget" or len(found.rows) == budget
    assert found.rows.tolist() == sorted(set(found.rows.tolist()))


def test_worked_number():
    whole = search(CENTERS, OPEN, budget=6, stop_ratio=0.0)
    assert whole.objective[:3] == pytest.approx([0.987809, 0.816707, 0.147810], abs=1e-6)
    strict = search(CENTERS, OPEN, budget=6, stop_ratio=0.95, reference_round=1)
    assert (strict.rows.tolist(), strict.reason) == ([0, 2], "similarity")
    loose = search(CENTERS, OPEN, budget=6, stop_ratio=0.5, reference_round=1)
    assert (loose.rows.tolist(), loose.reason, len(loose.objective)) == ([0, 1, 2, 3], "similarity", 3)
    assert facility_location(CENTERS, OPEN[[0]]) == pytest.approx(1.094541, abs=1e-6)
    assert facility_location(CENTERS, OPEN[[0, 2]]) == pytest.approx(1.975618, abs=1e-6)
    assert facility_location(CENTERS, OPEN[[0, 1, 2]]) == pytest.approx(1.975618, abs=1e-6)


def test_the_order_of_the_open_set_does_not_matter_and_the_objective_never_rises():
    centers, features = random_sets()
    found = search(centers, features, budget=10_000, stop_ratio=0.8, reference_round=2)
    order = np.random.default_rng(1).permutation(len(features))
    again = search(centers, features[order], budget=10_000, stop_ratio=0.8, reference_round=2)
    assert sorted(order[again.rows].tolist()) == found.rows.tolist()
    assert (np.diff(found.objective) <= 1e-7).all()


def test_copies_of_the_targets_are_found_first():
    targets, others = random_sets(seed=3)
    found = search(centroids(targets, 100), np.vstack([others, targets]), budget=7, stop_ratio=0.0)
    assert found.rows.tolist() == list(range(400, 407))
    assert found.objective == pytest.approx([1.0], abs=1e-6)


def test_one_centroid_chooses_the_most_similar_to_the_mean_direction():
    targets, features = random_sets()
    center = centroids(targets, 1)
    assert center[0].tolist() == pytest.approx(unit(targets.mean(axis=0)[None])[0].tolist(), abs=1e-6)
    found = search(center, features, budget=25, stop_ratio=0.0)
    assert set(found.rows.tolist()) == set(np.argsort(-(features @ center[0]))[:25].tolist())


def test_a_ratio_above_one_ends_at_the_reference_round_and_zero_never():
    centers, features = random_sets()
    ended = search(centers, features, budget=10_000, stop_ratio=1.01, reference_round=4)
    assert len(ended.objective) == 4
    three = search(centers, features, budget=10_000, stop_ratio=1.01, reference_round=3).rows
    assert set(three.tolist()) < set(ended.rows.tolist())
    whole = search(centers, features, budget=10_000, stop_ratio=0.0)
    assert (whole.reason, len(whole.rows)) == ("exhausted", 400)
    assert whole.objective[-1] < 0  # similarities have become negative, and still it goes on


def test_centroids_taking_the_same_item_count_it_twice_in_the_objective():
    centers = unit(np.array([[1.0, 0.1], [1.0, -0.1]]))
    features = unit(np.array([[1.0, 0.0], [0.0, 1.0]]))
    found = search(centers, features, budget=10, stop_ratio=0.9, reference_round=1)
    assert found.rows.tolist() == [0]
    assert found.objective[0] == pytest.approx(1 / np.sqrt(1.01), abs=1e-6)


def test_the_objective_of_sets_is_monotone_and_submodular():
    targets, features = random_sets(num=30)
    rng = np.random.default_rng(0)
    for _ in range(50):
        order = rng.permutation(30)
        small, large, new = order[:3], order[:9], order[20]
        gains = [
            facility_location(targets, features[np.append(part, new)]) - facility_location(targets, features[part])
            for part in (small, large)
        ]
        assert gains[0] >= gains[1] - 1e-6
        assert gains[1] >= -1e-6


def test_the_part_that_fills_the_budget_is_random_and_fixed_by_the_seed():
    centers, features = random_sets()
    parts = [search(centers, features, budget=3, stop_ratio=0.0, seed=seed).rows.tolist() for seed in (0, 0, 1, 2, 3)]
    assert parts[0] == parts[1]
    assert len({tuple(part) for part in parts}) > 1
    assert all(len(part) == 3 for part in parts)


def test_zero_features_and_a_single_item():
    assert unit(np.zeros((2, 3))).tolist() == [[0, 0, 0]] * 2
    found = search(CENTERS, OPEN[:1], budget=5, reference_round=1)
    assert (found.rows.tolist(), found.reason) == ([0], "exhausted")


@pytest.mark.parametrize(
    ("centers", "features"), [(CENTERS[:0], OPEN), (CENTERS, OPEN[:0]), (CENTERS, np.ones((3, 5), np.float32))]
)
def test_nothing_to_choose_from_is_refused(centers, features):
    with pytest.raises(DataError, match="needs targets and an open set with features of one width"):
        search(centers, features, budget=3)
