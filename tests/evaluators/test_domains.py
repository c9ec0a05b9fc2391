from dataclasses import replace

import numpy as np
import polars as pl
import pytest

from appssl.contracts import Scored
from appssl.errors import DataError
from appssl.evaluators.domains import Config, build, paired, purity

FACTS = {"domain": "site", "unseen_domains": ["c", "d"]}


def scored(num=60, seed=0, **values):
    rng = np.random.default_rng(seed)
    own = {
        "ids": np.array([f"s{i}" for i in range(num)]),
        "groups": np.array([f"p{i % 12}" for i in range(num)]),
        "target": np.random.default_rng(9).integers(0, 3, num),
        "classes": ("x", "y", "z"),
        "probabilities": rng.dirichlet(np.ones(3), num),
        "features": rng.normal(size=(num, 5)),
        "columns": pl.DataFrame({"site": ["a", "b", "c", "b"] * (num // 4)}),
        "facts": FACTS,
    }
    return Scored(**{**own, **values})


def evaluated(one, k=10):
    return build(Config(k=k)).evaluate(one, num_bootstrap=200, seed=0)


def literal_purity(features, domains, k):
    shares = []
    for i, a in enumerate(features):
        cosines = [(float(a @ b / np.linalg.norm(a) / np.linalg.norm(b)), j) for j, b in enumerate(features) if j != i]
        nearest = [j for _, j in sorted(cosines, reverse=True)[:k]]
        shares.append(sum(domains[j] == domains[i] for j in nearest) / len(nearest))
    return shares


@pytest.mark.parametrize("k", [1, 10, 100])
def test_values_are_those_counted_by_hand(k):
    one = scored()
    found = evaluated(one, k)
    domains = one.columns["site"].to_list()
    right = [int(p.argmax() == t) for p, t in zip(one.probabilities, one.target, strict=True)]
    unseen = [r for r, d in zip(right, domains, strict=True) if d == "c"]
    seen = [r for r, d in zip(right, domains, strict=True) if d != "c"]
    assert found["unseen_accuracy"].value == pytest.approx(sum(unseen) / len(unseen))
    assert found["seen_accuracy"].value == pytest.approx(sum(seen) / len(seen))
    assert found["domain_purity"].value == pytest.approx(np.mean(literal_purity(one.features, domains, k)))
    assert all(metric.low <= metric.value <= metric.high and metric.num_groups == 12 for metric in found.values())


def test_domains_apart_have_purity_one_and_features_without_them_their_mean_share():
    domains = np.array(["a", "b"] * 30)
    apart = np.where(domains[:, None] == "a", [[1.0, 0.0]], [[0.0, 1.0]]) + 0.01 * np.arange(60)[:, None]
    assert purity(apart * [[1, -1]], domains, 10).tolist() == [1.0] * 60
    rng = np.random.default_rng(0)
    many, sizes = rng.normal(size=(3000, 8)), rng.choice(["a", "b", "c"], 3000, p=[0.6, 0.3, 0.1])
    assert purity(many, sizes, 10).mean() == pytest.approx(0.36 + 0.09 + 0.01, abs=0.02)


def test_pairs_are_differences_of_the_same_rows():
    one, other = scored(seed=1), scored(seed=2)
    found = paired(one, other, num_bootstrap=200, seed=0)
    assert set(found) == {"unseen_accuracy", "seen_accuracy"}
    for name, metric in found.items():
        assert metric.value == pytest.approx(evaluated(one)[name].value - evaluated(other)[name].value)
        assert paired(one, one, num_bootstrap=200, seed=0)[name].high == 0


def test_purity_is_paired_where_both_have_kept_it():
    one, other = (
        replace(each, per_sample=build(Config()).per_sample(each)) for each in (scored(seed=1), scored(seed=2))
    )
    found = paired(one, other, num_bootstrap=200, seed=0)
    assert list(found) == ["unseen_accuracy", "seen_accuracy", "domain_purity"]
    assert found["domain_purity"].value == pytest.approx(
        evaluated(one)["domain_purity"].value - evaluated(other)["domain_purity"].value
    )
    assert "domain_purity" not in paired(one, scored(seed=2), num_bootstrap=200, seed=0)


def test_what_no_row_defines_is_left_out():
    assert set(evaluated(scored(probabilities=None))) == {"domain_purity"}
    assert set(evaluated(scored(features=None))) == {"unseen_accuracy", "seen_accuracy"}
    assert "unseen_accuracy" not in evaluated(scored(facts={"domain": "site", "unseen_domains": []}))


def test_data_without_domains_are_refused():
    with pytest.raises(DataError, match="needs data that tell of domains"):
        evaluated(scored(facts={}))
    with pytest.raises(DataError, match="not every test sample has a site"):
        evaluated(scored(columns=pl.DataFrame({"other": ["a"] * 60})))
    with pytest.raises(DataError, match="not every test sample has a site"):
        evaluated(scored(columns=pl.DataFrame({"site": [None, *["a"] * 59]})))
