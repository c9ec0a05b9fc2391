"""SimCore: the target images, and those of an open set that are most like them: {index, views}.

Training rows whose `column` has one of the values `target` (any, if none is named) are the targets, all others the open
set. Features are the first principal components of the targets, of the plain view shrunk to `side` pixels, normalized;
the coreset is found as `ops/coreset.py` states, once, before training. Then every row of targets and coreset comes
once in an epoch, and all of them count the same.

Source: Kim et al., SimCore, CVPR 2023, arXiv 2303.11101. Official code: sungnyun/openssl-simcore, no licence; none of
it is used. Deviations: features of a principal component analysis in place of an encoder trained on the targets,
because a sampler has no encoder; nothing is chosen again during training; the length of training stays what `fit` says
(compare at equal `fit.steps`). With `choose: random` as many rows are drawn at random, to compare a coreset with.
"""

from collections.abc import Iterator
from typing import Any, Literal

import numpy as np
import polars as pl
import torch
from pydantic import Field
from sklearn.decomposition import PCA
from threadpoolctl import threadpool_limits
from torch.nn import functional

from appssl.contracts import PreparedData, Views
from appssl.errors import DataError
from appssl.ops.coreset import Coreset, centroids, search, unit
from appssl.ops.random import permutation
from appssl.ops.rows import training_rows
from appssl.samplers.uniform import Uniform
from appssl.settings import Settings, nearest

_BLOCK = 1024  # samples read at once
_MOST_FITTED = 5000  # targets that the components are computed from


class Config(Settings):
    name: Literal["simcore"] = "simcore"
    column: str = Field("origin", description="column of the prepared samples that tells targets from the open set")
    target: tuple[str, ...] = Field(("input",), description="its values for targets; empty: any value but none")
    num_centroids: int = Field(100, ge=1, description="clusters of the targets, K")
    stop_ratio: float = Field(0.95, ge=0, description="rounds end below this share of the reference, tau; 0: never")
    reference_round: int = Field(5, ge=1, description="round whose similarity is the reference; published: 20")
    budget: float = Field(50.0, gt=0, description="most images of the coreset / target images")
    num_components: int = Field(20, ge=1, description="principal components that similarity is measured on")
    side: int = Field(16, ge=1, description="side that images are shrunk to for that, pixels")
    choose: Literal["nearest", "random"] = Field("nearest", description="random: as many rows at random, to compare")
    seed: int = Field(0, ge=0, description="of clusters and random parts; not the seed of the run")


class SimCore(Uniform):
    """Rows of targets and coreset.

    Attributes:
        coreset: what was found; `rows` are positions in the open set. targets: (n,) int64 rows of the data.
    """

    def __init__(
        self, data: PreparedData, views: Views, targets: np.ndarray, added: np.ndarray, found: Coreset
    ) -> None:
        super().__init__(data, np.sort(np.concatenate([targets, added])), views)
        self.coreset, self.targets = found, targets


def build(config: Config, data: PreparedData, views: Views) -> SimCore:
    """
    Raises:
        DataError: if the data has no such column, no target, or no open set.
    """
    targets, others = divided(config, data.samples)
    pixels = _Pixels(data, views, config.side)
    fitted = pixels.of(targets[:: -(-len(targets) // _MOST_FITTED)])
    components = min(config.num_components, *fitted.shape)
    with threadpool_limits(1):  # sums of several threads differ in rounding
        space = PCA(components, svd_solver="full").fit(fitted)
        target_features, open_features = (
            unit(np.concatenate([space.transform(part) for part in pixels.blocks(rows)])) for rows in (targets, others)
        )
        found = search(
            centroids(target_features, config.num_centroids, seed=config.seed),
            open_features,
            budget=max(1, int(config.budget * len(targets))),
            stop_ratio=config.stop_ratio,
            reference_round=config.reference_round,
            seed=config.seed,
        )
    chosen = found.rows
    if config.choose == "random":
        chosen = permutation(config.seed, 0, len(others))[: len(chosen)]
    return SimCore(data, views, targets, others[chosen], found)


def divided(config: Config, samples: pl.DataFrame) -> tuple[np.ndarray, np.ndarray]:
    """Training rows (n,) and (N,) int64 of targets and open set; see `build` for errors."""
    if config.column not in samples.columns:
        known = nearest(config.column, samples.columns)
        raise DataError(f"sampler simcore: the samples have no column {config.column}.{known} Set column.")
    rows = training_rows(samples)
    values = samples[config.column].gather(rows).cast(pl.String)
    is_target = (
        values.is_in(list(config.target)).fill_null(False) if config.target else values.is_not_null()
    ).to_numpy()
    if not is_target.any() or is_target.all():
        what = "all" if is_target.any() else "none"
        found = ", ".join(values.drop_nulls().unique().sort().to_list()[:5])
        raise DataError(
            f"sampler simcore: {what} of {len(rows)} training samples are targets; it needs targets and an open set. "
            f"Column {config.column} has the values {found or 'null'}; set column and target."
        )
    return rows[is_target], rows[~is_target]


class _Pixels:
    """Plain views of rows as flat vectors, images shrunk to `side`."""

    def __init__(self, data: PreparedData, views: Views, side: int) -> None:
        self.data, self.views, self.side = data, views, side

    def blocks(self, rows: np.ndarray) -> Iterator[np.ndarray]:
        """(B, D) float32 each, in order."""
        for start in range(0, len(rows), _BLOCK):
            yield self.of(rows[start : start + _BLOCK])

    def of(self, rows: np.ndarray) -> np.ndarray:
        made = torch.stack([self._shrunk(self.views.plain(self.data.read(int(row)))) for row in rows])
        return made.flatten(1).numpy()

    def _shrunk(self, view: Any) -> torch.Tensor:
        values: torch.Tensor = view.float()
        if values.ndim == 3 and min(values.shape[1:]) > self.side:
            return functional.adaptive_avg_pool2d(values, self.side)
        return values
