"""Ranking of the full catalogue for every user with events in the test part; what a user saw before is left out.

Per user, with R the new items of the test part and the k best unseen items: recall@k = hits / |R|, ndcg@k with gain 1
and the ideal of min(k, |R|) hits, mrr@k = 1 / rank of the first hit (0 if none). Slices, for recall and ndcg: items by
popularity in training (head, middle, tail; cold: never seen in training), and by deciles of training events, decile_01
having the most popular items (`ops/interactions/ranking_metrics.py`: cold items are in none); for recall, users by
whether they have a training event (warm, cold: a user whose first event lies in the validation part is cold, because
the model does not know him or her either).
Over all lists: coverage@k (share of the catalogue shown), gini@k of exposure, popularity@k (mean training events of
what is shown). Popularity and item-kNN, and where asked for ALS and BPR (`ops/interactions/factor_models.py`), are
measured on the same users, with paired differences.
Source: Krichene and Rendle, On sampled metrics for item recommendation, KDD 2020 (full catalogue instead of samples);
Sarwar et al., Item-based collaborative filtering, WWW 2001 (item-kNN with cosine). Deviations: none.
"""

from typing import Any, Literal

import numpy as np
import polars as pl
from pydantic import Field
from scipy import sparse

from appssl.contracts import Metric, Ranked
from appssl.errors import DataError
from appssl.ops.bootstrap import bootstrap_means
from appssl.ops.interactions.factor_models import Factors, factor_scores
from appssl.ops.interactions.ranking_metrics import NUM_DECILES, popularity_deciles, user_metrics
from appssl.ops.interactions.statistics import gini
from appssl.ops.interactions.topk import Scores, best_items, seen_matrix
from appssl.settings import Settings

SLICES = ("head", "middle", "tail", "cold")
DECILES = tuple(f"decile_{number:02}" for number in range(1, NUM_DECILES + 1))
_NAMES = ("recall", "ndcg", "mrr")


class Config(Settings):
    name: Literal["ranking"] = "ranking"
    k: int = Field(20, ge=1, le=1000, description="length of the list")
    baselines: tuple[Literal["popularity", "item_knn", "als", "bpr"], ...] = Field(
        ("popularity", "item_knn"), description="measured on the same users; als and bpr need the extra recsys"
    )
    neighbors: int = Field(50, ge=1, description="neighbors of an item in item-kNN")
    factors: Factors = Field(Factors(), description="of als and bpr")


DESCRIPTIONS = {
    **{f"{name}@20": (0.0, 1.0, +1) for name in _NAMES},
    **{f"{name}@20_{part}": (0.0, 1.0, +1) for name in ("recall", "ndcg") for part in (*SLICES, *DECILES)},
    **{f"recall@20_{part}_users": (0.0, 1.0, +1) for part in ("warm", "cold")},
    "coverage@20": (0.0, 1.0, +1),
    "gini@20": (0.0, 1.0, -1),
    "popularity@20": (0.0, float("inf"), -1),
}


class Ranking:
    def __init__(self, config: Config) -> None:
        self.config = config

    def evaluate(self, result: Ranked, *, num_bootstrap: int, seed: int) -> dict[str, Metric]:
        """Metrics of the model, of the baselines, and the differences, with intervals over users.

        Raises:
            DataError: if no user has a new item in the test part.
        """
        ours, exposure = self._measure(result.data, _numpy(result.scores))
        metrics = self._summary(ours, exposure, result.data, num_bootstrap, seed)
        for name in self.config.baselines:
            theirs, shown = self._measure(result.data, self._baseline(name, result.data, seed))
            found = self._summary(theirs, shown, result.data, num_bootstrap, seed)
            metrics |= {f"{name}_{key}": metric for key, metric in found.items()}
            metrics |= self._differences(name, ours, theirs, num_bootstrap, seed)
        return metrics

    def per_user(self, result: Ranked) -> pl.DataFrame:
        """Columns user (number), id, num_relevant, warm, and every per-user metric (null where undefined)."""
        return self._measure(result.data, _numpy(result.scores))[0]

    def _measure(self, data: Any, scores: Scores) -> tuple[pl.DataFrame, np.ndarray]:
        """Per-user metrics, and how often each item was shown (num_items,)."""
        k = self.config.k
        seen, relevant = _before_and_after(data)
        users = np.flatnonzero(np.diff(relevant.indptr))
        if len(users) == 0:
            raise DataError(
                "no user has a new item in the test part, nothing can be ranked. Make the test part larger."
            )
        slices = _slices(data)
        warm = np.bincount(data.interactions("train")[0], minlength=data.num_users) > 0
        exposure = np.zeros(data.num_items)
        found = []
        for block, items, _ in best_items(scores, users, seen, k):
            exposure += np.bincount(items[items >= 0], minlength=data.num_items)
            found.append(pl.DataFrame({"user": block, **user_metrics(relevant[block], items, slices)}))
        table = pl.concat(found).with_columns(pl.selectors.float().fill_nan(None))
        names = dict(data.users.select("number", "id").iter_rows())
        ids = pl.Series("id", [str(names[int(user)]) for user in table["user"]])
        return table.with_columns(ids, pl.Series("warm", warm[table["user"].to_numpy()])), exposure

    def _summary(
        self, table: pl.DataFrame, exposure: np.ndarray, data: Any, num_bootstrap: int, seed: int
    ) -> dict[str, Metric]:
        k = self.config.k
        columns = {name: _values(table[name]) for name in table.columns if "@" in name}
        for part, chosen in (("warm", table["warm"]), ("cold", ~table["warm"])):
            columns[f"recall@{k}_{part}_users"] = np.where(chosen.to_numpy(), columns[f"recall@{k}"], np.nan)
        metrics = _intervals(columns, table, num_bootstrap, seed)
        shown = exposure.sum()
        metrics[f"coverage@{k}"] = Metric(float((exposure > 0).mean()))
        metrics[f"gini@{k}"] = Metric(gini(exposure))
        metrics[f"popularity@{k}"] = Metric(float(exposure @ data.popularity / max(shown, 1)))
        return metrics

    def _differences(
        self, name: str, ours: pl.DataFrame, theirs: pl.DataFrame, num_bootstrap: int, seed: int
    ) -> dict[str, Metric]:
        columns = {
            f"{column}_minus_{name}": _values(ours[column]) - _values(theirs[column])
            for column in ours.columns
            if "@" in column
        }
        return _intervals(columns, ours, num_bootstrap, seed)

    def _baseline(self, name: Literal["popularity", "item_knn", "als", "bpr"], data: Any, seed: int) -> Scores:
        if name == "popularity":
            return popularity_scores(data)
        if name == "item_knn":
            return item_knn_scores(data, self.config.neighbors)
        return factor_scores(name, data, self.config.factors, seed=seed)


def build(config: Config) -> Ranking:
    return Ranking(config)


def _numpy(scores: Any) -> Scores:
    return lambda users: np.asarray(scores(users))


def _before_and_after(data: Any) -> tuple[sparse.csr_matrix, sparse.csr_matrix]:
    """What users saw before the test part, and the new items in it."""
    train, val, test = (data.interactions(split) for split in ("train", "val", "test"))
    users, items = (np.concatenate([train[i], val[i]]) for i in (0, 1))
    seen = seen_matrix(users, items, data.num_users, data.num_items)
    after = seen_matrix(test[0], test[1], data.num_users, data.num_items)
    new = after - after.multiply(seen > 0)
    new.eliminate_zeros()
    return seen, new.tocsr()


def _slices(data: Any) -> dict[str, np.ndarray]:
    """Name -> items that belong to it, (num_items,) bool."""
    slices, deciles = data.samples["slice"].to_numpy(), popularity_deciles(data.popularity)
    by_decile = {name: deciles == number for number, name in enumerate(DECILES, 1)}
    return {name: slices == name for name in SLICES} | by_decile


def _values(column: pl.Series) -> np.ndarray:
    return column.cast(pl.Float64).fill_null(float("nan")).to_numpy()


def _intervals(columns: dict[str, np.ndarray], table: pl.DataFrame, num: int, seed: int) -> dict[str, Metric]:
    found = bootstrap_means(columns, table["user"].to_numpy(), num=num, seed=seed)
    counts = {name: int((~np.isnan(values)).sum()) for name, values in columns.items()}
    return {name: Metric(*interval, counts[name]) for name, interval in found.items() if counts[name]}


def popularity_scores(data: Any) -> Scores:
    """Training events of each item, the same for everybody."""
    return lambda users: np.tile(data.popularity.astype(np.float32), (len(users), 1))


def item_knn_scores(data: Any, neighbors: int) -> Scores:
    """Sum of cosine similarities to the user's training items, over the nearest items of each; popularity for nobody.

    A user without training events gets the popularity scores.
    """
    users, items, _ = data.interactions("train")
    matrix = seen_matrix(users, items, data.num_users, data.num_items)
    matrix.data[:] = 1
    norms = np.sqrt(np.asarray(matrix.sum(axis=0)).ravel())
    unit = matrix @ sparse.diags(1 / np.maximum(norms, 1))
    similar = _nearest((unit.T @ unit).tocsr(), neighbors)
    popular = data.popularity.astype(np.float32)

    def scores(numbers: np.ndarray) -> np.ndarray:
        found = np.asarray((matrix[numbers] @ similar).todense(), dtype=np.float32)
        nobody = np.diff(matrix.indptr)[numbers] == 0
        found[nobody] = popular
        return found

    return scores


def _nearest(similar: sparse.csr_matrix, neighbors: int) -> sparse.csr_matrix:
    """Keeps the largest entries of each row, without the diagonal; ties to the smaller column."""
    similar.setdiag(0)
    similar.eliminate_zeros()
    similar.sort_indices()
    rows, columns, values = [], [], []
    for row in range(similar.shape[0]):
        start, end = similar.indptr[row], similar.indptr[row + 1]
        best = np.argsort(-similar.data[start:end], kind="stable")[:neighbors]
        rows.append(np.full(len(best), row))
        columns.append(similar.indices[start:end][best])
        values.append(similar.data[start:end][best])
    indices = (np.concatenate(rows), np.concatenate(columns))
    return sparse.csr_matrix((np.concatenate(values), indices), shape=similar.shape)
