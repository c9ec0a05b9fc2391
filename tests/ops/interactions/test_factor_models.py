"""ALS against its normal equations written out, BPR by what it must order; both through the package `implicit`."""

import sys

import numpy as np
import pytest

from appssl.contracts import Ranked
from appssl.errors import SettingsError
from appssl.evaluators import ranking
from appssl.ops.interactions.factor_models import Factors, factor_scores
from tests.evaluators.test_ranking import Log as SmallLog

implicit = pytest.importorskip("implicit", reason="NOT TESTED: implicit (extra recsys) is not installed")


class Log:
    """Two groups of users, each with its own items; user 8 and item 9 never occur in training."""

    num_users, num_items = 9, 10

    def __init__(self):
        rng = np.random.default_rng(0)
        pairs = [(u, i) for u in range(8) for i in range(9) if (u < 4) == (i < 5) and rng.random() < 0.7]
        self.users, self.items = (np.array(column) for column in zip(*pairs, strict=True))
        self.popularity = np.bincount(self.items, minlength=10)

    def interactions(self, split):
        return self.users, self.items, np.arange(len(self.users))


def scores(model, seed=0, **values):
    return factor_scores(model, Log(), Factors(factors=4, **values), seed=seed)(np.arange(9))


def literal_als(alpha, regularization, sweeps, width=4):
    """Weighted ridge regressions by turns, from another start; both converge to a minimum of the same objective."""
    log = Log()
    liked = np.zeros((9, 10))
    liked[log.users, log.items] = 1
    weight = np.where(liked > 0, alpha, 1.0)
    rng = np.random.default_rng(1)
    users, items = 0.01 * rng.random((9, width)), 0.01 * rng.random((10, width))
    for _ in range(sweeps):
        for mine, theirs, w, target in ((users, items, weight, liked), (items, users, weight.T, liked.T)):
            for n in range(len(mine)):
                left = (theirs.T * w[n]) @ theirs + regularization * np.eye(width)
                mine[n] = np.linalg.solve(left, theirs.T @ (w[n] * target[n]))
    return users @ items.T


def test_als_reaches_the_scores_of_the_normal_equations_written_out():
    found = scores("als", als_alpha=5.0, als_regularization=0.1, als_iterations=400)
    expected = literal_als(5.0, 0.1, 400)
    np.testing.assert_allclose(found[:8], expected[:8], atol=0.02)  # float32 and few steps of conjugate gradients


def test_both_put_what_a_user_had_before_everything_of_the_other_group():
    log = Log()
    for model in ("als", "bpr"):
        found = scores(model, bpr_lr=0.1, bpr_iterations=200)
        for user in range(8):
            other = found[user, 5:9] if user < 4 else found[user, :5]
            assert found[user, log.items[log.users == user]].min() > other.max(), model


@pytest.mark.parametrize("model", ["als", "bpr"])
def test_a_seed_gives_the_same_scores_and_another_one_others(model):
    assert (scores(model) == scores(model)).all()
    assert (scores(model) != scores(model, seed=1)).any()


@pytest.mark.parametrize("model", ["als", "bpr"])
def test_a_user_without_training_events_gets_what_is_popular(model):
    assert scores(model)[8].tolist() == Log().popularity.tolist()
    assert scores(model).dtype == np.float32


def test_the_ranking_measures_them_on_the_same_users_with_paired_differences():
    built = ranking.build(ranking.Config(k=2, baselines=("als", "bpr"), factors=Factors(factors=2)))
    found = built.evaluate(
        Ranked(data=SmallLog(), scores=lambda users: np.zeros((len(users), 6), np.float32)), num_bootstrap=100, seed=0
    )
    for name in ("als", "bpr"):
        difference = found["recall@2"].value - found[f"{name}_recall@2"].value
        assert found[f"recall@2_minus_{name}"].value == pytest.approx(difference)


def test_without_the_package_it_says_which_extra_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "implicit.cpu.als", None)
    with pytest.raises(SettingsError, match=r"baseline als needs the package implicit: pip install 'appssl\[recsys\]'"):
        scores("als")
