import math
from typing import ClassVar

import numpy as np
import polars as pl
import pytest

from appssl.contracts import Ranked
from appssl.errors import DataError
from appssl.evaluators.ranking import DESCRIPTIONS, Config, build, item_knn_scores


class Log:
    """Four users, six items. User 3 is cold; item 5 is cold."""

    num_users, num_items = 4, 6
    parts: ClassVar = {
        "train": ([0, 0, 1, 1, 2, 0], [0, 1, 0, 2, 0, 3]),
        "val": ([1], [3]),
        "test": ([0, 0, 1, 2, 3, 3, 1], [4, 5, 1, 1, 0, 2, 0]),
    }
    popularity = np.array([3, 1, 1, 1, 0, 0])
    samples = pl.DataFrame({"slice": ["head", "middle", "tail", "tail", "cold", "cold"]})
    users = pl.DataFrame({"number": range(4), "id": list("abcd")})

    def interactions(self, split):
        users, items = self.parts[split]
        return np.array(users), np.array(items), np.arange(len(users))


SCORES = np.random.default_rng(3).random((4, 6)).astype(np.float32)


def measure(k=2, baselines=()):
    built = build(Config(k=k, baselines=baselines))
    result = Ranked(data=Log(), scores=lambda users: SCORES[users])
    return built.evaluate(result, num_bootstrap=200, seed=0), built.per_user(result)


def literal(user, k):
    log = Log()
    seen = {i for p in ("train", "val") for u, i in zip(*log.parts[p], strict=True) if u == user}
    wanted = {i for u, i in zip(*log.parts["test"], strict=True) if u == user} - seen
    best = sorted((i for i in range(6) if i not in seen), key=lambda i: -SCORES[user, i])[:k]
    hits = [i in wanted for i in best]
    ideal = sum(1 / math.log2(r + 2) for r in range(min(k, len(wanted))))
    return {
        f"recall@{k}": sum(hits) / len(wanted),
        f"ndcg@{k}": sum(h / math.log2(r + 2) for r, h in enumerate(hits)) / ideal,
        f"mrr@{k}": 1 / (hits.index(True) + 1) if any(hits) else 0.0,
    }


@pytest.mark.parametrize("k", [1, 2, 4])
def test_per_user_metrics_equal_the_definitions_written_out(k):
    _, table = measure(k)
    for row in table.iter_rows(named=True):
        expected = literal(row["user"], k)
        assert {name: row[name] for name in expected} == pytest.approx(expected)


def test_means_are_over_users_and_have_intervals():
    metrics, table = measure()
    assert metrics["recall@2"].value == pytest.approx(table["recall@2"].mean())
    assert metrics["recall@2"].low <= metrics["recall@2"].value <= metrics["recall@2"].high
    assert metrics["recall@2"].num_groups == 4


def test_cold_users_are_a_slice_of_their_own():
    metrics, table = measure()
    assert table.filter(~pl.col("warm"))["user"].to_list() == [3]
    assert metrics["recall@2_cold_users"].value == table.row(3, named=True)["recall@2"]


def test_a_user_with_validation_events_only_is_cold():
    class Later(Log):
        parts: ClassVar = {**Log.parts, "val": ([1, 3], [3, 4])}

    found = build(Config(k=2, baselines=())).per_user(Ranked(data=Later(), scores=lambda users: SCORES[users]))
    assert found.filter(~pl.col("warm"))["user"].to_list() == [3]


def test_slices_count_relevant_items_of_the_slice_only():
    _, table = measure(6)
    first = table.row(0, named=True)
    assert first["recall@6_cold"] == 1.0  # both cold items are among all unseen ones
    assert first["recall@6_head"] is None


def test_deciles_are_measured_beside_the_slices_with_intervals_and_differences():
    """Of six events item 0 has three: decile 1. Items 1 to 3 have one each: 6, 7 and 9. Items 4 and 5 have none.

    New are items 4 and 5 for user 0, item 1 for users 1 and 2, items 0 and 2 for user 3.
    """
    metrics, table = measure(6, baselines=("popularity",))
    users = {
        name: metric.num_groups
        for name, metric in metrics.items()
        if name.startswith("recall@6_decile") and "minus" not in name
    }
    assert users == {"recall@6_decile_01": 1, "recall@6_decile_06": 2, "recall@6_decile_07": 1}
    assert metrics["recall@6_decile_06"].value == 1.0  # a list of six shows every item
    assert metrics["ndcg@6_decile_06"].low <= metrics["ndcg@6_decile_06"].value <= metrics["ndcg@6_decile_06"].high
    assert "recall@6_decile_01_minus_popularity" in metrics
    assert table.filter(pl.col("user") == 0)["recall@6_decile_01"].item() is None


def test_no_metric_is_the_beginning_of_the_path_of_another():
    names = [*DESCRIPTIONS, *measure(2, baselines=("popularity", "item_knn"))[0]]
    assert not [(one, two) for one in names for two in names if two.startswith(f"{one}/")]
    deciles = sorted(name for name in DESCRIPTIONS if "decile" in name)
    assert not [(one, two) for one in deciles for two in deciles if one != two and two.startswith(one)]


def test_an_event_seen_before_is_no_relevant_item():
    _, table = measure()
    assert table.filter(pl.col("user") == 1)["num_relevant"].item() == 1


def test_coverage_gini_and_popularity_of_a_model_that_shows_all():
    metrics, _ = measure(6)
    assert metrics["coverage@6"].value == 1.0


def test_popularity_baseline_and_its_paired_difference():
    metrics, _ = measure(2, baselines=("popularity",))
    gap = metrics["recall@2"].value - metrics["popularity_recall@2"].value
    assert metrics["recall@2_minus_popularity"].value == pytest.approx(gap)


def test_item_knn_equals_cosine_sums_written_out():
    log = Log()
    matrix = np.zeros((4, 6))
    matrix[log.parts["train"]] = 1
    norms = np.sqrt((matrix**2).sum(0))
    similar = matrix.T @ matrix / np.maximum(np.outer(norms, norms), 1)
    np.fill_diagonal(similar, 0)
    expected = matrix @ similar
    expected[3] = log.popularity
    np.testing.assert_allclose(item_knn_scores(log, 50)(np.arange(4)), expected, rtol=1e-6)


def test_no_new_item_in_the_test_part_is_a_clear_error():
    class Empty(Log):
        parts: ClassVar = {**Log.parts, "test": ([0], [0])}

    with pytest.raises(DataError, match="no user has a new item in the test part"):
        build(Config()).evaluate(Ranked(data=Empty(), scores=lambda u: SCORES[u]), num_bootstrap=100, seed=0)
